"""The location of settings and the database for commands, and the errors without them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shim.store.database import Database
from shim.store.errors import StoreError

ROOT = Path(__file__).parents[2]


def command(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in this folder."""
    return subprocess.run(
        [sys.executable, "-m", "shim", *arguments],
        cwd=folder,
        env={"PATH": os.defpath, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        timeout=60,
        check=False,
        text=True,
    )


def test_a_settings_file_elsewhere_is_named_and_its_database_is_beside_it(tmp_path: Path) -> None:
    settings_folder, elsewhere = tmp_path / "kept", tmp_path / "elsewhere"
    settings_folder.mkdir()
    elsewhere.mkdir()
    (settings_folder / ".env").write_text(
        "SHIM_UPSTREAM=http://127.0.0.1:9\nSHIM_ALLOWED_GROUPS=music\n"
    )
    file = str(settings_folder / ".env")
    done = command(elsewhere, "--env-file", file, "check", "--json")
    output = json.loads(done.stdout)
    assert output["settings"]["SHIM_ALLOWED_GROUPS"] == "music"
    assert str(settings_folder / "shim.db") in output["checks"]["store"]["detail"]
    done = command(elsewhere, "--env-file", file, "database", "confirm-new")
    assert done.returncode == 0, done.stderr
    assert (settings_folder / "shim.db").exists()
    assert list(elsewhere.iterdir()) == []
    done = command(elsewhere, "--env-file", str(settings_folder / "none"), "check")
    assert done.returncode == 1 and "--env-file" in done.stderr


def test_a_command_in_the_wrong_folder_reports_it_and_creates_no_database(tmp_path: Path) -> None:
    done = command(tmp_path, "users", "list")
    assert done.returncode == 1
    assert "--env-file" in done.stderr and "does not exist" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_database_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        for name in ("new.db", "old.db"):
            file = tmp_path / name
            if name == "old.db":
                file.touch(0o644)
            database = Database(f"sqlite:///{file}")
            database.open()
            modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()}
            database.close()
            assert set(modes.values()) == {0o600}, modes
    finally:
        os.umask(before)


def test_a_folder_that_is_not_writable_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Database(f"sqlite:///{tmp_path}/none/shim.db")
    with pytest.raises(StoreError, match=r"there is no folder .*mount a volume"):
        missing.open()
    missing.close()
    # Root can write everywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    denied = Database(f"sqlite:///{tmp_path}/shim.db")
    with pytest.raises(StoreError, match=r"can't be written by user .*chown"):
        denied.open()
    denied.close()
    assert list(tmp_path.iterdir()) == []
