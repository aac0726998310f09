"""Append records to their streams: chain, counts and state change in the caller's transaction.

The caller's transaction has the writers' lock, so what is read here stays true until the commit.
"""

from __future__ import annotations

import importlib
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, insert, select, update

from shim.audit.events import to_record
from shim.audit.events.storage import ChainStarted
from shim.audit.store.chain import GENESIS, Keys, row_hash
from shim.audit.store.schema import (
    HOUR,
    HOURLY_VALUES,
    HOURS,
    STREAM_STATES,
    TABLES,
    Record,
    Stream,
    canonical,
    column_values,
    escaped,
    row_size,
)

# Different values of one field per hour that are counted one by one; the others share `OTHERS`.
MAX_HOURLY_VALUES = 200
# Events that are converted before other threads may run.
CONVERTED = 8
OTHERS = "*"
_REFUSED = ("stripped", "rejected")


@dataclass(frozen=True, slots=True)
class Head:
    """The last row of a stream."""

    stream: Stream
    chain: int
    key_id: str
    index: int
    hash: bytes


@dataclass(slots=True)
class StreamState:
    """Where a stream begins and ends, as `audit_streams` has it."""

    first_index: int = 1
    first_previous_hash: bytes = GENESIS
    last_index: int = 0
    last_hash: bytes = GENESIS
    chain: int = 0
    key_id: str = ""
    size: int = 0


def append(connection: Connection, stream: Stream, records: Iterable[Record], keys: Keys) -> Head:
    """Append records to a stream, in order, and return its new head. A new chain is begun if the signing key
    changed. The records get their `index` and `chain`."""
    state = read_state(connection, stream)
    is_new = state.chain == 0
    chained = list(records)
    if is_new or state.key_id != keys.signing:
        chained.insert(0, _chain_started(stream, state, keys, chained))
        state.chain += 1
        state.key_id = keys.signing
    secret = keys.find(state.key_id)
    assert secret is not None
    rows = []
    for number, record in enumerate(chained, 1):
        if number % CONVERTED == 0:
            time.sleep(0)
        state.last_index += 1
        record.update(index=state.last_index, chain=state.chain)
        data = canonical(record)
        state.last_hash = row_hash(secret, state.last_hash, data)
        state.size += row_size(data)
        rows.append(
            {
                "index": state.last_index,
                "chain": state.chain,
                "key_id": state.key_id,
                "hash": state.last_hash,
                "data": data,
                **column_values(record),
            }
        )
    connection.execute(insert(TABLES[stream]), rows)
    write_state(connection, stream, state, is_new=is_new)
    _count(connection, stream, rows)
    _count_values(connection, chained, rows)
    return Head(stream, state.chain, state.key_id, state.last_index, state.last_hash)


def read_head(connection: Connection, stream: Stream) -> Head | None:
    """Return the head of a stream, None if it never had a row."""
    state = read_state(connection, stream)
    if state.chain == 0:
        return None
    return Head(stream, state.chain, state.key_id, state.last_index, state.last_hash)


def read_state(connection: Connection, stream: Stream) -> StreamState:
    """Return the state of a stream, that of an empty one if it never had a row."""
    row = connection.execute(select(STREAM_STATES).where(STREAM_STATES.c.stream == stream)).first()
    if row is None:
        return StreamState()
    return StreamState(
        int(row.first_index),
        bytes(row.first_previous_hash),
        int(row.last_index),
        bytes(row.last_hash),
        row.chain,
        row.key_id,
        int(row.bytes),
    )


def write_state(
    connection: Connection, stream: Stream, state: StreamState, *, is_new: bool = False
) -> None:
    """Store the state of a stream."""
    values = {
        "first_index": state.first_index,
        "first_previous_hash": state.first_previous_hash,
        "last_index": state.last_index,
        "last_hash": state.last_hash,
        "chain": state.chain,
        "key_id": state.key_id,
        "bytes": state.size,
    }
    if is_new:
        connection.execute(insert(STREAM_STATES).values(stream=stream, **values))
    else:
        connection.execute(
            update(STREAM_STATES).where(STREAM_STATES.c.stream == stream).values(values)
        )


