"""Store events: the sink of the trail, with a thread and a connection of its own.

The event loop only passes batches to the thread. A batch is one transaction: its rows, their chain and
their counts. While the database cannot be used, the trail keeps the events, up to its capacity, and counts
the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, select, update
from sqlalchemy.exc import IntegrityError

from shim.audit.events import Event, to_record
from shim.audit.events import Stream as EventStream
from shim.audit.events.storage import Checkpoint, TrailReplaced
from shim.audit.store.append import CONVERTED, Head, append, read_head
from shim.audit.store.chain import Keys
from shim.audit.store.retention import Limits, remove_counts, remove_oldest
from shim.audit.store.schema import META, STREAMS, TABLES, Record, Stream
from shim.audit.store.tables import build_database
from shim.health import Check, State
from shim.store.errors import StoreCorrupt, StoreError, StoreReplaced

T = TypeVar("T")

# Events of one transaction: it takes all that wait, so that a kill loses at most those of one transaction and
# those that came meanwhile. A flood of refused requests yields fewer of them in a minute (`coalesce.py`).
BATCH = 1024
CHECKPOINT_ROWS = 1000
CHECKPOINT_SECONDS = 3600.0
# Without a successful write for this time, the trail counts as unavailable.
UNAVAILABLE_SECONDS = 10.0
# Time that a write waits which the keeper of the trail makes.
_CHECK_WRITABLE_SECONDS = 5.0
_RETENTION_PAUSE = 0.05
# Time for the last write when the store is closed.
_CLOSE_SECONDS = 2.0
# Ids to remember, so that an event that was stored already is not stored again.
_MAX_REMEMBERED_IDS = 4096


class TrailStore:
    """The stored trail at `url` for one process. `keys` make the hashes. `log` writes an event to the log
    only. `replaces`: a file that is corrupt or missing is replaced by a new trail.

    Only `open` and `store` raise `StoreError`, and `write` as a sink does.
    """

    name = "audit_database"
    batch = BATCH

    def __init__(
        self,
        url: str,
        keys: Keys,
        *,
        log: Callable[[Event], None] = lambda _: None,
        replaces: bool = False,
    ) -> None:
        self._database = build_database(url)
        self._keys = keys
        self._log = log
        self._replaces = replaces
        self._opened = self._closed = False
        self._database_id = ""
        self._replaced: TrailReplaced | None = None
        # Events that were stored, or perhaps were: only the thread uses them.
        self._stored: dict[str, None] = {}
        self._uncertain = False
        self._checkpoints: dict[Stream, tuple[int, float]] = {}
        self._last_success = time.monotonic()
        self.fault: str | None = None
        self.replacement: str | None = None

    @property
    def display_url(self) -> str:
        """The URL without password and query."""
        return self._database.display_url

    @property
    def idle_for(self) -> float:
        """Seconds since the last successful write."""
        return time.monotonic() - self._last_success

    async def open(self) -> None:
        """Create the tables if necessary. Raises `StoreError`."""
        heads = await self._run(self._open_and_read_heads)
        for head in heads:
            self._log_checkpoint(head)

    async def write(self, events: Sequence[Event]) -> None:
        """Store these events, except those that belong into the log only. Raises `StoreError`."""
        chosen = [event for event in events if event.stored]
        if not chosen:
            return
        self._log_due_checkpoints(await self._run(lambda: self._append(chosen)))

    def _log_due_checkpoints(self, heads: Iterable[Head]) -> None:
        for head in heads:
            last = self._checkpoints.get(head.stream)
            if (
                last is None
                or head.index - last[0] >= CHECKPOINT_ROWS
                or time.monotonic() - last[1] >= CHECKPOINT_SECONDS
            ):
                self._log_checkpoint(head)

    async def store(self, event: Event, seconds: float) -> None:
        """Store this event before others that wait, and return once it is on disk. Raises `StoreError`, at
        the latest after `seconds`. If the trail passes it later too, it is not stored twice."""
        self._log_due_checkpoints(await self._within(seconds, lambda: self._append([event])) or ())

    async def check_writable(self, seconds: float = _CHECK_WRITABLE_SECONDS) -> None:
        """Write an unchanged value. Raises `StoreError`, at the latest after `seconds`."""
        same = update(META).where(META.c.name == "version").values(value=META.c.value)
        await self._within(
            seconds, lambda: self._write(lambda connection: connection.execute(same))
        )

    async def apply_retention(self, limits: Mapping[Stream, Limits], reason: str = "") -> int:
        """Remove the rows beyond the limits in small transactions, and return their number. `reason` is that
        of the events, by default the limit that was exceeded. Raises `StoreError`."""
        removed = 0
        for stream, limit in limits.items():
            while True:
                count = await self._run(lambda s=stream, m=limit: self._remove_oldest(s, m, reason))  # type: ignore[misc]
                removed += count
                if not count:
                    break
                await asyncio.sleep(_RETENTION_PAUSE)
        return removed

    async def remove_counts(self, hours_since: int, values_since: int) -> None:
        """Remove the hourly counts before a time (µs), and the hourly values before another one. Raises
        `StoreError`."""

        def work(connection: Connection) -> None:
            remove_counts(connection, hours_since, values_since)

        await self._run(lambda: self._write(work))

    def check(self, *, blocked: bool = False) -> Check:
        """Return the state for `/readyz`. `blocked`: no identity is accepted meanwhile."""
        if self.fault is not None or blocked:
            fault = self.fault or f"{self.display_url}: the database does not respond"
            return unusable_check(fault, blocked=blocked)
        if self.replacement is not None:
            return Check(
                "audit",
                State.WARNING,
                self.replacement,
                "Find out why. If you need the earlier events, keep the old file. A restart of the shim "
                "clears this warning.",
            )
        return Check("audit", State.OK, self.display_url)

    async def close(self) -> None:
        """Log the last rows, and close the database. May be called twice."""
        if self._closed:
            return
        self._closed = True
        with suppress(StoreError, TimeoutError):
            if self._opened and self.fault is None:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    heads = await self._run(self._read_heads)
                for head in heads:
                    if self._checkpoints.get(head.stream, (0, 0.0))[0] != head.index:
                        self._log_checkpoint(head)
        # What failed was waited for already.
        seconds = _CLOSE_SECONDS if self.fault is None else 0.0
        await asyncio.to_thread(self._database.close, seconds)

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            done = await self._database.run_async(work)
        except StoreError as error:
            self._failed(error)
            raise
        finally:
            replaced, self._replaced = self._replaced, None
            if replaced is not None:
                self.replacement = replaced.detail
                self._log(replaced)
        self.fault = None
        self._last_success = time.monotonic()
        return done

    async def _within(self, seconds: float, work: Callable[[], T]) -> T | None:
        """Run `work` in the thread, and return its result. Raises `StoreError` after `seconds`; then `work`
        is not begun any more."""
        abandoned = False

        def work_unless_abandoned() -> T | None:
            return None if abandoned else work()

        try:
            async with asyncio.timeout(seconds):
                return await self._run(work_unless_abandoned)
        except TimeoutError:
            error = StoreError(f"{self.display_url}: no response for {seconds:.0f} s")
            self._failed(error)
            raise error from None
        finally:
            abandoned = True

    def _failed(self, error: StoreError) -> None:
        self.fault = str(error)

    def _log_checkpoint(self, head: Head) -> None:
        self._checkpoints[head.stream] = (head.index, time.monotonic())
        self._log(
            Checkpoint(
                time=time.time(),
                database=self._database_id,
                checked_stream=EventStream(head.stream),
                last_index=head.index,
                last_hash=head.hash.hex(),
                key_id=head.key_id or None,
            )
        )

    # in the thread

    def _open_and_read_heads(self) -> list[Head]:
        self._ensure_open()
        return self._read_heads()

    def _read_heads(self) -> list[Head]:
        def read(connection: Connection) -> list[Head]:
            found = (read_head(connection, stream) for stream in STREAMS)
            return [head for head in found if head is not None]

        return self._database.read(read)

    def _append(self, events: Iterable[Event]) -> list[Head]:
        """Store the events that are not stored yet, and return the new heads."""
        records: dict[Stream, list[Record]] = {}
        for number, event in enumerate(events, 1):
            if event.id not in self._stored:
                records.setdefault(event.stream.value, []).append(to_record(event))
            if number % CONVERTED == 0:
                time.sleep(0)

        def work(connection: Connection) -> list[Head]:
            if self._uncertain:
                _remove_stored(connection, records)
            return [
                append(connection, stream, chosen, self._keys)
                for stream, chosen in records.items()
                if chosen
            ]

        if not records:
            return []
        heads = self._write(work)
        for event in events:
            self._stored[event.id] = None
        while len(self._stored) > _MAX_REMEMBERED_IDS:
            del self._stored[next(iter(self._stored))]
        return heads

    def _remove_oldest(self, stream: Stream, limits: Limits, reason: str) -> int:
        return self._write(
            lambda connection: remove_oldest(connection, stream, limits, self._keys, reason)
        )

    def _write(self, work: Callable[[Connection], T]) -> T:
        self._ensure_open()
        try:
            done = self._write_once(work)
        except StoreReplaced as error:
            if not self._replaces:
                raise
            self._replace(f"the file was deleted or replaced while the shim ran ({error})")
            done = self._write_once(work)
        except StoreCorrupt as error:
            if not self._replaces:
                raise
            self._rename_corrupt_file(error)
            done = self._write_once(work)
        return done

    def _write_once(self, work: Callable[[Connection], T]) -> T:
        try:
            done = self._database.write(work)
        except IntegrityError:
            raise StoreError(
                f"{self.display_url}: the next row exists already, so the database was altered: see what "
                "`navidrome-shim audit verify` finds, and move the database away"
            ) from None
        except StoreError:
            # After a lost connection it is not known whether the commit arrived.
            self._uncertain = True
            raise
        self._uncertain = False
        return done

    def _ensure_open(self) -> None:
        if self._opened:
            return
        try:
            self._open()
        except StoreCorrupt as error:
            if not self._replaces:
                raise
            self._rename_corrupt_file(error)

    def _open(self) -> None:
        self._database.open()
        query = select(META.c.value).where(META.c.name == "id")
        self._database_id = self._database.read(lambda c: str(c.execute(query).scalar()))
        self._opened = True

    def _rename_corrupt_file(self, error: StoreCorrupt) -> None:
        """Rename the corrupt file, and begin a new one."""
        file = self._database.file
        if file is None:
            raise error
        self._database.forget_file()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        new_path = _free_name(file.with_name(f"{file.stem}.corrupt-{stamp}{file.suffix}"))
        try:
            for ending in ("-wal", "-shm", ""):
                part = Path(f"{file}{ending}")
                if part.exists():
                    part.rename(f"{new_path}{ending}")
        except OSError as fault:
            raise StoreError(
                f"{error}; and the file can't be renamed: {fault.strerror or fault}"
            ) from None
        self._replace(f"the audit database was corrupt ({error}) and is now {new_path}")

    def _replace(self, detail: str) -> None:
        """Open the file that is there now, or create it, and record why."""
        self._opened = False
        self._database.forget_file()
        self._open()
        self._stored.clear()
        self._checkpoints.clear()
        replaced = TrailReplaced(time=time.time(), detail=f"{detail}; a new one was begun")
        self._write_once(
            lambda connection: append(connection, "changes", [to_record(replaced)], self._keys)
        )
        self._replaced = replaced


def unusable_check(fault: str, *, blocked: bool) -> Check:
    """Return the check of a database that cannot be used. `blocked`: no identity is accepted meanwhile."""
    effect = "no identity is accepted" if blocked else "events are only in the log"
    return Check(
        "audit",
        State.FAILING if blocked else State.WARNING,
        f"{fault}: {effect}",
        "Check that the database responds and can be written, and that the disk is not full; or set "
        "SHIM_AUDIT_DATABASE_URL to another one.",
    )


def _remove_stored(connection: Connection, records: Mapping[Stream, list[Record]]) -> None:
    """Remove those records that an earlier attempt has stored."""
    for stream, chosen in records.items():
        table = TABLES[stream]
        ids = [record["id"] for record in chosen]
        found = connection.execute(select(table.c.id).where(table.c.id.in_(ids)))
        known = {row[0] for row in found}
        chosen[:] = [record for record in chosen if record["id"] not in known]


def _free_name(file: Path) -> Path:
    number, free = 1, file
    while free.exists():
        number += 1
        free = file.with_name(f"{file.stem}-{number}{file.suffix}")
    return free
