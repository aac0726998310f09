"""Read the trail: pages, single events, new events, exports, counts and reports.

Rows are read in the order in which they were stored, and the two streams are merged by time. An event that
stands for many is stored at the end of its minute, so times may differ from this order by about a minute.

Each page does bounded work. It follows the index of the rarest value that the filters name, in pieces, and
returns what it has when its time is over; the next page continues there.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    FromClause,
    Row,
    Select,
    Table,
    create_engine,
    event,
    false,
    func,
    literal,
    select,
    true,
    union_all,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from shim.audit.store.chain import Keys
from shim.audit.store.filters import Filters
from shim.audit.store.schema import (
    HOUR,
    HOURLY_VALUES,
    HOURS,
    META,
    STREAM_STATES,
    STREAMS,
    TABLES,
    VERSION,
    Record,
    Stream,
    iso_time,
    unescaped,
)
from shim.audit.store.tables import SCHEMA
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

MAX_PAGE = 1000
# Rows that a search for text looks at.
MAX_SEARCHED = 100_000
QUERY_SECONDS = 2.0
# Time after which a page returns what it has.
_PAGE_SECONDS = 0.08
# The part of it for the first stream.
_FIRST_SHARE = 0.75
# Time that a piece should take at most.
_PIECE_SECONDS = 0.02
_FIRST_PIECE = 500
# The most rows of a piece that are side by side, and of one whose rows are scattered: with a cold cache, each
# of these is a read from the disk.
_MAX_PIECE = 4_000
_MAX_SCATTERED_PIECE = 400
# Rows to count when two filters are compared.
_COUNT_LIMIT = 2000
# Addresses of a network that are looked up one by one.
_MAX_ADDRESSES = 40
# Rows of a network that are sorted for each piece. The larger number is tried if the smaller one took less
# than this time.
_SORT_LIMITS = (5_000, 20_000)
_SORT_SECONDS = 0.01
# Filters whose values are rarer than those of the others, mostly.
_NAMES = ("user", "account", "client", "request_id")
_REPORT_ROWS = 500
_CURSOR = re.compile(r"([da])\.(\d{1,18})\.(\d{1,18})\.(\d{1,9})")
_POSITION = re.compile(r"(\d{1,18})\.(\d{1,18})")


class QueryTooSlow(Exception):
    """A query took longer than `QUERY_SECONDS`. The message says what to do."""


class CursorError(ValueError):
    """A cursor or position that this reader did not make."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A stored event. `record` has all fields, `hash` is in hexadecimal, `key_id` is empty without a key."""

    stream: Stream
    index: int
    chain: int
    record: Record
    hash: str
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Some events. `next_cursor` continues after them, None at the end. `note` is a sentence for the user
    about the search, None without one."""

    events: tuple[StoredEvent, ...]
    next_cursor: str | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """A place in both streams: the indexes of the last events that were read. Its text is an event id for
    `Last-Event-ID`."""

    requests: int
    changes: int

    @classmethod
    def parse(cls, given: str) -> Self:
        """Return the position with this text. Raises `CursorError`."""
        found = _POSITION.fullmatch(given)
        if found is None:
            raise CursorError(f"expected a position such as 120.7, not {given[:40]!r}")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.requests}.{self.changes}"

    def after(self, stored: StoredEvent) -> Position:
        """Return the position after this event."""
        if stored.stream == "requests":
            return replace(self, requests=stored.index)
        return replace(self, changes=stored.index)


@dataclass(frozen=True, slots=True)
class Cell:
    """How many events of one kind, verdict and reason there were from `start` (µs) to the next bucket."""

    start: int
    stream: Stream
    kind: str
    verdict: str | None
    reason: str | None
    count: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Events counted in buckets of `bucket` µs from `since` to `until`, both in µs and at full buckets."""

    since: int
    until: int
    bucket: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """How often a value occurred, and when last (µs)."""

    value: str
    count: int
    reason: str | None = None
    last_time: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A period on one page. Lists of events have the newest first; `truncated` names those that are cut.

    `refusals`: stripped and rejected requests, by reason. `origins`: client addresses
    with refused requests. `people`: identities that were here.
    """

    since: int
    until: int
    verdicts: tuple[Count, ...]
    refusals: tuple[Count, ...]
    origins: tuple[Count, ...]
    people: tuple[Count, ...]
    new_accounts: tuple[StoredEvent, ...]
    changes: tuple[StoredEvent, ...]
    locks: tuple[StoredEvent, ...]
    admin_actions: tuple[StoredEvent, ...]
    truncated: tuple[str, ...] = ()


REPORT_KINDS = {
    "new_accounts": ("account_created", "account_linked", "admin_created"),
    "changes": (
        "account_changed",
        "account_renamed",
        "account_unlinked",
        "account_binding_removed",
    ),
    "locks": ("account_locked", "account_readmitted"),
    "admin_actions": ("admin_action",),
}


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
                    return _stored(stream, row)
        return None

    def end(self) -> Position:
        """Return the position after the last event."""
        with self._connection() as connection:
            return Position(*(_bounds(connection, stream)[1] for stream in STREAMS))

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
                streams.append([_stored(stream, row) for row in rows])
        found = list(heapq.merge(*streams, key=_merge_key))
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
                cells = _cells_of_hours(connection, since, until, bucket)
            else:
                cells = _cells_of_rows(connection, since, until, bucket)
        return Summary(since, until, bucket, cells)

    def report(self, since: int, until: int) -> Report:
        """Return the report of a period (µs). Counts are of full hours."""
        truncated: list[str] = []
        with self._connection() as connection:
            lists: dict[str, tuple[StoredEvent, ...]] = {}
            for name, kinds in REPORT_KINDS.items():
                chosen = Filters(since=since, until=until, streams=("changes",), kinds=kinds)
                scan = _Scan(connection, "changes", chosen, oldest_first=False)
                found = [scan.pop() for _ in range(_REPORT_ROWS) if scan.peek() is not None]
                lists[name] = tuple(found)
                if len(found) == _REPORT_ROWS and scan.peek() is not None:
                    truncated.append(name)
            first, last = since // HOUR, (until - 1) // HOUR
            verdicts = _grouped(connection, first, last, HOURS.c.verdict, HOURS.c.verdict != "")
            # An account that is denied is the reason of a rejected request, and would count twice.
            refused = HOURS.c.verdict.in_(("stripped", "rejected"))
            refusals = _grouped(connection, first, last, HOURS.c.reason, refused)
            origins = _most_frequent(connection, first, last, "client")
            people = _most_frequent(connection, first, last, "user")
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
                _Scan(
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
                scan, head = choose(heads, key=lambda each: _merge_key(each[1]))
                # A stream whose time is over may have earlier events behind the place that it reached.
                stopped_at = [found for other in scans if (found := other.stopped_at()) is not None]
                if any(choose(_merge_key(head), each) == each for each in stopped_at):
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


class _Scan:
    """The matching events of one stream, from `after` on, read in pieces as they are needed. `limit`: how
    many of them are needed.

    `position` is the index after which another scan continues. `paused`: the time was over before the end.
    """

    def __init__(
        self,
        connection: Connection,
        stream: Stream,
        filters: Filters,
        *,
        oldest_first: bool,
        after: int | None = None,
        searched: int = 0,
        ends: float = float("inf"),
        limit: int = _FIRST_PIECE,
    ) -> None:
        self.stream = stream
        self.paused = self.text_ended = False
        self.searched = searched
        self._connection = connection
        self._filters = filters
        self._oldest_first = oldest_first
        self._ends = ends
        self._table = TABLES[stream]
        self._found: list[StoredEvent] = []
        self._has_read = False
        self._stopped_at: str | None = None
        first, last = _bounds(connection, stream)
        low, high = _index_bounds(connection, stream, filters, first, last)
        if after is not None and oldest_first:
            low = max(low, after + 1)
        elif after is not None:
            high = min(high, after - 1)
        self._low, self._high = low, high
        self.position = low - 1 if oldest_first else high + 1
        self._driver, self._others = _driver(connection, self._table, filters, low, high)
        is_exact = not self._others and filters.text is None
        self._max_piece = _MAX_PIECE if self._driver is None else _MAX_SCATTERED_PIECE
        self._piece = min(limit if is_exact else self._max_piece, _FIRST_PIECE)

    def peek(self) -> StoredEvent | None:
        """Return the next event without removing it, None at the end or when the time is over."""
        while not self._found and not self.paused and self._low <= self._high:
            if self._has_read and time.monotonic() > self._ends:
                self.paused = True
            elif self._filters.text is not None and self.searched >= MAX_SEARCHED:
                self.text_ended = True
                self._high = self._low - 1
            else:
                self._read_piece()
        return self._found[0] if self._found else None

    def pop(self) -> StoredEvent:
        """Return the next event, which `peek` returned."""
        found = self._found.pop(0)
        self.position = found.index
        return found

    def stopped_at(self) -> tuple[str, str] | None:
        """Return the time of the last candidate, and the stream, if the time was over before the end."""
        if not self.paused:
            return None
        if self._stopped_at is None:
            time_ = self._table.c.time
            query = select(time_).where(self._table.c.index == self.position)
            found = self._connection.execute(query).scalar()
            if found is None:  # it reached nothing
                self._stopped_at = "" if self._oldest_first else "~"
            else:
                self._stopped_at = iso_time(int(found))
        return self._stopped_at, self.stream

    def _read_piece(self) -> None:
        table, start = self._table, time.monotonic()
        self._has_read = True
        piece = self._next_piece()
        if piece is None:
            self._high = self._low - 1
            return
        candidates = piece.rows.where(*self._others)
        if self._filters.text is not None:
            self.searched += piece.count if not self._others else self._count_rows(candidates)
        needle = self._filters.needle()
        query = candidates.where(
            table.c.data.icontains(needle, autoescape=True) if needle else true()
        )
        order = table.c.index if self._oldest_first else table.c.index.desc()
        rows = self._connection.execute(query.order_by(order).limit(MAX_PAGE)).all()
        found = [_stored(self.stream, each) for each in rows]
        self._found += [e for e in found if self._filters.matches_text(e.record)]
        full = len(rows) == MAX_PAGE
        boundary = found[-1].index if full else piece.boundary
        if not self._found:
            self.position = boundary
        if piece.is_last and not full:
            self._high = self._low - 1
        elif self._oldest_first:
            self._low = boundary + 1
        else:
            self._high = boundary - 1
        elapsed = time.monotonic() - start
        if elapsed < _PIECE_SECONDS / 2:
            self._piece = min(self._piece * 2, self._max_piece)
        elif elapsed > _PIECE_SECONDS:
            self._piece = max(self._piece // 2, min(_FIRST_PIECE, self._max_piece))

    def _next_piece(self) -> _Piece | None:
        """Return the next candidates, None at the end."""
        table, size = self._table, self._piece
        if self._driver is None:
            # The indexes have no gaps.
            low, high = self._low, self._high
            if self._oldest_first:
                high = min(high, low + size - 1)
            else:
                low = max(low, high - size + 1)
            boundary = high if self._oldest_first else low
            is_last = (low, high) == (self._low, self._high)
            rows = select(table).where(table.c.index.between(low, high))
            return _Piece(rows, high - low + 1, boundary, is_last)
        part = self._driver(self._low, self._high, size, self._oldest_first)
        ends = func.max(part.c.index) if self._oldest_first else func.min(part.c.index)
        found, count = self._connection.execute(select(ends, func.count()).select_from(part)).one()
        if found is None:
            return None
        rows = select(table).join(part, table.c.index == part.c.index)
        return _Piece(rows, int(count), int(found), count < size)

    def _count_rows(self, rows: Select[Any]) -> int:
        query = select(func.count()).select_from(
            rows.with_only_columns(self._table.c.index).subquery()
        )
        return int(self._connection.execute(query).scalar_one())


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some candidates: their rows and number, the last index, and whether none are left."""

    rows: Select[Any]
    count: int
    boundary: int
    is_last: bool


