"""What a reader of the trail returns: events, pages, counts and reports, and its errors."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any, Self

from sqlalchemy import (
    Row,
)

from shim.audit.store.schema import (
    Record,
    Stream,
)

MAX_PAGE = 1000
REPORT_ROWS = 500
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


def merge_key(stored: StoredEvent) -> tuple[str, str]:
    return stored.record["time"], stored.stream


def stored_event(stream: Stream, row: Row[Any]) -> StoredEvent:
    record: Record = json.loads(row.data)
    return StoredEvent(stream, int(row[0]), row.chain, record, bytes(row.hash).hex(), row.key_id)
