"""Programs that the tests start: on a free port, with their own environment, until the test ends.

Each is ended by its process id.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_START_SECONDS = 30.0
_STOP_SECONDS = 15.0
_LOG_SHOWN = 3000


class NotStarted(Exception):
    """A program that ended, or did not listen in time; the message has its log."""


def beside_python(name: str) -> str:
    """The path of a program, searched beside the interpreter first, where its package installs it."""
    places = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    found = shutil.which(name, path=places)
    if found is None:
        raise NotStarted(f"{name} is not installed: `make test` installs it")
    return found


@contextmanager
def running(
    command: Sequence[str], port: int, folder: Path, env: Mapping[str, str]
) -> Iterator[None]:
    """Run a program in a folder until the block ends; the block begins once its port is open.

    env: its environment beside PATH and HOME, which is the folder.
    Raises `NotStarted`.
    """
    log = folder / f"{Path(command[0]).name}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _await_port(process, port, log)
        yield
    finally:
        _end(process)


def _await_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise NotStarted(f"{log.stem} ended with {process.returncode}: {_log_of(log)}")
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise NotStarted(f"{log.stem} does not listen on port {port}: {_log_of(log)}")


def _log_of(log: Path) -> str:
    return log.read_text(errors="replace")[-_LOG_SHOWN:] or "it logged nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