Driver = Callable[[int, int, int, bool], FromClause]


def _driver(
    connection: Connection, table: Table, filters: Filters, low: int, high: int
) -> tuple[Driver | None, tuple[ColumnElement[bool], ...]]:
    """Return what lists the candidates' indexes, by the rarest value that the filters name, and the
    conditions that are left. None: every row is a candidate."""
    exact: dict[str, tuple[Any, ...]] = dict(filters.choices())
    conditions = {name: table.c[name].in_(values) for name, values in exact.items()}
    networks: dict[str, tuple[bytes, bytes]] = {}
    for name, (lowest, highest) in filters.ranges().items():
        # With the function, no database walks along this column's index, past all of the network's rows.
        conditions[name] = func.coalesce(table.c[name], b"").between(lowest, highest)
        if lowest == highest:
            exact[name] = (lowest,)
        else:
            networks[name] = (lowest, highest)
    chosen, lowest_count = "", _COUNT_LIMIT + 1
    for name, values in exact.items():
        count = _count(connection, table, table.c[name], values, low, high)
        # With equal counts, a name or address is rarer than a kind.
        if count < lowest_count or (count == lowest_count and len(values) == 1):
            chosen, lowest_count = name, count
    is_sorted = False
    for name, (lowest, highest) in networks.items():
        if lowest_count < _COUNT_LIMIT or is_sorted:
            break
        if _can_be_sorted(connection, table.c[name], lowest, highest):
            chosen, is_sorted = name, True
        elif addresses := _addresses(connection, table.c[name], lowest, highest):
            exact[name] = addresses
            # A client is rarer than a kind.
            if not chosen or (name == "client" and chosen not in _NAMES):
                chosen = name
    remaining = [each for name, each in conditions.items() if name != chosen]
    others: tuple[ColumnElement[bool], ...] = (*remaining, *_times(table, filters))
    if not chosen:
        return None, others

    def driver(low: int, high: int, size: int, oldest_first: bool) -> FromClause:
        if is_sorted:
            within = table.c[chosen].between(*networks[chosen])
            return _sorted(table, within, low, high, size, oldest_first)
        values = exact[chosen]
        return _candidates(table, table.c[chosen], values, low, high, size, oldest_first)

    return driver, others


