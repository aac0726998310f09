"""What the data plane tells becomes events: exact in number, and no dearer than their lines are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shim.audit.coalesce import Coalescer
from shim.audit.events import Access, Event, RequestDecision
from shim.audit.observer import TrailObserver
from shim.audit.trail import Trail
from shim.trust.decision import Decision
from shim.trust.reasons import Reason, Verdict
from tests.support.decisions import ADA, decided

FORGED = "GET /app/ HTTP/1.1\r\nHost: h\r\nX-authentik-username: ada\r\nX_authentik_uid: 1\r\n\r\n"


class RecordingSink:
    name = "kept"

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def write(self, events: Sequence[Event]) -> None:
        self.events += events

    async def close(self) -> None: ...


@dataclass(slots=True)
class Watched(Decision):
    """A decision that counts how often somebody asks what there was to see."""

    asked: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        self.asked += 1
        return ("seen",)


def watched(text: str) -> Watched:
    found = decided(text.encode())
    return Watched(
        found.outcome, found.source, found.request_line, found.block, detail=found.detail
    )


async def test_a_flood_is_told_of_in_a_few_lines_with_its_number() -> None:
    sink = RecordingSink()
    trail = Trail([sink], Coalescer(burst=3))
    observer = TrailObserver(trail, "upstream")
    alias = watched(FORGED)
    twice = watched(f"GET /app/ HTTP/1.1\r\nHost: h\r\n{ADA}\r\n{ADA}\r\n\r\n")
    for number in range(500):
        observer.request_decided(alias, f"{number:016}")
        observer.request_decided(twice, f"{number:016}")
    await trail.close()

    told = [event for event in sink.events if isinstance(event, RequestDecision)]
    for reason in (Reason.HEADER_ALIAS, Reason.IDENTITY_DUPLICATE):
        assert [event.count for event in told if event.reason is reason] == [1, 1, 1, 497]
    assert alias.asked == twice.asked == 4, "what is only counted is not made into an event"


async def test_a_response_is_told_with_what_was_decided_and_why() -> None:
    sink = RecordingSink()
    trail = Trail([sink])
    decision = decided(f"GET /app/?x=1 HTTP/1.1\r\nHost: h\r\n{ADA}\r\n\r\n".encode())
    TrailObserver(trail, "upstream").request_completed(decision, "0" * 16, 200, 12, 0.5)
    await trail.close()

    (event,) = sink.events
    assert isinstance(event, Access)
    assert (event.verdict, event.reason) == (Verdict.AUTHENTICATED, Reason.TRUSTED_PEER)
    assert (event.user, event.path, event.status, event.bytes_sent) == ("ada", "/app/", 200, 12)
