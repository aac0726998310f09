"""Shared fixtures: no settings from the machine, skipping of tests whose program is missing, and
databases.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.event_schema import check_all_events
from tests.support.postgresql import PostgreSQL, programs

check_all_events()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose program is not installed; fail in CI."""
    for marker in item.iter_markers("binary"):
        name = str(marker.args[0])
        if shutil.which(name) is None:
            _lacks(name)


def _lacks(program: str) -> NoReturn:
    missing = f"{program} is not on this machine"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{missing}, and CI has to have it", pytrace=False)
    pytest.skip(missing)


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(("SHIM_", "ND_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A running PostgreSQL. A test that stops it starts it again."""
    found = programs()
    if found is None:
        _lacks("PostgreSQL's server")
    server = PostgreSQL(found)
    try:
        server.create()
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> Iterator[str]:
    """`SHIM_DATABASE_URL` of an empty database on it."""
    with postgresql.database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """`SHIM_DATABASE_URL` of an empty store, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shim.db'}"
    url: str = request.getfixturevalue("postgresql_url")
    return url
