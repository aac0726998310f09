"""Where commands find their settings and the database, and what they say where they find none."""

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


def test_settings_elsewhere_are_named_and_their_database_stays_beside_them(tmp_path: Path) -> None:
    kept, elsewhere = tmp_path / "kept", tmp_path / "elsewhere"
    kept.mkdir()
    elsewhere.mkdir()
    (kept / ".env").write_text("SHIM_UPSTREAM=http://127.0.0.1:9\nSHIM_ALLOWED_GROUPS=music\n")
    file = str(kept / ".env")
    done = command(elsewhere, "--env-file", file, "check", "--json")
    said = json.loads(done.stdout)
    assert said["settings"]["SHIM_ALLOWED_GROUPS"] == "music"
    assert str(kept / "shim.db") in said["checks"]["store"]["detail"]
    done = command(elsewhere, "--env-file", file, "database", "confirm-new")
    assert done.returncode == 0, done.stderr
    assert (kept / "shim.db").exists()
    assert list(elsewhere.iterdir()) == []
    done = command(elsewhere, "--env-file", str(kept / "none"), "check")
    assert done.returncode == 1 and "--env-file" in done.stderr


def test_a_command_in_the_wrong_folder_says_so_and_makes_no_database(tmp_path: Path) -> None:
    done = command(tmp_path, "users", "list")
    assert done.returncode == 1
    assert "--env-file" in done.stderr and "does not exist" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_database_is_its_owners_alone(tmp_path: Path) -> None:
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


def test_a_place_that_cannot_be_written_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Database(f"sqlite:///{tmp_path}/none/shim.db")
    with pytest.raises(StoreError, match=r"there is no folder .*mount a volume"):
        missing.open()
    missing.close()
    # Root may write everywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    denied = Database(f"sqlite:///{tmp_path}/shim.db")
    with pytest.raises(StoreError, match=r"can't be written by user .*chown"):
        denied.open()
    denied.close()
    assert list(tmp_path.iterdir()) == []