def _count(connection: Connection, stream: Stream, rows: list[dict[str, Any]]) -> None:
    counts: dict[tuple[int, str, str, str], list[int]] = {}
    for row in rows:
        key = (row["time"] // HOUR, row["kind"], row["verdict"] or "", row["reason"] or "")
        found = counts.setdefault(key, [0, row["index"], row["index"]])
        found[0] += row["count"]
        found[2] = row["index"]
    new = [
        {
            "hour": hour,
            "stream": stream,
            "kind": kind,
            "verdict": verdict,
            "reason": reason,
            "count": count,
            "first_index": first,
            "last_index": last,
        }
        for (hour, kind, verdict, reason), (count, first, last) in sorted(counts.items())
    ]
    _upsert(connection, HOURS, new, {"count": "add", "last_index": "replace"})


def _count_values(
    connection: Connection, records: list[Record], rows: list[dict[str, Any]]
) -> None:
    counts: dict[tuple[int, str, str, str], list[int]] = {}
    for record, row in zip(records, rows, strict=True):
        field, value = _counted_value(record)
        if value is None:
            continue
        key = (row["time"] // HOUR, field, value, row["reason"] or "")
        found = counts.setdefault(key, [0, 0])
        found[0] += row["count"]
        found[1] = max(found[1], row["time"])
    if counts:
        _upsert_values(connection, counts)


def _counted_value(record: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return what is counted of a record: the origin of a refused request, or an identity that was used."""
    if record["kind"] == "identity_seen":
        return "user", record.get("user")
    if record.get("verdict") in _REFUSED:
        return "client", record.get("client") or record.get("peer")
    return "", None


def _upsert_values(
    connection: Connection, counts: Mapping[tuple[int, str, str, str], list[int]]
) -> None:
    known: dict[tuple[int, str], set[tuple[str, str]]] = defaultdict(set)
    for hour, field in {(hour, field) for hour, field, _, _ in counts}:
        query = (
            select(HOURLY_VALUES.c.value, HOURLY_VALUES.c.reason)
            .where(HOURLY_VALUES.c.hour == hour, HOURLY_VALUES.c.field == field)
            .limit(MAX_HOURLY_VALUES)
        )
        known[hour, field] = {(row[0], row[1]) for row in connection.execute(query)}
    totals: dict[tuple[int, str, str, str], list[int]] = {}
    for (hour, field, value, reason), (count, latest) in counts.items():
        value = escaped(value)
        pairs = known[hour, field]
        if (value, reason) not in pairs and len(pairs) >= MAX_HOURLY_VALUES:
            value = OTHERS
        pairs.add((value, reason))
        found = totals.setdefault((hour, field, value, reason), [0, 0])
        found[0] += count
        found[1] = max(found[1], latest)
    new = [
        {
            "hour": hour,
            "field": field,
            "value": value,
            "reason": reason,
            "count": count,
            "last_time": latest,
        }
        for (hour, field, value, reason), (count, latest) in sorted(totals.items())
    ]
    _upsert(connection, HOURLY_VALUES, new, {"count": "add", "last_time": "replace"})


def _upsert(
    connection: Connection, table: Table, rows: list[dict[str, Any]], changes: Mapping[str, str]
) -> None:
    """Insert the rows; where one with the same primary key exists, add or replace these columns."""
    # The database's own `insert`. The code of the other one is not loaded: it takes megabytes.
    dialect = importlib.import_module(f"sqlalchemy.dialects.{connection.dialect.name}")
    statement = dialect.insert(table)
    changed = {
        name: table.c[name] + statement.excluded[name] if how == "add" else statement.excluded[name]
        for name, how in changes.items()
    }
    connection.execute(
        statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=changed), rows
    )


def _chain_started(stream: Stream, state: StreamState, keys: Keys, records: list[Record]) -> Record:
    """Return the record that begins a chain and cites the head of the one before, with the time of the first
    of these records."""
    started = to_record(
        ChainStarted(
            time=time.time(),
            last_index=state.last_index,
            last_hash=state.last_hash.hex(),
            key_id=keys.signing or None,
        )
    )
    when = records[0]["time"] if records else started["time"]
    return {**started, "stream": stream, "time": when}
