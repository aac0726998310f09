"""The tables of the stored trail.

The record of an event is one JSON text, `data`; `hash` covers it. The other columns repeat some of its fields
for filters, in a form that is equal on SQLite and PostgreSQL; `column_values` is the one place that derives
them. `index` numbers the rows of a stream without gaps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, ip_address
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

Stream: TypeAlias = Literal["requests", "changes"]
STREAMS: Final[tuple[Stream, ...]] = ("requests", "changes")
JSON: TypeAlias = Any
Record: TypeAlias = dict[str, JSON]

# The version of these tables, as `audit_meta` stores it.
VERSION: Final = "1"
HOUR: Final = 3_600_000_000

METADATA = MetaData()
_MAX_COLUMN = 255
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

# SQLite: only INTEGER is the row's own number, which needs no index.
_Index = BigInteger().with_variant(Integer, "sqlite")

# The columns that a filter can name, besides the time; each has an index, so that rare values are found fast.
INDEXED: Final = (
    "kind",
    "severity",
    "verdict",
    "reason",
    "peer",
    "client",
    "path_class",
    "user",
    "account",
    "request_id",
)


def _rows(name: str) -> Table:
    table = Table(
        name,
        METADATA,
        Column("index", _Index, primary_key=True, autoincrement=False),
        # The number of the chain, and the key of its hashes; empty for SHA-256 without a key.
        Column("chain", Integer, nullable=False),
        Column("key_id", Text, nullable=False),
        Column("hash", LargeBinary, nullable=False),
        Column("id", Text, nullable=False),
        # Microseconds since the epoch.
        Column("time", BigInteger, nullable=False),
        Column("kind", Text, nullable=False),
        Column("severity", Text, nullable=False),
        Column("verdict", Text),
        Column("reason", Text),
        # Addresses in 16 bytes, so that a network is a range; other peers as UTF-8.
        Column("peer", LargeBinary),
        Column("client", LargeBinary),
        Column("path_class", Text),
        # The name at the identity provider, or the one that was claimed; and Navidrome's. Without case.
        Column("user", Text),
        Column("account", Text),
        Column("request_id", Text),
        Column("count", Integer, nullable=False),
        Column("data", Text, nullable=False),
    )
    Index(f"{name}_id", table.c.id)
    for column in INDEXED:
        each = table.c[column]
        present = each.isnot(None)
        # `tables.py` sets the condition for the database in use: naming a database here loads its code.
        where = {"where": present} if each.nullable else {}
        # SQLite appends the row's number to each index by itself.
        Index(f"{name}_{column}", each, table.c.index, info=where)
    return table


REQUESTS = _rows("audit_requests")
CHANGES = _rows("audit_changes")
TABLES: Final[Mapping[Stream, Table]] = {"requests": REQUESTS, "changes": CHANGES}

# Where each stream begins and ends. `bytes` is the sum of `row_size` of its rows.
STREAM_STATES = Table(
    "audit_streams",
    METADATA,
    Column("stream", Text, primary_key=True),
    # The first row that is kept, and the hash before it.
    Column("first_index", BigInteger, nullable=False),
    Column("first_previous_hash", LargeBinary, nullable=False),
    # The last row; `last_index` is `first_index` - 1 without rows.
    Column("last_index", BigInteger, nullable=False),
    Column("last_hash", LargeBinary, nullable=False),
    Column("chain", Integer, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
)

# Events per hour. `first_index` and `last_index` enclose the rows of the hour, because rows are not strictly
# in the order of their time.
HOURS = Table(
    "audit_hours",
    METADATA,
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("stream", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    # Empty, not NULL, where an event has none.
    Column("verdict", Text, primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("first_index", BigInteger, nullable=False),
    Column("last_index", BigInteger, nullable=False),
)

# The most frequent values per hour: `field` is `client` (of refused requests) or `user` (of used identities).
HOURLY_VALUES = Table(
    "audit_hourly_values",
    METADATA,
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("field", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("last_time", BigInteger, nullable=False),
)

# `version` of the tables, and `id` of this database, which its checkpoints name.
META = Table(
    "audit_meta",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)


def canonical(record: Mapping[str, JSON]) -> str:
    """Return the one JSON text of a record: ASCII, sorted, without blanks."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def column_values(record: Mapping[str, JSON]) -> dict[str, Any]:
    """Return the columns that repeat fields of the record."""
    return {
        "id": record["id"],
        "time": microseconds(record["time"]),
        "kind": record["kind"],
        "severity": record["severity"],
        "verdict": column_text(record.get("verdict")),
        "reason": column_text(record.get("reason")),
        "peer": packed(record.get("peer")),
        "client": packed(record.get("client")),
        "path_class": column_text(record.get("path_class")),
        "user": folded(record.get("user") or record.get("claimed_user")),
        "account": folded(record.get("account")),
        "request_id": column_text(record.get("request_id")),
        "count": record.get("count") or 1,
    }


def row_size(data: str) -> int:
    """Return about how many bytes of the database a row takes, with its indexes."""
    return len(data) + _ROW_OVERHEAD


# Columns and indexes of a row, as measured on both databases.
_ROW_OVERHEAD = 600


def microseconds(time: str) -> int:
    """Return a record's time (ISO 8601 in UTC) as microseconds since the epoch."""
    return (datetime.fromisoformat(time) - _EPOCH) // _MICROSECOND


def iso_time(time: int) -> str:
    """Return microseconds since the epoch as ISO 8601 in UTC."""
    moment = _EPOCH + timedelta(microseconds=time)
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def packed(text: str | None) -> bytes | None:
    """Return an address in 16 bytes, IPv4 mapped into IPv6; other text as UTF-8."""
    if not text:
        return None
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return text[:_MAX_COLUMN].encode("utf-8", "backslashreplace")
    return packed_address(int(address), mapped=isinstance(address, IPv4Address))


def packed_address(number: int, *, mapped: bool) -> bytes:
    """Return the 16 bytes of an address; `mapped` for IPv4."""
    return (number | (0xFFFF << 32 if mapped else 0)).to_bytes(16, "big")


def folded(text: str | None) -> str | None:
    """Return a name as the columns have it: as `column_text` does, and without case."""
    return column_text(None if text is None else text.casefold())


def escaped(text: str) -> str:
    """Return a text as ASCII, which every database can store; `unescaped` returns it again."""
    return json.dumps(text)[1:-1]


def unescaped(text: str) -> str:
    """Return the text that was `escaped`."""
    return str(json.loads(f'"{text}"'))


def column_text(text: str | None) -> str | None:
    """Return a text as the columns have it: in ASCII, which every database can store."""
    if not text:
        return None
    return text[:_MAX_COLUMN].encode("ascii", "backslashreplace").decode().replace("\0", "\\x00")
