"""The systemd units: verified and rated by systemd itself, and settings that the shim accepts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.servers import DEPLOY, ROOT

UNITS = ("navidrome-shim", "navidrome")
FOLDER = DEPLOY / "systemd"
MAX_EXPOSURE = 1.5

systemd = pytest.mark.binary("systemd-analyze")


def assignments(unit: str) -> list[tuple[str, str]]:
    """The lines of a unit: name and value."""
    text = (FOLDER / f"{unit}.service").read_text()
    return re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)


def environment(unit: str) -> dict[str, str]:
    lines = [value for name, value in assignments(unit) if name == "Environment"]
    return dict(line.split("=", 1) for line in lines)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments, "--no-pager"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@systemd
def test_systemd_reports_no_fault_in_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        # The programs are not installed here.
        text = re.sub(
            r"(?m)^ExecStart=/\S+", "ExecStart=/bin/true", (FOLDER / f"{unit}.service").read_text()
        )
        (tmp_path / f"{unit}.service").write_text(text)
    done = analyze("verify", "--man=no", *(str(tmp_path / f"{unit}.service") for unit in UNITS))
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "navidrome" in line]
    assert ours == []
    assert done.returncode == 0, done.stderr


@systemd
@pytest.mark.parametrize("unit", UNITS)
def test_exposure_of_a_unit_is_low(unit: str) -> None:
    done = analyze("security", "--offline=true", str(FOLDER / f"{unit}.service"))
    found = re.search(rf"exposure level for {unit}\.service: (\d+\.\d+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= MAX_EXPOSURE


@pytest.mark.binary("systemd-sysusers")
def test_sysusers_creates_the_user_and_the_group_of_the_socket(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    command = ["systemd-sysusers", f"--root={tmp_path}", str(FOLDER / "navidrome.sysusers")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search("^navidrome:", (tmp_path / "etc/passwd").read_text(), re.MULTILINE)
    assert re.search("^navidrome-socket:", (tmp_path / "etc/group").read_text(), re.MULTILINE)


def test_navidromes_socket_is_open_to_the_shim_only() -> None:
    navidrome, shim = dict(assignments("navidrome")), dict(assignments("navidrome-shim"))
    socket = environment("navidrome")["ND_ADDRESS"]
    assert environment("navidrome-shim")["SHIM_UPSTREAM"] == socket
    assert socket.startswith(f"unix:/run/{navidrome['RuntimeDirectory']}/")
    assert environment("navidrome")["ND_UNIXSOCKETPERM"] == "0660"
    assert environment("navidrome")["ND_EXTAUTH_TRUSTEDSOURCES"] == "@"
    assert navidrome["RuntimeDirectoryMode"] == "0750"
    assert navidrome["Group"] == shim["SupplementaryGroups"] == "navidrome-socket"


def test_the_secret_is_a_credential_and_not_in_the_environment() -> None:
    lines = assignments("navidrome-shim")
    [credential] = [value for name, value in lines if name == "LoadCredential"]
    name = credential.partition(":")[0]
    secrets = {n: v for n, v in environment("navidrome-shim").items() if "SECRET" in n}
    assert secrets == {"SHIM_PROXY_SECRET_FILE": f"%d/{name}"}


def test_the_units_settings_are_valid(tmp_path: Path) -> None:
    (tmp_path / "proxy-secret").write_text("a-secret-of-the-test-0123456789abcdef\n")
    env = {n: v.replace("%d", str(tmp_path)) for n, v in environment("navidrome-shim").items()}
    shim = [sys.executable, "-m", "shim", "--env-file", str(FOLDER / "shim.env")]
    request = ["--peer", "127.0.0.1", "--path", "/app/", "-H", "X-authentik-username: ada"]
    done = subprocess.run(
        [*shim, "explain", "--with-secret", "--json", *request],
        env={**env, "SHIM_PROVISIONING": "false", "PYTHONPATH": str(ROOT), "PATH": os.defpath},
        cwd=tmp_path,
        timeout=60,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"verdict": "authenticated"' in done.stdout
