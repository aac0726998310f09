"""The trail's parts by the settings, and the check of its database."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from shim.audit.store.factory import check_trail, retention_limits, trail_url
from shim.audit.store.retention import Limits
from shim.audit.store.tables import build_database
from shim.health import State
from shim.settings import Settings, SettingsError, load, warnings


def settings(**values: str) -> Settings:
    return load({f"SHIM_{name}": value for name, value in values.items()})


@pytest.mark.parametrize(
    ("values", "url"),
    [
        ({}, "sqlite:///audit.db"),
        ({"DATABASE_URL": "sqlite:////data/shim.db"}, "sqlite:////data/audit.db"),
        ({"DATABASE_URL": "postgresql+psycopg://a:b@h/n"}, "postgresql+psycopg://a:b@h/n"),
        ({"AUDIT_DATABASE_URL": "sqlite:////other/trail.db"}, "sqlite:////other/trail.db"),
        ({"AUDIT_DATABASE_URL": "None"}, None),
    ],
)
def test_the_location_of_the_trail(values: dict[str, str], url: str | None) -> None:
    assert trail_url(settings(**values)) == url


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"AUDIT_DATABASE_URL": "sqlite:///a.db", "DATABASE_URL": "sqlite:///a.db"},
            "expected another file than SHIM_DATABASE_URL",
        ),
        (
            {"AUDIT_DATABASE_URL": "none", "AUDIT_FAIL_MODE": "closed"},
            "expected open, because SHIM_AUDIT_DATABASE_URL is none",
        ),
        ({"AUDIT_REQUESTS_MAX_SIZE": "1GB"}, "expected a size such as 1GiB or 500MiB"),
        ({"AUDIT_REQUESTS_MAX_SIZE": "1MiB"}, "expected a size such as 1GiB or 500MiB"),
        ({"AUDIT_DATABASE_URL": "audit.db"}, "or none"),
    ],
)
def test_conflicting_settings_are_faults(values: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        settings(**values)


def test_the_retention_of_each_stream_follows_its_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1_700_000_000.25
    monkeypatch.setattr("shim.audit.store.retention.time.time", lambda: now)
    kept = {"AUDIT_REQUESTS_DAYS": "30", "AUDIT_REQUESTS_MAX_SIZE": "2GiB"}
    assert retention_limits(settings(**kept, AUDIT_CHANGES_DAYS="400")) == {
        "requests": Limits(since=1_697_408_000_250_000, max_size=2 << 30),
        "changes": Limits(since=1_665_440_000_250_000),
    }


def test_a_short_key_is_a_warning() -> None:
    assert any(
        "SHIM_AUDIT_KEY has a value under 16" in w for w in warnings(settings(AUDIT_KEY="k"))
    )
    assert not any("AUDIT_KEY" in w for w in warnings(settings(AUDIT_KEY="k" * 16)))


def test_check_changes_nothing(tmp_path: Path) -> None:
    found = check_trail(settings(DATABASE_URL=f"sqlite:///{tmp_path}/shim.db"))
    assert found.state is State.OK
    assert "without SHIM_AUDIT_KEY" in found.detail
    assert list(tmp_path.iterdir()) == []


def test_check_finds_an_existing_trail(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/audit.db"
    database = build_database(url)
    database.open()
    database.close()
    assert check_trail(settings(AUDIT_DATABASE_URL=url)).state is State.OK


@pytest.mark.parametrize(("mode", "state"), [("open", State.WARNING), ("closed", State.FAILING)])
def test_check_names_a_database_of_another_program(tmp_path: Path, mode: str, state: State) -> None:
    file = tmp_path / "audit.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE media_file (id TEXT)")
    connection.close()
    found = check_trail(settings(AUDIT_DATABASE_URL=f"sqlite:///{file}", AUDIT_FAIL_MODE=mode))
    assert found.state is state
    assert "tables of another program (media_file)" in found.detail


def test_check_names_a_folder_that_is_missing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/none/audit.db"
    found = check_trail(settings(AUDIT_DATABASE_URL=url))
    assert found.state is State.WARNING
    assert "there is no folder" in found.detail
    assert "set SHIM_AUDIT_DATABASE_URL" in found.detail


def test_check_reports_a_trail_that_is_only_in_the_log() -> None:
    assert "the log only" in check_trail(settings(AUDIT_DATABASE_URL="none")).detail