def _times(table: Table, filters: Filters) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if filters.since is not None:
        found.append(table.c.time >= filters.since)
    if filters.until is not None:
        found.append(table.c.time < filters.until)
    return found


def _count(
    connection: Connection, table: Table, column: Any, values: tuple[Any, ...], low: int, high: int
) -> int:
    """Return how many rows have one of the values, at most `_COUNT_LIMIT`."""
    candidates = _candidates(table, column, values, low, high, _COUNT_LIMIT, False)
    query = select(func.count()).select_from(candidates)
    return int(connection.execute(query).scalar_one())


def _candidates(
    table: Any,
    column: Any,
    values: tuple[Any, ...],
    low: int,
    high: int,
    size: int,
    oldest_first: bool,
) -> FromClause:
    """Return the subquery of the first `size` indexes from `low` to `high` whose column has one of the
    values. Each value is a walk along the index; none of them sorts more than `size` rows."""
    order = table.c.index.asc() if oldest_first else table.c.index.desc()
    within = table.c.index.between(low, high)
    parts = [
        select(table.c.index).where(column == value, within).order_by(order).limit(size).subquery()
        for value in values
    ]
    if not parts:
        return select(table.c.index).where(false()).subquery()
    if len(parts) == 1:
        return parts[0]
    union = union_all(*(select(part.c.index) for part in parts)).subquery()
    order = union.c.index.asc() if oldest_first else union.c.index.desc()
    return select(union.c.index).order_by(order).limit(size).subquery()


