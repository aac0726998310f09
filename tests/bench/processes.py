"""Processes that the benchmark starts: their cores, their cost, and their end.

Each is ended by its own id.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class MissingBinary(Exception):
    """A program that is not on this machine, and the package that brings it."""


class StartFailed(Exception):
    """A process that ended, or never accepted a connection on its port."""


@dataclass(frozen=True, slots=True)
class Cores:
    """CPU assignment: the proxy has a core of its own, the load and the origin share the others."""

    proxy: frozenset[int]
    rest: frozenset[int]


def split_cores(pin: bool = True) -> Cores:
    """The last core for the proxy, the others for everything else; one core, or no pinning: all for both."""
    cores = sorted(os.sched_getaffinity(0))
    if not pin or len(cores) < 2:
        return Cores(frozenset(cores), frozenset(cores))
    return Cores(frozenset(cores[-1:]), frozenset(cores[:-1]))


def find_binary(name: str, package: str) -> str:
    """The path of a program, looked for beside the interpreter too. Raises MissingBinary."""
    beside = str(Path(sys.executable).parent)
    path = shutil.which(
        name, path=os.pathsep.join((beside, os.environ.get("PATH", ""), "/usr/sbin"))
    )
    if path is None:
        raise MissingBinary(f"{name} is not installed: it comes with {package}")
    return path


class Running:
    """A started process with all its descendants."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log

    def cpu_seconds(self) -> float:
        """User and system time so far, of the whole tree (proc(5), fields 14 and 15 of stat)."""
        return sum(int(stat[11]) + int(stat[12]) for stat in self._tree().values()) / _TICKS

    def rss_bytes(self) -> int:
        """Resident memory of the whole tree; a page that two of its processes share counts twice."""
        return sum(_resident(pid) for pid in self._tree())

    def wait_for_port(self, port: int, seconds: float = 30.0) -> None:
        """Returns once something accepts on the port. Raises StartFailed with the end of the log."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise StartFailed(
                    f"{self.name} ended with {self._process.returncode}: {self.log_tail()}"
                )
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise StartFailed(
            f"{self.name} does not listen on port {port} after {seconds:g} s: {self.log_tail()}"
        )

    def log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-1500:].strip() or "its log is empty"

    def stop(self) -> None:
        """Ask the process to end, and kill it after five seconds."""
        if self._process.poll() is not None:
            return
        descendants = [pid for pid in self._tree() if pid != self._process.pid]
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            for pid in descendants:
                _kill(pid)
            self._process.kill()
            self._process.wait()

    def _tree(self) -> dict[int, list[str]]:
        """The stat fields, from the third on, of the process and everything below it."""
        stats = dict(_all_stats())
        members: dict[int, list[str]] = {}
        wanted = [self._process.pid]
        while wanted:
            pid = wanted.pop()
            if pid in stats:
                members[pid] = stats[pid]
                wanted += [child for child, stat in stats.items() if int(stat[1]) == pid]
        return members


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    *,
    folder: Path,
    env: Mapping[str, str] | None = None,
    cores: frozenset[int] | None = None,
) -> Iterator[Running]:
    """Starts a program in `folder`, on the given cores, with hardly more than `env`, and ends it."""
    log = folder / f"{name}.log"
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": str(folder),
        **(env or {}),
    }
    before = os.sched_getaffinity(0)
    with log.open("wb") as output:
        try:
            if cores:
                os.sched_setaffinity(
                    0, cores
                )  # inherited by the child, so no thread of it starts elsewhere
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the benchmark alone, which then stops the rest
            )
        finally:
            os.sched_setaffinity(0, before)
    started = Running(name, process, log)
    try:
        yield started
    finally:
        started.stop()


def _all_stats() -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text(errors="replace")
            except OSError:  # it ended while we looked
                continue
            yield int(entry.name), text.rpartition(")")[2].split()


def _resident(pid: int) -> int:
    try:
        return int(Path("/proc", str(pid), "statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
