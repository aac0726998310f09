"""Prepare events for the templates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from shim.audit.store.results import StoredEvent
from shim.audit.words import in_words
from shim.trust.reasons import Verdict

_VERDICTS = frozenset(map(str, Verdict))
_RESULTS = frozenset({"done", "refused", "failed"})


@dataclass(frozen=True, slots=True)
class EventLine:
    """One event in a list. `icon` names its shape and colour, `label` stands beside it. `time` is in µs."""

    id: str
    time: int
    icon: str
    label: str
    title: str
    detail: str
    count: int


def event_lines(events: Iterable[StoredEvent]) -> list[EventLine]:
    """Return the lines of a list of events."""
    return [event_line(event) for event in events]


def event_line(event: StoredEvent) -> EventLine:
    record = event.record
    words = in_words(record)
    origin = _origin(record.get("client"), record.get("peer"))
    return EventLine(
        id=str(record["id"]),
        time=microseconds(record["time"]),
        icon=icon_of(event),
        label=words.label,
        title=words.title,
        detail=" · ".join(
            filter(None, (words.explanation.rstrip("."), words.notes.rstrip("."), origin))
        ),
        count=int(record.get("count", 1)),
    )


def icon_of(event: StoredEvent) -> str:
    """Return the name of the event's shape: the verdict, the result of an action, or else the severity."""
    record = event.record
    verdict, result = record.get("verdict"), record.get("result")
    if verdict in _VERDICTS:
        return str(verdict)
    return str(result) if result in _RESULTS else str(record.get("severity", "info"))


def microseconds(time: str) -> int:
    """Return the time of a record in µs since the epoch."""
    parsed = datetime.fromisoformat(time)
    return round(parsed.timestamp() * 1_000_000)


def _origin(client: object, peer: object) -> str:
    if client and peer and client != peer:
        return f"from {client} through {peer}"
    return f"from {client or peer}" if client or peer else ""
