"""Floods made small: the first events of a kind are written, the rest are counted.

Pure: time is handed in, nothing is written here. Whatever is offered comes out exactly once, as itself or
in the count of a summary, and what comes out of one window is bounded whatever goes in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias, TypeVar

from shim.audit.events import CoalescedEvent

GroupKey: TypeAlias = tuple[str, ...]
Key = TypeVar("Key")


class Coalescer:
    """Counts events together that share their peer and their `kin`.

    `burst`: how many of them are written in full within a window.
    `window`: seconds from the first of them until what was held back is summed up.
    `capacity`: how many peers and kins are told apart; beyond it events share one count per kin.

    One window yields at most `(capacity + number of kins) * (burst + 1)` events.
    """

    __slots__ = ("_burst", "_by_group", "_by_peer", "_capacity", "_window")

    def __init__(self, *, burst: int = 5, window: float = 60.0, capacity: int = 128) -> None:
        self._burst = burst
        self._window = window
        self._capacity = capacity
        # Both in the order in which their windows began, which is the order in which they end.
        self._by_peer: dict[tuple[str, GroupKey], _Bucket] = {}
        self._by_group: dict[GroupKey, _Bucket] = {}

    def offer(self, event: CoalescedEvent, now: float) -> list[CoalescedEvent]:
        """What is to be written because of this event, `now` in seconds of a monotonic clock."""
        out = self.expired_summaries(now)
        if self._bucket(event, now).accept(event):
            out.append(event)
        return out

    def count_suppressed(self, peer: str, group_key: GroupKey, time: float, now: float) -> bool:
        """Count one more event of this peer and kin, of which nothing would be written but that; `time` is
        the event's own. False where it has to be offered."""
        bucket = self._by_peer.get((peer, group_key))
        if bucket is None:
            if len(self._by_peer) < self._capacity:
                return False
            bucket = self._by_group.get(group_key)
        if bucket is None or bucket.sample is None or bucket.began <= now - self._window:
            return False
        bucket.suppressed += 1
        bucket.last_time = time
        return True

    def expired_summaries(self, now: float) -> list[CoalescedEvent]:
        """The summaries of the windows that have ended."""
        if not self._by_peer and not self._by_group:
            return []
        began = now - self._window
        return [*_ended(self._by_peer, began), *_ended(self._by_group, began)]

    def drain(self) -> list[CoalescedEvent]:
        """The summaries of all windows, ended or not: nothing is held back after it."""
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
    """One window of one kind: `room` more are written, then `held` are counted, `sample` the first."""

    __slots__ = ("began", "last_time", "many_peers", "room", "sample", "suppressed")

    def __init__(self, began: float, room: int, *, many_peers: bool) -> None:
        self.began = began
        self.room = room
        self.many_peers = many_peers
        self.suppressed = 0
        self.last_time = 0.0
        self.sample: CoalescedEvent | None = None

    def accept(self, event: CoalescedEvent) -> bool:
        if self.room > 0:
            self.room -= 1
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


def _ended(buckets: dict[Key, _Bucket], began: float) -> Iterator[CoalescedEvent]:
    while buckets:
        key = next(iter(buckets))
        if buckets[key].began > began:
            return
        summary = buckets.pop(key).summary()
        if summary is not None:
            yield summary