def _sorted(
    table: Table,
    condition: ColumnElement[bool],
    low: int,
    high: int,
    size: int,
    oldest_first: bool,
) -> FromClause:
    """Return the subquery of the first `size` indexes from `low` to `high` of the rows with a condition. It
    reads and sorts all of these rows' indexes, from the index over the condition's column alone."""
    # The sum and the offset keep both databases from walking along the primary key instead, past all other
    # rows.
    within = (table.c.index + 0).between(low, high)
    found = select(table.c.index).where(condition, within).offset(0).subquery()
    order = found.c.index.asc() if oldest_first else found.c.index.desc()
    return select(found.c.index).order_by(order).limit(size).subquery()


def _can_be_sorted(
    connection: Connection, column: ColumnElement[Any], lowest: bytes, highest: bytes
) -> bool:
    """Return whether a network has so few rows that `_sorted` is fast."""
    for limit in _SORT_LIMITS:
        begin = time.monotonic()
        found = select(column).where(column.between(lowest, highest)).limit(limit + 1).subquery()
        count = connection.execute(select(func.count()).select_from(found)).scalar_one()
        if count <= limit:
            return True
        if time.monotonic() - begin > _SORT_SECONDS:
            break
    return False


def _addresses(
    connection: Connection, column: Any, lowest: bytes, highest: bytes
) -> tuple[bytes, ...] | None:
    """Return the addresses that occur in a range, None if they are more than `_MAX_ADDRESSES`."""
    # Each step finds the next address in the index. PostgreSQL before 18 has no min() of bytes.
    ordered = select(column).where(column <= highest).order_by(column).limit(1)
    first = ordered.where(column >= lowest).scalar_subquery()
    found = select(first.label("address"), literal(1).label("number")).cte(recursive=True)
    following = ordered.where(column > found.c.address).correlate(found).scalar_subquery()
    found = found.union_all(
        select(following, found.c.number + 1).where(
            found.c.address.isnot(None), found.c.number <= _MAX_ADDRESSES
        )
    )
    query = select(found.c.address).where(found.c.address.isnot(None))
    rows = connection.execute(query).all()
    return None if len(rows) > _MAX_ADDRESSES else tuple(bytes(row[0]) for row in rows)


