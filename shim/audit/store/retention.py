"""Remove old rows in small pieces; each cut is an event in the chain of its stream."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select

from shim.audit.events import to_record
from shim.audit.events.storage import RowsRemoved
from shim.audit.store.append import append, read_state, write_state
from shim.audit.store.chain import Keys
from shim.audit.store.schema import (
    HOUR,
    HOURLY_VALUES,
    HOURS,
    STREAM_STATES,
    TABLES,
    Stream,
    row_size,
)

# Rows of one transaction: it takes some milliseconds, so other writers hardly wait.
PIECE = 250
_DAY = 24 * HOUR


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a stream is kept: rows since `since` (µs), and at most `max_size` bytes. None: no limit."""

    since: int | None = None
    max_size: int | None = None


def limits_of_days(days: int, max_size: int | None = None, now: float | None = None) -> Limits:
    """Return the limits that keep so many days."""
    moment = time.time() if now is None else now
    return Limits(round(moment * 1_000_000) - days * _DAY, max_size)


def remove_oldest(
    connection: Connection, stream: Stream, limits: Limits, keys: Keys, reason: str = ""
) -> int:
    """Remove at most `PIECE` of the oldest rows that are beyond the limits, and return their number. The last
    row is kept."""
    state = read_state(connection, stream)
    table = TABLES[stream]
    query = (
        select(table.c.index, table.c.time, table.c.hash, table.c.kind, table.c.data)
        .where(table.c.index >= state.first_index, table.c.index < state.last_index)
        .order_by(table.c.index)
        .limit(PIECE)
    )
    size, last, exceeded = state.size, None, ""
    rows = 0
    for row in connection.execute(query):
        too_big = limits.max_size is not None and size > limits.max_size
        too_old = limits.since is not None and row.time < limits.since
        if not too_big and not too_old:
            break
        last, exceeded = row, exceeded or ("age" if too_old else "size")
        size -= row_size(row.data)
        rows += 1
    # A cut adds a row itself: one row alone is not worth it.
    if last is None or rows < 2:
        return 0
    first = state.first_index
    connection.execute(delete(table).where(table.c.index.between(first, last[0])))
    last_index = int(last[0])
    state.first_index = last_index + 1
    state.first_previous_hash = bytes(last.hash)
    state.size = size
    write_state(connection, stream, state)
    removed = RowsRemoved(
        time=time.time(),
        reason=reason or exceeded,
        first_index=first,
        last_index=last_index,
        last_hash=bytes(last.hash).hex(),
    )
    append(connection, stream, [{**to_record(removed), "stream": stream}], keys)
    return rows


def remove_counts(connection: Connection, hours_since: int, values_since: int) -> None:
    """Remove the hourly counts before a time (µs), and the hourly values before another one. Counts of rows
    that are kept stay, because filters find the rows by them."""
    states = STREAM_STATES.c
    first_kept = select(states.first_index).where(states.stream == HOURS.c.stream).scalar_subquery()
    connection.execute(
        delete(HOURS).where(HOURS.c.hour < hours_since // HOUR, HOURS.c.last_index < first_kept)
    )
    connection.execute(delete(HOURLY_VALUES).where(HOURLY_VALUES.c.hour < values_since // HOUR))
