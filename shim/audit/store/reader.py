"""Read the trail: pages, single events, new events, exports, counts and reports.

Rows are read in the order in which they were stored, and the two streams are merged by time. An event that
stands for many is stored at the end of its minute, so times may differ from this order by about a minute.

`search.py` finds the events of a page, `totals.py` counts events, `results.py` has what is returned.
"""

from __future__ import annotations

import asyncio
import heapq
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    create_engine,
    event,
    select,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from shim.audit.store.chain import Keys
from shim.audit.store.filters import Filters
from shim.audit.store.results import (
    MAX_PAGE,
    REPORT_KINDS,
    REPORT_ROWS,
    CursorError,
    Page,
    Position,
    QueryTooSlow,
    Report,
    StoredEvent,
    Summary,
    merge_key,
    stored_event,
)
from shim.audit.store.schema import (
    HOUR,
    HOURS,
    META,
    STREAM_STATES,
    STREAMS,
    TABLES,
    VERSION,
    Stream,
)
from shim.audit.store.search import MAX_SEARCHED, Scan, stream_bounds
from shim.audit.store.tables import SCHEMA
from shim.audit.store.totals import cells_of_hours, cells_of_rows, count_by, most_frequent
from shim.audit.store.verify import (
    WITHOUT_KEY,
    ChainBounds,
    ChainRow,
    Verification,
    read_checkpoints,
    verify_stream,
)
from shim.store.engine import IN_MEMORY, build_engine
from shim.store.errors import StoreError

T = TypeVar("T")
QUERY_SECONDS = 2.0
# Time after which a page returns what it has.
_PAGE_SECONDS = 0.08
# The part of it for the first stream.
_FIRST_SHARE = 0.75
_CURSOR = re.compile(r"([da])\.(\d{1,18})\.(\d{1,18})\.(\d{1,9})")


