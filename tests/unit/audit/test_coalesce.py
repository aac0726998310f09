"""Coalescing of repeated events: a limited number of lines, exact counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from shim.audit.coalesce import Coalescer
from shim.audit.events import CoalescedEvent
from shim.trust.reasons import PathClass, Reason
from tests.support.audit_samples import request_decision, request_failed


def offer_all(coalescer: Coalescer, count: int, *, now: float = 0.0) -> list[CoalescedEvent]:
    return [
        line
        for i in range(count)
        for line in coalescer.offer(request_decision(time=1000.0 + i, request_id=f"r{i}"), now)
    ]


def total(lines: Iterable[CoalescedEvent]) -> int:
    return sum(line.count for line in lines)


def test_the_first_events_of_a_group_are_written_in_full() -> None:
    lines = offer_all(Coalescer(burst=3), 100)

    assert [line.count for line in lines] == [1, 1, 1]


def test_the_rest_is_summarized_when_the_window_ends() -> None:
    coalescer = Coalescer(burst=3, window=60.0)
    offer_all(coalescer, 100)

    assert coalescer.expired_summaries(59.9) == []
    (summary,) = coalescer.expired_summaries(60.0)

    assert summary.count == 97
    assert (summary.first_time, summary.last_time) == (1003.0, 1099.0)
    assert coalescer.expired_summaries(1000.0) == []


def repeat(coalescer: Coalescer, peer: str | None, time: float, now: float = 0.0) -> bool:
    return coalescer.count_suppressed(peer, request_decision().group_key, time, now)


def test_an_event_that_would_only_be_counted_need_not_be_built() -> None:
    coalescer = Coalescer(burst=2, window=60.0)
    peer = request_decision().peer
    suppressed = []
    for i in range(10):
        suppressed.append(repeat(coalescer, peer, 1000.0 + i))
        if not suppressed[-1]:
            coalescer.offer(request_decision(time=1000.0 + i), 0.0)

    # Two are written, the third is the sample.
    assert suppressed == [False] * 3 + [True] * 7
    (summary,) = coalescer.expired_summaries(60.0)
    assert (summary.count, summary.first_time, summary.last_time) == (8, 1002.0, 1009.0)


def test_an_event_of_another_peer_group_or_window_must_be_built() -> None:
    coalescer = Coalescer(burst=1, window=60.0)
    offer_all(coalescer, 3)

    assert repeat(coalescer, request_decision().peer, 1.0, now=59.9)
    assert not repeat(coalescer, request_decision().peer, 1.0, now=60.0)
    assert not repeat(coalescer, "192.0.2.8", 1.0)
    assert not coalescer.count_suppressed(
        request_decision().peer, request_failed().group_key, 1.0, 0.0
    )


@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.sampled_from(list(PathClass)), st.integers(0, 9)),
        max_size=200,
    )
)
def test_not_building_events_does_not_change_the_output(
    requests: list[tuple[str, PathClass, int]],
) -> None:
    offered = Coalescer(burst=2, window=20.0, capacity=3)
    repeated = Coalescer(burst=2, window=20.0, capacity=3)
    now, lines, others = 0.0, [], []
    for number, (peer, path_class, pause) in enumerate(requests):
        now += pause
        event = request_decision(peer=peer, path_class=path_class, time=float(number))
        lines += offered.offer(event, now)
        others += repeated.expired_summaries(now)
        if not repeated.count_suppressed(peer, event.group_key, event.time, now):
            others += repeated.offer(event, now)
    assert others + repeated.drain() == lines + offered.drain()


def test_a_window_without_suppressed_events_has_no_summary() -> None:
    coalescer = Coalescer(burst=3)
    offer_all(coalescer, 3)

    assert coalescer.drain() == []


def test_a_new_window_begins_with_full_events_after_the_summary_of_the_old_one() -> None:
    coalescer = Coalescer(burst=1, window=60.0)
    offer_all(coalescer, 5)

    lines = offer_all(coalescer, 2, now=61.0)

    assert [line.count for line in lines] == [4, 1]
    assert total(coalescer.drain()) == 1


def test_peers_reasons_and_path_classes_are_counted_separately() -> None:
    coalescer = Coalescer(burst=1)
    events = [
        request_decision(),
        request_decision(peer="192.0.2.8"),
        request_decision(reason=Reason.PUBLIC_PATH),
        request_decision(path_class=PathClass.PROTECTED),
        request_failed(),
        request_failed(reason="timeout"),
    ]

    lines = [line for event in events for line in coalescer.offer(event, 0.0)]

    assert lines == events


def test_beyond_the_capacity_peers_share_one_exact_count_per_kind() -> None:
    coalescer = Coalescer(burst=1, capacity=2)
    lines: list[CoalescedEvent] = []
    for i in range(50):
        lines += coalescer.offer(request_decision(peer=f"2001:db8::{i:x}"), 0.0)
        lines += coalescer.offer(
            request_decision(peer=f"2001:db8::{i:x}", reason=Reason.PUBLIC_PATH), 0.0
        )

    assert len(lines) == 4  # two of its own, one of each kind that is shared
    shared = coalescer.drain()
    assert {line.peer for line in shared} == {CoalescedEvent.MANY}
    assert total(lines) + total(shared) == 100


OFFERS = st.lists(
    st.tuples(
        st.sampled_from(["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "2001:db8::1"]),
        st.sampled_from([Reason.UNTRUSTED_PEER, Reason.PUBLIC_PATH, Reason.MALFORMED_HEAD]),
        st.sampled_from(PathClass),
        st.sampled_from([0.0, 0.0, 0.0, 0.5, 3.0, 11.0]),  # seconds since the previous one
    ),
    max_size=200,
)


@given(OFFERS, st.integers(0, 3), st.integers(0, 4))
def test_every_event_is_counted_and_lines_are_limited(
    offers: list[tuple[str, Reason, PathClass, float]], burst: int, capacity: int
) -> None:
    window = 10.0
    coalescer = Coalescer(burst=burst, window=window, capacity=capacity)
    now = 0.0
    offered: Counter[tuple[str, ...]] = Counter()
    written: Counter[tuple[str, ...]] = Counter()
    lines: list[CoalescedEvent] = []
    for peer, reason, path_class, wait in offers:
        now += wait
        event = request_decision(time=1000.0 + now, peer=peer, reason=reason, path_class=path_class)
        offered[event.group_key] += 1
        lines += coalescer.offer(event, now)
    lines += coalescer.drain()

    for line in lines:
        written[line.group_key] += line.count
        assert line.count == 1 or (line.first_time or 0.0) <= (line.last_time or 0.0)
    assert written == offered
    windows = now // window + 1
    assert len(lines) <= windows * (capacity + 9) * (burst + 1)
