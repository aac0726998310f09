"""The trail: it accepts events without waiting, and reports every loss."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from shim.audit.coalesce import Coalescer
from shim.audit.events import CoalescedEvent, Event, EventsDropped
from shim.audit.trail import SinkClosed, Trail
from tests.support.audit_samples import access, request_decision


class MemorySink:
    """A sink that records its events, and fails as often as the test sets."""

    def __init__(self, name: str = "memory", faults: Sequence[Exception] = ()) -> None:
        self.name = name
        self.batch = 64
        self.events: list[Event] = []
        self.batches: list[int] = []
        self.closed = False
        self.faults = list(faults)

    async def write(self, events: Sequence[Event]) -> None:
        if self.faults:
            raise self.faults.pop(0)
        self.events.extend(events)
        self.batches.append(len(events))

    async def close(self) -> None:
        self.closed = True


class BlockedSink(MemorySink):
    """A sink that never returns."""

    async def write(self, events: Sequence[Event]) -> None:
        await asyncio.Event().wait()
        await super().write(events)


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def errors() -> list[str]:
    return []


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shim.audit.trail.FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr("shim.audit.trail.FINISHING_RETRY_SECONDS", 0.001)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.001)
    pytest.fail("it never came to pass")


async def test_events_are_written_in_order_to_every_sink() -> None:
    sinks = [MemorySink("one"), MemorySink("two")]
    trail = Trail(sinks)
    events = [access(request_id=str(i)) for i in range(200)]
    for event in events[:100]:
        trail.record(event)
    trail.start()
    for event in events[100:]:
        trail.record(event)

    await until(lambda: all(len(sink.events) == 200 for sink in sinks))
    await trail.close()

    assert [sink.events for sink in sinks] == [events, events]
    assert all(sink.closed for sink in sinks)
    assert max(sinks[0].batches) <= 64


async def test_a_sink_with_a_larger_batch_gets_all_events_that_wait() -> None:
    sink, other = MemorySink(), MemorySink("other")
    sink.batch = 1000
    trail = Trail([sink, other])
    for number in range(150):
        trail.record(access(request_id=str(number)))
    trail.start()
    await trail.close()
    assert sink.batches == [150]
    assert other.batches == [64, 64, 22]


async def test_closing_writes_all_queued_and_coalesced_events() -> None:
    sink = MemorySink()
    trail = Trail([sink], Coalescer(burst=2), capacity=3)
    trail.start()
    for i in range(100):
        trail.record(request_decision(time=float(i)))
    trail.record(access())

    await trail.close()

    assert sum(e.count for e in sink.events if isinstance(e, CoalescedEvent)) == 100
    assert len(sink.events) == 4
    assert trail.dropped() == {"memory": 0}


async def test_closing_works_without_a_start_and_twice() -> None:
    sink = MemorySink()
    trail = Trail([sink])
    trail.record(access())

    await trail.close()
    await trail.close()

    assert sink.events == [access()]


async def test_a_summary_is_written_when_it_is_due() -> None:
    clock = Clock()
    sink = MemorySink()
    trail = Trail([sink], Coalescer(burst=1, window=60.0), clock=clock)
    trail.start()
    for _ in range(3):
        trail.record(request_decision())

    clock.seconds = 60.0
    trail.sweep()
    await until(lambda: len(sink.events) == 2)
    await trail.close()

    assert [e.count for e in sink.events if isinstance(e, CoalescedEvent)] == [1, 2]


async def test_dropped_events_are_counted_and_reported_in_the_sink_itself() -> None:
    sink = MemorySink()
    trail = Trail([sink], capacity=2, now=lambda: 7.0)
    for i in range(5):
        trail.record(access(request_id=str(i)))

    assert trail.dropped() == {"memory": 3}
    await trail.close()

    assert sink.events == [
        access(request_id="0"),
        access(request_id="1"),
        EventsDropped(time=7.0, sink="memory", dropped=3),
    ]


async def test_a_stuck_sink_blocks_neither_the_others_nor_shutdown(errors: list[str]) -> None:
    blocked, other = BlockedSink("blocked"), MemorySink("other")
    trail = Trail([blocked, other], on_error=errors.append)
    trail.start()
    trail.record(access())
    await until(lambda: other.events == [access()])

    await trail.close(max_seconds=0.01)

    assert other.closed
    assert trail.dropped() == {"blocked": 1, "other": 0}
    assert errors == ["1 events could not be written to blocked"]


async def test_a_failing_sink_is_reported_once_and_gets_every_event_later(
    errors: list[str],
) -> None:
    sink = MemorySink(faults=[OSError("disk full")] * 5)
    trail = Trail([sink], on_error=errors.append)
    trail.start()
    trail.record(access(request_id="1"))
    await until(lambda: len(sink.faults) < 5)
    trail.record(access(request_id="2"))

    await until(lambda: len(sink.events) == 2)
    await trail.close()

    assert sink.events == [access(request_id="1"), access(request_id="2")]
    assert len(errors) == 2
    assert "disk full" in errors[0]
    assert "again" in errors[1]


async def test_a_sink_that_fails_while_closing_is_retried_until_the_deadline(
    errors: list[str],
) -> None:
    sink = MemorySink(faults=[OSError("busy")] * 3)
    trail = Trail([sink], on_error=errors.append)
    trail.record(access())

    await trail.close()

    assert sink.events == [access()]


async def test_a_closed_sink_is_not_used_and_its_missed_events_are_counted(
    errors: list[str],
) -> None:
    sink = MemorySink(faults=[SinkClosed("nobody reads")])
    trail = Trail([sink], on_error=errors.append)
    trail.start()
    trail.record(access())
    await until(lambda: bool(errors))
    trail.record(access())
    trail.record(request_decision().summary(40, 9.0, many_peers=False))

    assert trail.dropped() == {"memory": 42}
    await trail.close()
    assert sink.events == []
    assert errors[0] == "memory gets no more events: nobody reads"


async def test_recording_never_raises(errors: list[str]) -> None:
    class Faulty(Coalescer):
        def offer(self, event: CoalescedEvent, now: float) -> list[CoalescedEvent]:
            raise RuntimeError("an internal error", event, now)

    trail = Trail([MemorySink()], Faulty(), on_error=errors.append)

    trail.record(request_decision())
    trail.record(request_decision())
    assert len(errors) == 1
    assert trail.dropped() == {"memory": 2}

    await trail.close()
    trail.record(access())
    assert trail.dropped() == {"memory": 3}


async def test_recorded_events_are_counted_by_kind_including_those_in_a_summary() -> None:
    trail = Trail([BlockedSink()], Coalescer(burst=1), capacity=2)
    for _ in range(3):
        trail.record(request_decision())
    event = request_decision(peer="192.0.2.7")
    assert trail.count_suppressed("192.0.2.7", event.group_key, event.time)
    trail.record(access())

    counts = trail.recorded()

    assert (counts["request_decision"], counts["access"]) == (4, 1)
    assert counts["reload_rejected"] == 0
    assert trail.queued() == {"memory": 2}


async def test_an_event_that_must_be_stored_is_not_counted_before() -> None:
    trail = Trail([MemorySink()])
    event = request_decision(peer="192.0.2.7")
    assert not trail.count_suppressed("192.0.2.7", event.group_key, event.time)
    assert trail.recorded()["request_decision"] == 0
