"""The audit trail: accept events at once, and pass them to each sink at its own speed.

`record` does no I/O, never waits and never raises. Each sink has a queue, so that a slow or broken sink
delays neither requests nor other sinks. Events are dropped only when a queue is full, and each dropped event
is counted and reported.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Protocol

from shim.audit.coalesce import Coalescer, GroupKey
from shim.audit.events import CoalescedEvent, Event, EventsDropped
from shim.audit.events.schema import kinds
from shim.audit.line_writer import print_to_stderr

BATCH = 64
SWEEP_SECONDS = 1.0
FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 10.0
FINISHING_RETRY_SECONDS = 0.2


class SinkClosed(Exception):
    """Raised by a sink that can never be written to again."""


class Sink(Protocol):
    """A destination of events. It may have an attribute `batch`, the most events of one `write`; by default
    these are `BATCH`."""

    @property
    def name(self) -> str: ...

    async def write(self, events: Sequence[Event]) -> None:
        """Write all of the events of a batch, in order. If it raises, the same events are passed again
        later, except after `SinkClosed`. It runs on the event loop, so run blocking code in a thread."""

    async def close(self) -> None:
        """Write everything before returning. No events follow."""


class Trail:
    """Passes recorded events to the sinks.

    `capacity`: number of events in the queue of a sink. `clock`: monotonic seconds, for the coalescer.
    `now`: seconds since the epoch, for the trail's own events. `on_error` gets the error of a sink.

    Use it only in the thread of the event loop.
    """

    def __init__(
        self,
        sinks: Iterable[Sink],
        coalescer: Coalescer | None = None,
        *,
        capacity: int = 4096,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        on_error: Callable[[str], None] = print_to_stderr,
    ) -> None:
        self._queues = tuple(_Queue(sink, capacity, now, on_error) for sink in sinks)
        self._coalescer = coalescer or Coalescer()
        self._clock = clock
        self._on_error = on_error
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False
        self._faults = 0
        self._recorded = Counter({each.kind: 0 for each in kinds()})

    def start(self) -> None:
        """Start writing, on the running event loop. Events recorded before are written too."""
        self._tasks = tuple(asyncio.create_task(queue.run()) for queue in self._queues)
        self._sweeper = asyncio.create_task(self._sweep_forever())

    def record(self, event: Event) -> None:
        """Write the event, or count it if it is one of many."""
        try:
            self._recorded[event.kind] += 1
            if isinstance(event, CoalescedEvent):
                for one in self._coalescer.offer(event, self._clock()):
                    self._put(one)
            else:
                self._put(event)
        except Exception as fault:  # noqa: BLE001 - a request never fails because of its audit event
            self._faults += 1
            if self._faults == 1:
                with suppress(Exception):
                    self._on_error(f"an event could not be recorded: {fault!r}")

    def count_suppressed(self, peer: str, group_key: GroupKey, time: float) -> bool:
        """Count an event at `time` (seconds since the epoch) without creating it. Return False if it must be
        recorded instead, because it would be written."""
        suppressed = self._coalescer.count_suppressed(peer, group_key, time, self._clock())
        if suppressed:
            self._recorded[group_key[0]] += 1
        return suppressed

    def sweep(self) -> None:
        """Write the summaries that are due. The trail does this once a second."""
        for summary in self._coalescer.expired_summaries(self._clock()):
            self._put(summary)

    def dropped(self) -> dict[str, int]:
        """Return the number of dropped events of each sink, by its name."""
        return {queue.sink.name: queue.dropped + self._faults for queue in self._queues}

    def recorded(self) -> dict[str, int]:
        """Return the number of recorded events of each kind."""
        return dict(self._recorded)

    def queued(self) -> dict[str, int]:
        """Return the number of events in the queue of each sink, by its name."""
        return {queue.sink.name: len(queue) for queue in self._queues}

    async def close(self, max_seconds: float = 5.0) -> None:
        """Write all pending events and summaries, for at most `max_seconds` seconds."""
        if self._closed:
            return
        for summary in self._coalescer.drain():
            self._put(summary, beyond_capacity=True)
        self._closed = True
        if self._sweeper is None:
            self.start()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for queue in self._queues:
            queue.finish()
        if not self._tasks:
            return
        _, unfinished = await asyncio.wait(self._tasks, timeout=max_seconds)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for queue in self._queues:
            queue.report_dropped()

    def _put(self, event: Event, *, beyond_capacity: bool = False) -> None:
        for queue in self._queues:
            if self._closed:
                queue.drop(event)
            else:
                queue.put(event, beyond_capacity=beyond_capacity)

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sweep()


class _Queue:
    """The queue of one sink. An event stays in it until the sink has written it."""

    def __init__(
        self, sink: Sink, capacity: int, now: Callable[[], float], on_error: Callable[[str], None]
    ) -> None:
        self.sink = sink
        self.dropped = 0
        self._batch: int = getattr(sink, "batch", BATCH)
        self._capacity = capacity
        self._now = now
        self._on_error = on_error
        self._events: deque[Event] = deque()
        self._unreported = 0
        self._wake = asyncio.Event()
        self._finishing = asyncio.Event()
        self._retry = FIRST_RETRY_SECONDS
        self._failing = False
        self._sink_closed = False

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event, *, beyond_capacity: bool) -> None:
        full = len(self._events) >= self._capacity and not beyond_capacity
        if full or self._sink_closed:
            self.drop(event)
            return
        self._events.append(event)
        self._wake.set()

    def drop(self, event: Event) -> None:
        count = event.count if isinstance(event, CoalescedEvent) else 1
        self.dropped += count
        self._unreported += count

    def finish(self) -> None:
        self._finishing.set()
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._events:
                await self._write_some()
            if self._finishing.is_set():
                await self._close_sink()
                return

    def report_dropped(self) -> None:
        for event in self._events:
            self.drop(event)
        self._events.clear()
        if self._unreported:
            self._on_error(f"{self._unreported} events could not be written to {self.sink.name}")
            self._unreported = 0

    async def _write_some(self) -> None:
        batch = [self._events[i] for i in range(min(self._batch, len(self._events)))]
        try:
            await self.sink.write(batch)
        except SinkClosed as fault:
            self._give_up(fault)
            return
        except Exception as fault:  # noqa: BLE001 - a sink may raise any exception
            await self._wait_after(fault)
            return
        for _ in batch:
            self._events.popleft()
        if self._failing:
            self._failing = False
            self._retry = FIRST_RETRY_SECONDS
            self._on_error(f"{self.sink.name} can be written to again")
        if self._unreported:
            unreported, self._unreported = self._unreported, 0
            self._events.append(
                EventsDropped(time=self._now(), sink=self.sink.name, dropped=unreported)
            )
        await asyncio.sleep(0)  # let other tasks run between two batches

    async def _wait_after(self, fault: Exception) -> None:
        if not self._failing:
            self._failing = True
            self._on_error(f"{self.sink.name} can't be written to, and is tried again: {fault!r}")
        if self._finishing.is_set():
            await asyncio.sleep(FINISHING_RETRY_SECONDS)
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._finishing.wait(), self._retry)
        self._retry = min(self._retry * 2, LAST_RETRY_SECONDS)

    def _give_up(self, fault: SinkClosed) -> None:
        self._sink_closed = True
        self._on_error(f"{self.sink.name} gets no more events: {fault}")
        while self._events:
            self.drop(self._events.popleft())

    async def _close_sink(self) -> None:
        try:
            await self.sink.close()
        except Exception as fault:  # noqa: BLE001 - a sink may raise any exception
            self._on_error(f"{self.sink.name} could not be closed: {fault!r}")
