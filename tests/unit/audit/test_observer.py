"""Reports of the data plane become events: with exact counts, and at the cost of the events that are
written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from shim.audit.coalesce import Coalescer
from shim.audit.events import Access, Event, IdentitySeen, RequestDecision, to_record
from shim.audit.observer import TrailObserver
from shim.audit.trail import Trail
from shim.trust.decision import Decision
from shim.trust.reasons import Reason, Verdict
from tests.support.decisions import ADA, UNTRUSTED, decided, head

FORGED = "GET /app/ HTTP/1.1\r\nHost: h\r\nX-authentik-username: ada\r\nX_authentik_uid: 1\r\n\r\n"


class RecordingSink:
    name = "kept"

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def write(self, events: Sequence[Event]) -> None:
        self.events += events

    async def close(self) -> None: ...


@dataclass(slots=True)
class CountingDecision(Decision):
    """A decision that counts how often its fields are read."""

    reads: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        self.reads += 1
        return ("seen",)


def counting_decision(text: str) -> CountingDecision:
    found = decided(text.encode())
    return CountingDecision(
        found.outcome, found.source, found.request_line, found.block, detail=found.detail
    )


async def test_a_flood_is_logged_in_a_few_lines_with_its_count() -> None:
    sink = RecordingSink()
    trail = Trail([sink], Coalescer(burst=3))
    observer = TrailObserver(trail, "upstream")
    alias = counting_decision(FORGED)
    twice = counting_decision(f"GET /app/ HTTP/1.1\r\nHost: h\r\n{ADA}\r\n{ADA}\r\n\r\n")
    for number in range(500):
        observer.request_decided(alias, f"{number:016}")
        observer.request_decided(twice, f"{number:016}")
    await trail.close()

    decisions_logged = [event for event in sink.events if isinstance(event, RequestDecision)]
    for reason in (Reason.HEADER_ALIAS, Reason.IDENTITY_DUPLICATE):
        assert [event.count for event in decisions_logged if event.reason is reason] == [
            1,
            1,
            1,
            497,
        ]
    assert alias.reads == twice.reads == 4, "counted repetitions create no event"


async def test_a_response_is_logged_with_its_decision_and_reason() -> None:
    sink = RecordingSink()
    trail = Trail([sink])
    decision = decided(f"GET /app/?x=1 HTTP/1.1\r\nHost: h\r\n{ADA}\r\n\r\n".encode())
    TrailObserver(trail, "upstream").request_completed(decision, "0" * 16, 200, 12, 0.5)
    await trail.close()

    (event,) = sink.events
    assert isinstance(event, Access)
    assert (event.verdict, event.reason) == (Verdict.AUTHENTICATED, Reason.TRUSTED_PEER)
    assert (event.user, event.path, event.status, event.bytes_sent) == ("ada", "/app/", 200, 12)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def from_client(address: str, name: str = "ada", uid: str = "") -> Decision:
    uid_line = f"X-authentik-uid: {uid}\r\n" if uid else ""
    found = decided(
        f"GET /app/?x=1 HTTP/1.1\r\nHost: h\r\nX-authentik-username: {name}\r\n{uid_line}"
        f"User-Agent: Feishin/1.0\r\nX-Forwarded-For: {address}\r\n\r\n".encode()
    )
    assert found.identity is not None
    return found


async def seen(uses: Sequence[tuple[float, Decision]]) -> list[IdentitySeen]:
    """Return the events after the identities of these decisions were used, with these seconds between
    them.
    """
    sink, clock = RecordingSink(), Clock()
    trail = Trail([sink], Coalescer(burst=1000))
    observer = TrailObserver(trail, "upstream", now=clock)
    for seconds, decision in uses:
        clock.now += seconds
        observer.identity_used(decision, "0" * 16, "Ada")
    await trail.close()
    return [event for event in sink.events if isinstance(event, IdentitySeen)]


async def test_an_identity_is_reported_with_all_fields_of_the_request() -> None:
    (event,) = await seen([(0.0, from_client("203.0.113.7", uid="u1"))])

    record = to_record(event)
    for name, value in {
        "verdict": "authenticated",
        "reason": "trusted_peer",
        "peer": "127.0.0.2",
        "client": "203.0.113.7",
        "method": "GET",
        "path": "/app/",
        "path_class": "protected",
        "user": "ada",
        "uid": "u1",
        "account": "Ada",
        "user_agent": "Feishin/1.0",
        "request_id": "0" * 16,
    }.items():
        assert record[name] == value, name
    assert "claimed_user" not in record


async def test_an_identity_is_reported_again_after_an_hour_without_a_request() -> None:
    home = from_client("203.0.113.7")

    assert len(await seen([(0.0, home)] + [(3599.0, home)] * 5)) == 1
    assert len(await seen([(0.0, home), (3600.0, home), (1.0, home)])) == 2


async def test_an_identity_is_reported_at_each_client_address() -> None:
    home, away = from_client("203.0.113.7"), from_client("203.0.113.8")
    bob = from_client("203.0.113.7", "bob")

    found = await seen([(0.0, home), (1.0, away), (1.0, home), (1.0, away), (1.0, bob)])

    assert [(event.user, event.client) for event in found] == [
        ("ada", "203.0.113.7"),
        ("ada", "203.0.113.8"),
        ("bob", "203.0.113.7"),
    ]


async def test_the_cache_of_last_uses_is_bounded_and_expires_after_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shim.audit.observer.MAX_IDENTITIES", 2)
    clock = Clock()
    observer = TrailObserver(Trail([]), "upstream", now=clock)
    for host in range(9):
        observer.identity_used(from_client(f"203.0.113.{host}"), "0" * 16, None)
    assert {client for *_, client in observer._last_used} == {"203.0.113.7", "203.0.113.8"}

    clock.now += 4000.0
    for host in (1, 1, 1):
        observer.identity_used(from_client(f"203.0.113.{host}"), "0" * 16, None)
    assert {client for *_, client in observer._last_used} == {"203.0.113.1"}


async def test_a_claimed_name_is_not_reported_as_the_user() -> None:
    sink = RecordingSink()
    trail = Trail([sink])
    observer = TrailObserver(trail, "upstream")
    observer.request_decided(decided(FORGED.encode(), UNTRUSTED), "0" * 16)
    await trail.close()

    (event,) = sink.events
    assert isinstance(event, RequestDecision)
    assert (event.user, event.claimed_user, event.uid) == (None, "ada", None)
    assert event.removed_headers == ("X-authentik-username", "X_authentik_uid")


async def test_a_trusted_identity_is_reported_even_if_the_request_was_rejected() -> None:
    sink = RecordingSink()
    trail = Trail([sink])
    observer = TrailObserver(trail, "upstream")
    decision = decided(head("POST /api/x HTTP/1.1", ADA, "Sec-Fetch-Site: cross-site"))
    assert decision.outcome.reason is Reason.CROSS_SITE
    observer.request_decided(decision, "0" * 16)
    await trail.close()

    (event,) = sink.events
    assert isinstance(event, RequestDecision)
    assert (event.user, event.claimed_user) == ("ada", None)


async def test_a_non_ascii_path_is_readable_and_safe() -> None:
    sink = RecordingSink()
    trail = Trail([sink])
    observer = TrailObserver(trail, "upstream")
    path = "/Zoë".encode() + b"\xff\xc2\x9b"
    decision = decided(b"GET " + path + b" HTTP/1.1\r\nHost: h\r\n" + ADA.encode() + b"\r\n\r\n")
    assert decision.outcome.reason is Reason.AMBIGUOUS_TARGET
    observer.request_decided(decision, "0" * 16)
    await trail.close()

    (event,) = sink.events
    assert isinstance(event, RequestDecision)
    assert event.path == r"/Zoë\xff\u009b"
