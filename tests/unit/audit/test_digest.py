"""The digest: one message per kind of event, with a rate limit for each kind."""

from __future__ import annotations

from shim.audit.digest import Digest, Message
from shim.audit.events import Severity


def add(digest: Digest, kind: str, now: float, *, count: int = 1, line: str = "x") -> None:
    digest.add(kind, Severity.INFO, count, line, now)


def test_events_within_the_collection_time_are_one_message() -> None:
    digest = Digest(collect=5)
    add(digest, "account_created", 0, line="ada")
    add(digest, "account_created", 4, line="bob")
    assert digest.due(4.9) == []
    assert digest.next_due(4) == 1
    (message,) = digest.due(5)
    assert (message.title, message.body) == (
        "navidrome-shim: account_created (2 times)",
        "ada\nbob",
    )
    assert digest.due(100) == []
    assert digest.next_due(100) is None


def test_events_beyond_the_lines_of_a_message_are_counted() -> None:
    digest = Digest(lines=2, collect=0)
    for number in range(4):
        add(digest, "request_decision", 0, count=10, line=str(number))
    (message,) = digest.due(0)
    assert message.body == "0\n1\nand 38 more"
    assert message.count == 40


def test_a_message_has_the_highest_severity_of_its_events() -> None:
    digest = Digest(collect=0)
    for severity in (Severity.WARNING, Severity.ERROR, Severity.INFO):
        digest.add("name_lookup_failed", severity, 1, "x", 0)
    assert [message.severity for message in digest.due(0)] == [Severity.ERROR]


def test_a_flood_of_one_kind_does_not_delay_another() -> None:
    digest = Digest(collect=1, burst=2, interval=600)
    sent: list[Message] = []
    for second in range(100):
        for _ in range(50):
            add(digest, "request_decision", second)
        if second == 90:
            add(digest, "account_created", second, line="ada")
        sent += digest.due(second)
    kinds = [message.kind for message in sent]
    assert kinds == ["request_decision", "request_decision", "account_created"]
    assert sent[-1].body == "ada"


def test_a_limited_kind_sends_one_message_per_interval_and_loses_no_count() -> None:
    digest = Digest(collect=0, burst=1, interval=60)
    counts, moments = [], []
    for second in range(181):
        add(digest, "account_denied", second)
        for message in digest.due(second):
            counts.append(message.count)
            moments.append(second)
    assert moments == [0, 60, 120, 180]
    assert counts == [1, 60, 60, 60]


def test_a_quiet_kind_can_send_its_burst_again_and_no_more() -> None:
    digest = Digest(collect=0, burst=2, interval=60)
    sent = 0
    for second in (0, 1, 2, 10_000, 10_001, 10_002):
        add(digest, "account_denied", second)
        sent += len(digest.due(second))
    assert sent == 4


def test_the_next_message_of_a_limited_kind_is_due_when_the_limit_allows_it() -> None:
    digest = Digest(collect=5, burst=1, interval=60)
    add(digest, "account_denied", 0)
    assert len(digest.due(5)) == 1
    add(digest, "account_denied", 6)
    assert digest.next_due(6) == 59
    assert digest.due(64) == []
    assert len(digest.due(65)) == 1


def test_draining_does_not_wait_for_more_events_but_keeps_the_limit() -> None:
    digest = Digest(collect=5, burst=1, interval=60)
    add(digest, "stopped", 0)
    assert len(digest.drain(0)) == 1
    add(digest, "stopped", 0)
    assert digest.drain(0) == []


def test_a_long_line_is_clipped() -> None:
    digest = Digest(collect=0)
    add(digest, "stopped", 0, line="x" * 5000)
    (message,) = digest.due(0)
    assert len(message.body) == 400
