"""The demo's shim: `navidrome-shim serve` as a process, and the events of its log.

It is started with the settings of the demo and nothing else: no variable of the user's environment
and no `.env` reaches it. Its decisions are read from its metrics and log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families

import shim
from shim.trust.reasons import PathClass, Reason, Verdict

LogEntry: TypeAlias = Mapping[str, object]
LogQueue: TypeAlias = "asyncio.Queue[LogEntry | None]"
Result = TypeVar("Result")
_Outcome: TypeAlias = tuple[Verdict, Reason, PathClass]

_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 15.0
_LOG_SECONDS: Final = 5.0
_LINE_BYTES: Final = 1024 * 1024
_OUTPUT_LINES: Final = 20


class NotStarted(Exception):
    """The shim did not start; the message has its output."""


class DecisionNotFound(Exception):
    """The shim's decision on a request is not known; the message has the reason."""


@dataclass(frozen=True, slots=True)
class ShimDecision:
    """The shim's decision on a request.

    removed: the removed headers, where its log has them (`stripped` and `rejected`).
    notes: further details of its log.
    account_changes: its changes of the user's account in Navidrome, in words.
    """

    verdict: Verdict
    reason: Reason
    path_class: PathClass
    removed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    account_changes: tuple[str, ...] = ()


class Sidecar:
    """A running shim. `url` and `control_url` have no slash at their end."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.url = self.control_url = ""
        self._process = process
        self._listeners: list[LogQueue] = []
        self._output: list[str] = []

    async def read_log(self) -> None:
        """Pass every line of the log to the listeners, until the process ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            text = line.decode("utf-8", "replace").rstrip()
            try:
                entry = json.loads(text)
            except ValueError:
                entry = None
            if isinstance(entry, dict):
                self._publish(entry)
            elif len(self._output) < _OUTPUT_LINES:
                self._output.append(text)  # an error of the settings, or of Python itself
        self._publish(None)

    async def begin(self, entries: LogQueue) -> None:
        """Wait until it serves. Raises `NotStarted`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                while (entry := await entries.get()) is not None:
                    if entry.get("kind") == "started":
                        self.url = f"http://{entry['listen']}"
                        self.control_url = f"http://{entry['control_listen']}"
                        return
        raise NotStarted("\n".join(("the shim did not start", *self._output)))

    @contextmanager
    def log_entries(self) -> Iterator[LogQueue]:
        """The entries of its log from now on; None once it has ended."""
        queue: LogQueue = asyncio.Queue()
        self._listeners.append(queue)
        try:
            yield queue
        finally:
            self._listeners.remove(queue)

    async def send_and_follow(self, pending: Awaitable[Result]) -> tuple[Result, ShimDecision]:
        """Run one request, and return its result with the shim's decision.

        Raises `DecisionNotFound` if it did not decide exactly one request meanwhile.
        """
        with self.log_entries() as entries:
            before = await self._counts()
            response = await pending
            after = await self._counts()
            moved = [one for one, count in after.items() if count != before.get(one, 0)]
            if len(moved) != 1 or after[moved[0]] - before.get(moved[0], 0) != 1:
                found = ", ".join(" ".join(one) for one in moved) or "no request"
                raise DecisionNotFound(f"the shim counted {found}, not one request")
            entries_seen = await _entries_of_request(entries)
        decision_entry = next(
            (one for one in entries_seen if one.get("kind") == "request_decision"), {}
        )
        removed, notes = (_texts(decision_entry.get(name)) for name in ("removed_headers", "notes"))
        account_changes = tuple(change for change in map(_account_change, entries_seen) if change)
        return response, ShimDecision(
            *moved[0], removed=removed, notes=notes, account_changes=account_changes
        )

    async def _counts(self) -> dict[_Outcome, float]:
        async with httpx.AsyncClient(trust_env=False) as client:
            text = (await client.get(f"{self.control_url}/metrics")).raise_for_status().text
        return {
            (
                Verdict(sample.labels["verdict"]),
                Reason[sample.labels["reason"].upper()],
                PathClass(sample.labels["path_class"]),
            ): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "shim_requests_total"
        }

    def _publish(self, entry: LogEntry | None) -> None:
        for queue in self._listeners:
            queue.put_nowait(entry)


@asynccontextmanager
async def sidecar(folder: Path, settings: Mapping[str, str]) -> AsyncIterator[Sidecar]:
    """Run the shim in a folder until the block ends. Raises `NotStarted`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "shim", "serve"),
        cwd=folder,
        env=environment(folder, settings),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=_LINE_BYTES,
        start_new_session=True,  # a Ctrl-C is for the demo, which then ends it
    )
    running = Sidecar(process)
    with running.log_entries() as entries:
        reading = asyncio.create_task(running.read_log())
        try:
            await running.begin(entries)
        except BaseException:
            await _end(process, reading)
            raise
    try:
        yield running
    finally:
        await _end(process, reading)


def environment(folder: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of the shim's process."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "PYTHONPATH": str(Path(shim.__file__).parents[1]),  # also without an installation
        "PYTHONUTF8": "1",
        **settings,
    }


async def _end(process: asyncio.subprocess.Process, reading: asyncio.Task[None]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    await reading


async def _entries_of_request(entries: LogQueue) -> list[LogEntry]:
    """The log up to the events of the request that was just completed."""
    entries_seen: list[LogEntry] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LOG_SECONDS):
            while (entry := await entries.get()) is not None:
                if entry.get("kind") == "access":
                    break  # the last event of a request
                entries_seen.append(entry)
    return entries_seen


def _account_change(entry: LogEntry) -> str:
    """The description of an event about a request's account; empty for other events."""
    if entry.get("trigger") != "request":
        return ""
    account = entry.get("account")
    match entry.get("kind"):
        case "account_created":
            return f"created the account {account}"
        case "account_linked":
            return f"linked the existing account {account}"
        case "account_locked":
            return f"gave {account} a random password"
        case "account_changed":
            return f"changed {'; '.join(_texts(entry.get('changes')))}"
        case _:
            return ""


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()