class TrailReader:
    """Reads the trail at `url` (SQLAlchemy's format) with one connection that cannot write.

    The methods block; use `in_thread` on an event loop. They raise `StoreError` if the trail cannot be read,
    and `QueryTooSlow`.
    """

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trail-reader")
        self._deadline = float("inf")
        self._engine = self._read_engine()
        # Whether the tables were there at the last query.
        self._has_tables = False

    @property
    def display_url(self) -> str:
        """The URL without password and query."""
        return self._url.set(query={}).render_as_string(hide_password=True)

    def close(self) -> None:
        """Close the connection."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._engine.dispose()

    async def in_thread(self, work: Callable[[TrailReader], T]) -> T:
        """Run `work` with this reader in its thread, one after the other, and return its result."""
        return await asyncio.wrap_future(self._thread.submit(work, self))

    def page(
        self,
        filters: Filters,
        *,
        cursor: str | None = None,
        limit: int = 100,
        oldest_first: bool = False,
    ) -> Page:
        """Return at most `limit` events that match, newest first. Raises `CursorError`."""
        return self._page(filters, cursor, limit, oldest_first, _PAGE_SECONDS)

    def get(self, event_id: str) -> StoredEvent | None:
        """Return the event with this id, None if there is none."""
        with self._connection() as connection:
            for stream, table in TABLES.items():
                row = connection.execute(select(table).where(table.c.id == event_id)).first()
                if row is not None:
                    return stored_event(stream, row)
        return None

    def end(self) -> Position:
        """Return the position after the last event."""
        with self._connection() as connection:
            return Position(*(stream_bounds(connection, stream)[1] for stream in STREAMS))

    def after(
        self, position: Position, limit: int = 100, filters: Filters | None = None
    ) -> tuple[tuple[StoredEvent, ...], Position]:
        """Return the events that were stored after a position and match, oldest first, and the position to
        continue at. At most `limit` rows of each stream are read."""
        chosen = filters or Filters()
        starts = {"requests": position.requests, "changes": position.changes}
        streams: list[list[StoredEvent]] = []
        with self._connection() as connection:
            for stream, table in TABLES.items():
                query = select(table).where(table.c.index > starts[stream])
                rows = connection.execute(query.order_by(table.c.index).limit(limit))
                streams.append([stored_event(stream, row) for row in rows])
        found = list(heapq.merge(*streams, key=merge_key))
        for each in found:
            position = position.after(each)
        return tuple(e for e in found if chosen.matches(e.stream, e.record)), position

    def iterate(self, filters: Filters) -> Iterator[StoredEvent]:
        """Return every event that matches, oldest first."""
        cursor: str | None = None
        while True:
            page = self._page(filters, cursor, MAX_PAGE, True, float("inf"))
            yield from page.events
            cursor = page.next_cursor
            if cursor is None:
                return

    def summary(self, since: int, until: int, bucket: int = HOUR) -> Summary:
        """Return the number of events from `since` to `until` (µs) in buckets of `bucket` µs: full hours from
        the hourly counts, smaller ones from the rows."""
        bucket = bucket if bucket < HOUR else bucket // HOUR * HOUR
        since = since // bucket * bucket
        until = -(-until // bucket) * bucket
        with self._connection() as connection:
            if bucket >= HOUR:
                cells = cells_of_hours(connection, since, until, bucket)
            else:
                cells = cells_of_rows(connection, since, until, bucket)
        return Summary(since, until, bucket, cells)

    def report(self, since: int, until: int) -> Report:
        """Return the report of a period (µs). Counts are of full hours."""
        truncated: list[str] = []
        with self._connection() as connection:
            lists: dict[str, tuple[StoredEvent, ...]] = {}
            for name, kinds in REPORT_KINDS.items():
                chosen = Filters(since=since, until=until, streams=("changes",), kinds=kinds)
                scan = Scan(connection, "changes", chosen, oldest_first=False)
                found = [scan.pop() for _ in range(REPORT_ROWS) if scan.peek() is not None]
                lists[name] = tuple(found)
                if len(found) == REPORT_ROWS and scan.peek() is not None:
                    truncated.append(name)
            first, last = since // HOUR, (until - 1) // HOUR
            verdicts = count_by(connection, first, last, HOURS.c.verdict, HOURS.c.verdict != "")
            # An account that is denied is the reason of a rejected request, and would count twice.
            refused = HOURS.c.verdict.in_(("stripped", "rejected"))
            refusals = count_by(connection, first, last, HOURS.c.reason, refused)
            origins = most_frequent(connection, first, last, "client")
            people = most_frequent(connection, first, last, "user")
        return Report(
            since=since,
            until=until,
            verdicts=verdicts,
            refusals=refusals,
            origins=origins,
            people=people,
            truncated=tuple(truncated),
            **lists,
        )

    def verify(self, keys: Keys, log_lines: Iterable[str] | None = None) -> Verification:
        """Verify both chains in one snapshot. `log_lines` are lines of the shim's JSON log, whose checkpoints
        are compared."""
        checkpoints = None if log_lines is None else tuple(read_checkpoints(log_lines))
        with self._connection() as connection:
            database = connection.execute(select(META.c.value).where(META.c.name == "id")).scalar()
            own = [each for each in checkpoints or () if each.database == database]
            results = tuple(
                verify_stream(
                    stream,
                    _chain_rows(connection, stream),
                    _chain_bounds(connection, stream),
                    keys,
                    [each for each in own if each.stream == stream],
                )
                for stream in STREAMS
            )
        notes = []
        if any(result.without_key for result in results):
            notes.append(WITHOUT_KEY)
        if checkpoints is not None and not own:
            notes.append(
                f"The file has no checkpoint of this database ({database}): the trail was replaced, or the "
                "log is of another shim."
            )
        return Verification(
            results, tuple(notes), no_checkpoints=checkpoints is not None and not own
        )

    def _page(
        self, filters: Filters, cursor: str | None, limit: int, oldest_first: bool, seconds: float
    ) -> Page:
        limit = max(1, min(limit, MAX_PAGE))
        positions, searched = _parse_cursor(cursor, oldest_first)
        begin, streams = time.monotonic(), [each for each in STREAMS if each in filters.streams]
        events: list[StoredEvent] = []
        with self._connection() as connection:
            scans = [
                Scan(
                    connection,
                    stream,
                    filters,
                    oldest_first=oldest_first,
                    after=positions[stream],
                    searched=searched,
                    # The first stream cannot take all of the time.
                    ends=begin + seconds * (1 if stream == streams[-1] else _FIRST_SHARE),
                    # One more shows whether another page follows.
                    limit=limit + 1,
                )
                for stream in streams
            ]
            choose = min if oldest_first else max
            while len(events) < limit:
                heads = [(scan, head) for scan in scans if (head := scan.peek()) is not None]
                if not heads:
                    break
                scan, head = choose(heads, key=lambda each: merge_key(each[1]))
                # A stream whose time is over may have earlier events behind the place that it reached.
                stopped_at = [found for other in scans if (found := other.stopped_at()) is not None]
                if any(choose(merge_key(head), each) == each for each in stopped_at):
                    break
                events.append(scan.pop())
            remaining = [scan for scan in scans if scan.peek() is not None or scan.paused]
        searched = max((scan.searched for scan in scans), default=0)
        paused = [scan for scan in scans if scan.paused]
        has_more = bool(remaining)
        for scan in scans:
            positions[scan.stream] = scan.position
        text_limit = filters.text is not None and any(scan.text_ended for scan in scans)
        note = None
        if text_limit:
            end = "oldest" if oldest_first else "newest"
            note = f"The text was searched in the {end} {MAX_SEARCHED:,} events that match the other filters."
        elif paused:
            direction = "forward" if oldest_first else "back"
            note = f"The search is not complete: the next page searches further {direction}."
        return Page(
            tuple(events), _cursor(positions, searched, oldest_first) if has_more else None, note
        )

    def _read_engine(self) -> Engine:
        if self._url.get_backend_name() != "sqlite":
            try:
                engine = build_engine(self._url, schema=SCHEMA)
            except ImportError as error:
                raise StoreError(
                    f"{self.display_url}: psycopg, which PostgreSQL needs, is not installed ({error})"
                ) from None
            event.listen(engine, "begin", _limit_postgresql)
            return engine
        name = str(Path(str(self._url.database)).absolute())
        engine = create_engine(
            self._url.set(database=f"file:{name}", query={"mode": "rw", "uri": "true"}),
            connect_args={"check_same_thread": False, "timeout": QUERY_SECONDS},
            poolclass=NullPool,
        )
        event.listen(engine, "connect", self._prepare_sqlite)
        event.listen(engine, "begin", lambda each: each.exec_driver_sql("BEGIN"))
        event.listen(engine, "before_cursor_execute", self._start_query)
        return engine

    def _start_query(self, *_arguments: object) -> None:
        self._deadline = time.monotonic() + QUERY_SECONDS

    def _prepare_sqlite(self, connection: Any, _record: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA query_only=ON")
        connection.execute("PRAGMA cache_size=-8000")
        connection.set_progress_handler(lambda: time.monotonic() > self._deadline, 50_000)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        file = self._url.database
        is_file = self._url.get_backend_name() == "sqlite" and file not in IN_MEMORY
        if is_file and not Path(str(file)).exists():
            raise StoreError(
                f"{self.display_url}: there is no trail yet; the shim creates it when it starts"
            )
        with self._lock:
            try:
                with self._engine.connect() as connection:
                    _check_version(connection, self.display_url, known=self._has_tables)
                    self._has_tables = True
                    yield connection
            except SQLAlchemyError as error:
                self._has_tables = False
                original = getattr(error, "orig", None) or error
                lines = str(original).splitlines() or [type(original).__name__]
                if isinstance(error, OperationalError) and _timed_out(original):
                    raise QueryTooSlow(
                        f"the query took longer than {QUERY_SECONDS:.0f} s: choose a shorter period, or one "
                        "more filter"
                    ) from None
                raise StoreError(f"{self.display_url}: {lines[0]}") from None


def _chain_bounds(connection: Connection, stream: Stream) -> ChainBounds | None:
    row = connection.execute(select(STREAM_STATES).where(STREAM_STATES.c.stream == stream)).first()
    if row is None:
        return None
    return ChainBounds(
        int(row.first_index),
        bytes(row.first_previous_hash),
        int(row.last_index),
        bytes(row.last_hash),
    )


def _chain_rows(connection: Connection, stream: Stream) -> Iterator[ChainRow]:
    table, last = TABLES[stream], -(2**62)
    while True:
        query = select(table).where(table.c.index > last).order_by(table.c.index).limit(MAX_PAGE)
        rows = connection.execute(query).mappings().all()
        for row in rows:
            columns = dict(row)
            for name in ("peer", "client"):
                columns[name] = None if columns[name] is None else bytes(columns[name])
            last = int(row["index"])
            yield ChainRow(
                last, row["chain"], row["key_id"], bytes(row["hash"]), row["data"], columns
            )
        if len(rows) < MAX_PAGE:
            return


def _check_version(connection: Connection, display_url: str, *, known: bool) -> None:
    """Raise `StoreError` unless the tables are there, in this version. `known`: they were there before."""
    if not known and not connection.dialect.has_table(connection, META.name):
        raise StoreError(
            f"{display_url}: there is no trail yet; the shim creates it when it starts"
        )
    found = connection.execute(select(META.c.value).where(META.c.name == "version")).scalar()
    if found != VERSION:
        raise StoreError(
            f"{display_url}: the tables have version {found}, this shim knows {VERSION}: use the shim that "
            "wrote them"
        )


def _limit_postgresql(connection: Connection) -> None:
    # The queries are made for the indexes. With wrong estimates, compiling a query or starting other
    # processes takes longer than the query.
    settings = {
        "statement_timeout": str(round(QUERY_SECONDS * 1000)),
        "jit": "off",
        "max_parallel_workers_per_gather": "0",
        # The driver prepares a statement that is used often; one plan for all values is slow for rare ones.
        "plan_cache_mode": "force_custom_plan",
    }
    statements = [f"SET LOCAL {name} = {value}" for name, value in settings.items()]
    connection.exec_driver_sql("; ".join(statements))


def _timed_out(error: object) -> bool:
    words = str(error)
    return "interrupted" in words or "statement timeout" in words


def _parse_cursor(cursor: str | None, oldest_first: bool) -> tuple[dict[Stream, int | None], int]:
    if cursor is None:
        return {"requests": None, "changes": None}, 0
    found = _CURSOR.fullmatch(cursor)
    if found is None or (found[1] == "a") is not oldest_first:
        raise CursorError("cursor: expected the cursor of the page before, for the same order")
    return {"requests": int(found[2]), "changes": int(found[3])}, int(found[4])


def _cursor(positions: dict[Stream, int | None], searched: int, oldest_first: bool) -> str:
    order = "a" if oldest_first else "d"
    requests, changes = (positions[stream] or 0 for stream in STREAMS)
    return f"{order}.{requests}.{changes}.{searched}"
