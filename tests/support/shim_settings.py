"""Operations on a running shim besides requests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import shim as package
from tests.support.shim_process import Shim

PATIENCE = 10.0


def checks(shim: Shim) -> dict[str, dict[str, str]]:
    """The status of each part by `/readyz`."""
    where = str(shim.wait_for_line(kind="started")["control_listen"])
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(f"http://{where}/readyz", timeout=PATIENCE) as response:
            text = response.read()
    except OSError as error:  # httpx raises no error for 503
        text = error.read()  # type: ignore[attr-defined]
    found: dict[str, dict[str, str]] = json.loads(text)["checks"]
    return found


def send_sighup(shim: Shim) -> None:
    """Make it reload its settings."""
    os.kill(shim.process.pid, signal.SIGHUP)


def command(
    folder: Path,
    *arguments: str,
    settings: Mapping[str, str],
    program: Sequence[str] = (sys.executable, "-m", "shim"),
) -> subprocess.CompletedProcess[str]:
    """Run a command of the shim; `settings` without their prefix."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": str(Path(package.__file__).parents[1]),
        **{f"SHIM_{name}": value for name, value in settings.items()},
    }
    return subprocess.run(
        [*program, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
        text=True,
    )


def eventually(read: Any, expected: object) -> None:
    """Repeat the request until the response is the expected one."""
    end = time.monotonic() + PATIENCE
    while (found := read()) != expected:
        assert time.monotonic() < end, (found, expected)
        time.sleep(0.02)