def _bounds(connection: Connection, stream: Stream) -> tuple[int, int]:
    """Return the first and last index of a stream; (1, 0) without rows."""
    states = STREAM_STATES.c
    row = connection.execute(
        select(states.first_index, states.last_index).where(states.stream == stream)
    ).first()
    return (1, 0) if row is None else (int(row[0]), int(row[1]))


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


def _index_bounds(
    connection: Connection, stream: Stream, filters: Filters, first: int, last: int
) -> tuple[int, int]:
    """Return the indexes between which all rows are that match, as far as the hourly counts show: by time,
    and by two or more of kind, verdict and reason, which may exclude each other. For one of them the index
    over its column is faster."""
    chosen = filters.choices()
    columns = {"kind": HOURS.c.kind, "verdict": HOURS.c.verdict, "reason": HOURS.c.reason}
    named = [column.in_(chosen[name]) for name, column in columns.items() if name in chosen]
    conditions: list[ColumnElement[bool]] = [*named] if len(named) > 1 else []
    if filters.since is not None:
        conditions.append(HOURS.c.hour >= filters.since // HOUR)
    if filters.until is not None:
        conditions.append(HOURS.c.hour <= (filters.until - 1) // HOUR)
    if not conditions:
        return first, last
    bounds = select(func.min(HOURS.c.first_index), func.max(HOURS.c.last_index))
    row = connection.execute(bounds.where(HOURS.c.stream == stream, *conditions)).one()
    if row[0] is None:
        return 1, 0
    return max(first, int(row[0])), min(last, int(row[1]))


def _cells_of_hours(
    connection: Connection, since: int, until: int, bucket: int
) -> tuple[Cell, ...]:
    hours = bucket // HOUR
    start = (HOURS.c.hour - HOURS.c.hour % hours) if hours > 1 else HOURS.c.hour
    query = (
        select(
            start.label("start"),
            HOURS.c.stream,
            HOURS.c.kind,
            HOURS.c.verdict,
            HOURS.c.reason,
            func.sum(HOURS.c.count),
        )
        .where(HOURS.c.hour >= since // HOUR, HOURS.c.hour < until // HOUR)
        .group_by("start", HOURS.c.stream, HOURS.c.kind, HOURS.c.verdict, HOURS.c.reason)
        .order_by("start")
    )
    return tuple(
        Cell(int(hour) * HOUR, stream, kind, verdict or None, reason or None, int(count))
        for hour, stream, kind, verdict, reason, count in connection.execute(query)
    )


def _cells_of_rows(connection: Connection, since: int, until: int, bucket: int) -> tuple[Cell, ...]:
    cells: list[Cell] = []
    for stream, table in TABLES.items():
        first, last = _bounds(connection, stream)
        period = Filters(since=since, until=until)
        low, high = _index_bounds(connection, stream, period, first, last)
        start = table.c.time - table.c.time % bucket
        names = (table.c.kind, table.c.verdict, table.c.reason)
        query = (
            select(start.label("start"), *names, func.sum(table.c.count))
            .where(table.c.index.between(low, high), table.c.time >= since, table.c.time < until)
            .group_by("start", *names)
        )
        cells += [
            Cell(int(at), stream, kind, verdict, reason, int(count))
            for at, kind, verdict, reason, count in connection.execute(query)
        ]
    return tuple(sorted(cells, key=lambda cell: cell.start))


def _grouped(
    connection: Connection, first: int, last: int, column: Any, condition: ColumnElement[bool]
) -> tuple[Count, ...]:
    total = func.sum(HOURS.c.count)
    query = (
        select(column, total)
        .where(HOURS.c.hour.between(first, last), condition)
        .group_by(column)
        .order_by(total.desc(), column)
    )
    return tuple(Count(value, int(count)) for value, count in connection.execute(query))


def _most_frequent(connection: Connection, first: int, last: int, name: str) -> tuple[Count, ...]:
    values, total = HOURLY_VALUES.c, func.sum(HOURLY_VALUES.c.count)
    query = (
        select(values.value, values.reason, total, func.max(values.last_time))
        .where(values.hour.between(first, last), values.field == name)
        .group_by(values.value, values.reason)
        .order_by(total.desc(), values.value)
        .limit(_REPORT_ROWS)
    )
    return tuple(
        Count(unescaped(value), int(count), reason or None, int(latest))
        for value, reason, count, latest in connection.execute(query)
    )


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


def _merge_key(stored: StoredEvent) -> tuple[str, str]:
    return stored.record["time"], stored.stream


def _stored(stream: Stream, row: Row[Any]) -> StoredEvent:
    record: Record = json.loads(row.data)
    return StoredEvent(stream, int(row[0]), row.chain, record, bytes(row.hash).hex(), row.key_id)
