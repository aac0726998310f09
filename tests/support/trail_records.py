"""Records of audit events for tests of the stored trail."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shim.audit.store.append import append
from shim.audit.store.chain import Keys, build_keys
from shim.audit.store.schema import HOUR, Record, Stream, iso_time
from shim.audit.store.tables import build_database
from shim.store.database import Database

# 2026-11-01T00:00:00Z
START = 1_793_491_200_000_000
KEYS = build_keys(["0123456789abcdef0123456789abcdef"])

_numbers = itertools.count(1)


def record(kind: str = "request_decision", time: int = START, **fields: Any) -> Record:
    """A record with an id of its own."""
    return {
        "schema": 1,
        "id": f"01a00000-0000-7000-8000-{next(_numbers):012x}",
        "time": iso_time(time),
        "instance": "test/1",
        "kind": kind,
        "severity": "info",
        **fields,
    }


def refused(time: int = START, **fields: Any) -> Record:
    """A record of a rejected request."""
    values = {
        "severity": "warning",
        "verdict": "rejected",
        "reason": "identity_incomplete",
        "peer": "172.20.0.2",
        "client": "203.0.113.9",
        "path_class": "protected",
        "path": "/app/",
        "method": "GET",
        "request_id": f"r{time}",
        "claimed_user": "anna",
    }
    return record("request_decision", time, **{**values, **fields})


def seen(user: str, time: int = START, client: str = "203.0.113.9") -> Record:
    """A record of a user's activity."""
    return record(
        "identity_seen", time, verdict="authenticated", user=user, account=user, client=client
    )


@contextmanager
def trail(url: str) -> Iterator[Database]:
    """An open audit database."""
    database = build_database(url)
    try:
        database.open()
        yield database
    finally:
        database.close()


def store(database: Database, stream: Stream, *records: Record, keys: Keys = KEYS) -> None:
    """Append records in one transaction."""
    database.write(lambda connection: append(connection, stream, records, keys))


__all__ = ["HOUR", "KEYS", "START", "record", "refused", "seen", "store", "trail"]
