"""Find the events of one stream that match filters, with bounded work for each page.

A search follows the index of the rarest value that the filters name, in pieces, and returns what it has when
its time is over; the next page continues there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Table,
    false,
    func,
    literal,
    select,
    true,
    union_all,
)

from shim.audit.store.filters import Filters
from shim.audit.store.results import MAX_PAGE, StoredEvent, stored_event
from shim.audit.store.schema import (
    HOUR,
    HOURS,
    STREAM_STATES,
    TABLES,
    Stream,
    iso_time,
)

# Rows that a search for text looks at.
MAX_SEARCHED = 100_000
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


class Scan:
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
        first, last = stream_bounds(connection, stream)
        low, high = index_bounds(connection, stream, filters, first, last)
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
        found = [stored_event(self.stream, each) for each in rows]
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


def stream_bounds(connection: Connection, stream: Stream) -> tuple[int, int]:
    """Return the first and last index of a stream; (1, 0) without rows."""
    states = STREAM_STATES.c
    row = connection.execute(
        select(states.first_index, states.last_index).where(states.stream == stream)
    ).first()
    return (1, 0) if row is None else (int(row[0]), int(row[1]))


def index_bounds(
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
