"""`navidrome-shim health` queries the shim of the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recorder import Recorder
from tests.support.shim_process import run_shim
from tests.support.shim_settings import command

TOKEN = "t0ken-t0ken-t0ken"


def test_it_reads_the_chosen_settings_file(upstream: Recorder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with run_shim(upstream.port, tmp_path, CONTROL_TOKEN=TOKEN) as shim:
        control = shim.wait_for_line(kind="started")["control_listen"]
        file = tmp_path / "shim.env"
        file.write_text(f"SHIM_CONTROL_LISTEN={control}\nSHIM_CONTROL_TOKEN={TOKEN}\n")
        chosen = ("--env-file", str(file), "health", "--ready")
        done = command(elsewhere, *chosen, settings={})
        assert (done.returncode, done.stderr) == (0, "")
        (elsewhere / ".env").write_text(file.read_text())
        for arguments in (("health",), ("health", "--ready")):
            done = command(elsewhere, *arguments, settings={})
            assert (done.returncode, done.stderr) == (0, "")
    done = command(elsewhere, *chosen, settings={})
    assert done.returncode == 1
    assert "no connection to the control plane" in done.stderr


@pytest.mark.parametrize("ready", [(), ("--ready",)])
def test_a_chosen_settings_file_that_is_missing_is_an_error(
    tmp_path: Path, ready: tuple[str, ...]
) -> None:
    (tmp_path / ".env").write_text("SHIM_CONTROL_LISTEN=127.0.0.1:1\n")
    missing = str(tmp_path / "missing.env")
    done = command(tmp_path, "--env-file", missing, "health", *ready, settings={})
    assert done.returncode == 1
    assert f"{missing} can't be read: No such file or directory" in done.stderr
