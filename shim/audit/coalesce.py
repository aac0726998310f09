"""Coalesce floods of events: write the first events of a kind, and count the rest.

Pure: the caller passes the time, and nothing is written here. Each event is returned exactly once, either
itself or in the count of a summary. The output of one window is bounded for any input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias, TypeVar

from shim.audit.events import CoalescedEvent

GroupKey: TypeAlias = tuple[str, ...]
Key = TypeVar("Key")


class Coalescer:
    """Counts events together that share their peer and their group key.

    `burst`: number of events to write in full per window.
    `window`: seconds from the first event until the summary.
    `capacity`: number of pairs of peer and group key to count separately; beyond it, events share one count
    per group key.

    One window yields at most `(capacity + number of group keys) * (burst + 1)` events.
    """

    __slots__ = ("_burst", "_by_group", "_by_peer", "_capacity", "_window")

    def __init__(self, *, burst: int = 5, window: float = 60.0, capacity: int = 128) -> None:
        self._burst = burst
        self._window = window
        self._capacity = capacity
        # Both are in the order in which their windows began, which is also the order of their ends.
        self._by_peer: dict[tuple[str | None, GroupKey], _Bucket] = {}
        self._by_group: dict[GroupKey, _Bucket] = {}

    def offer(self, event: CoalescedEvent, now: float) -> list[CoalescedEvent]:
        """Return the events to write after this event. `now` is in seconds of a monotonic clock."""
        out = self.expired_summaries(now)
        if self._bucket(event, now).accept(event):
            out.append(event)
        return out

    def count_suppressed(
        self, peer: str | None, group_key: GroupKey, time: float, now: float
    ) -> bool:
        """Count one more event of this peer and group key if it would not be written. Return False if it must
        be offered instead. `time` is that of the event."""
        bucket = self._by_peer.get((peer, group_key))
        if bucket is None:
            if len(self._by_peer) < self._capacity:
                return False
            bucket = self._by_group.get(group_key)
        if bucket is None or bucket.sample is None or bucket.window_start <= now - self._window:
            return False
        bucket.suppressed += 1
        bucket.last_time = time
        return True

    def expired_summaries(self, now: float) -> list[CoalescedEvent]:
        """Return the summaries of the windows that have ended."""
        if not self._by_peer and not self._by_group:
            return []
        window_start = now - self._window
        return [*_ended(self._by_peer, window_start), *_ended(self._by_group, window_start)]

    def drain(self) -> list[CoalescedEvent]:
        """Return the summaries of all windows, also of those that have not ended."""
        return self.expired_summaries(float("inf"))

    def _bucket(self, event: CoalescedEvent, now: float) -> _Bucket:
        key = (event.peer, event.group_key)
        bucket = self._by_peer.get(key)
        if bucket is None and len(self._by_peer) < self._capacity:
            bucket = self._by_peer[key] = _Bucket(now, self._burst, many_peers=False)
        if bucket is None:
            bucket = self._by_group.get(event.group_key)
        if bucket is None:
            bucket = self._by_group[event.group_key] = _Bucket(now, self._burst, many_peers=True)
        return bucket


class _Bucket:
    """One window: `remaining` more events are written, then `suppressed` counts the rest; `sample` is the
    first."""

    __slots__ = ("last_time", "many_peers", "remaining", "sample", "suppressed", "window_start")

    def __init__(self, window_start: float, remaining: int, *, many_peers: bool) -> None:
        self.window_start = window_start
        self.remaining = remaining
        self.many_peers = many_peers
        self.suppressed = 0
        self.last_time = 0.0
        self.sample: CoalescedEvent | None = None

    def accept(self, event: CoalescedEvent) -> bool:
        if self.remaining > 0:
            self.remaining -= 1
            return True
        if self.sample is None:
            self.sample = event
        self.suppressed += event.count
        self.last_time = event.time
        return False

    def summary(self) -> CoalescedEvent | None:
        if self.sample is None:
            return None
        return self.sample.summary(self.suppressed, self.last_time, many_peers=self.many_peers)


def _ended(buckets: dict[Key, _Bucket], window_start: float) -> Iterator[CoalescedEvent]:
    while buckets:
        key = next(iter(buckets))
        if buckets[key].window_start > window_start:
            return
        summary = buckets.pop(key).summary()
        if summary is not None:
            yield summary
