"""Follow the trail: new events for viewers in a browser or a program.

Each viewer reads from the trail at its own speed, a bounded number of events at a time, so a slow viewer
keeps no events in memory. While nothing is stored, all viewers share one small query a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from shim.audit.store.filters import Filters
from shim.audit.store.reader import TrailReader
from shim.audit.store.results import Position, StoredEvent

MAX_VIEWERS = 16
# Events that are read at a time, matching or not.
BATCH = 200
POLL_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0
# After this time a viewer connects again, so that its rights are checked in full: behind the edge, an open
# stream does not show that an administrator has lost the group.
VIEW_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Batch:
    """New events, perhaps none, and the position after them."""

    events: tuple[StoredEvent, ...]
    position: Position


class LiveTrail:
    """The viewers of one process."""

    def __init__(self, reader: TrailReader) -> None:
        self._reader = reader
        self._viewers = 0
        self._closed = asyncio.Event()
        self._end: Position | None = None
        self._end_at = float("-inf")
        self._reading_end = asyncio.Lock()

    @property
    def is_full(self) -> bool:
        """Return whether there are `MAX_VIEWERS`."""
        return self._viewers >= MAX_VIEWERS

    def close(self) -> None:
        """End every view."""
        self._closed.set()

    async def follow(
        self,
        filters: Filters,
        position: Position | None,
        is_allowed: Callable[[], bool] = lambda: True,
    ) -> AsyncGenerator[Batch, None]:
        """Yield the events that match, from `position` or from now on, and at least every
        `HEARTBEAT_SECONDS` an empty batch. Ends at once if there are too many viewers, after `VIEW_SECONDS`,
        and when `is_allowed` returns False. Raises what the reader raises."""
        if self.is_full:
            return
        self._viewers += 1
        try:
            async with aclosing(self._follow(filters, position, is_allowed)) as batches:
                async for batch in batches:
                    yield batch
        finally:
            self._viewers -= 1

    async def _follow(
        self, filters: Filters, position: Position | None, is_allowed: Callable[[], bool]
    ) -> AsyncGenerator[Batch, None]:
        deadline = time.monotonic() + VIEW_SECONDS
        position = await self._current_end() if position is None else position
        yield Batch((), position)
        heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS
        while not self._closed.is_set() and time.monotonic() < deadline:
            position = _clamp_to_end(position, await self._current_end())
            events, after = await self._reader.in_thread(partial(_read_after, position, filters))
            moved, position = after != position, after
            self._end = _latest_end(self._end, position)
            if events or time.monotonic() >= heartbeat_at:
                if not is_allowed():
                    return
                heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS
                yield Batch(events, position)
            if not moved:
                await self._wait_for_more(position)

    async def _wait_for_more(self, position: Position) -> None:
        """Wait until something was stored, at most until the next heartbeat."""
        deadline = time.monotonic() + HEARTBEAT_SECONDS
        while time.monotonic() < deadline and position == await self._current_end():
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    await self._closed.wait()
            except TimeoutError:
                continue
            return

    async def _current_end(self) -> Position:
        """Return the end of the trail, as of the last second."""
        async with self._reading_end:
            if self._end is None or time.monotonic() - self._end_at >= POLL_SECONDS:
                self._end = await self._reader.in_thread(TrailReader.end)
                self._end_at = time.monotonic()
            return self._end


def _read_after(
    position: Position, filters: Filters, reader: TrailReader
) -> tuple[tuple[StoredEvent, ...], Position]:
    return reader.after(position, BATCH, filters)


def _latest_end(end: Position | None, position: Position) -> Position:
    """Return the end of the trail, of which this position was read."""
    if end is None:
        return position
    return Position(max(end.requests, position.requests), max(end.changes, position.changes))


def _clamp_to_end(position: Position, end: Position) -> Position:
    """Return the position; at the beginning of a stream if it is beyond the stream's end, because the trail
    was replaced by a new one."""
    return Position(
        position.requests if position.requests <= end.requests else 0,
        position.changes if position.changes <= end.changes else 0,
    )
