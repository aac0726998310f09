"""Count events for charts and reports: from the hourly counts, and from the rows where hours are too long."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    func,
    select,
)

from shim.audit.store.filters import Filters
from shim.audit.store.results import REPORT_ROWS, Cell, Count
from shim.audit.store.schema import (
    HOUR,
    HOURLY_VALUES,
    HOURS,
    TABLES,
    unescaped,
)
from shim.audit.store.search import index_bounds, stream_bounds


def cells_of_hours(connection: Connection, since: int, until: int, bucket: int) -> tuple[Cell, ...]:
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


def cells_of_rows(connection: Connection, since: int, until: int, bucket: int) -> tuple[Cell, ...]:
    cells: list[Cell] = []
    for stream, table in TABLES.items():
        first, last = stream_bounds(connection, stream)
        period = Filters(since=since, until=until)
        low, high = index_bounds(connection, stream, period, first, last)
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


def count_by(
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


def most_frequent(connection: Connection, first: int, last: int, name: str) -> tuple[Count, ...]:
    values, total = HOURLY_VALUES.c, func.sum(HOURLY_VALUES.c.count)
    query = (
        select(values.value, values.reason, total, func.max(values.last_time))
        .where(values.hour.between(first, last), values.field == name)
        .group_by(values.value, values.reason)
        .order_by(total.desc(), values.value)
        .limit(REPORT_ROWS)
    )
    return tuple(
        Count(unescaped(value), int(count), reason or None, int(latest))
        for value, reason, count, latest in connection.execute(query)
    )
