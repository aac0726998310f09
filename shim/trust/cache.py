"""A bounded memory that a flood can't push others out of.

It admits what it is offered a second time, so that things that come once leave no trace. Room is made by
generations: what was asked for lately is in `recent`; when that is full it becomes the older generation,
and of the older one only what is asked for again comes back. So what is in use stays, whatever else
passes by.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_NOTED_PER_ENTRY = 2  # keys seen once that are noted, for each entry of a generation


class AdmissionCache(Generic[K, V]):
    """Values by key.

    A generation holds at most `entries` of them, and at most `size` bytes as `cost` tells; two of them are
    kept. `recent` may be read directly where a call is too dear: it is replaced, never changed in a way
    that matters to a reader.
    """

    __slots__ = (
        "_cost",
        "_entries",
        "_max_seen_once",
        "_older",
        "_seen_once",
        "_size",
        "_used",
        "recent",
    )

    def __init__(self, entries: int, size: int, cost: Callable[[K, V], int]) -> None:
        self.recent: dict[K, V] = {}
        self._older: dict[K, V] = {}
        self._seen_once: set[int] = set()
        self._entries = entries
        self._max_seen_once = _NOTED_PER_ENTRY * entries
        self._size = size
        self._used = 0
        self._cost = cost

    def __len__(self) -> int:
        return len(self.recent) + len(self._older)

    @property
    def size(self) -> int:
        """The bytes in use, as `cost` tells."""
        generations = (self.recent, self._older)
        return sum(self._cost(key, value) for each in generations for key, value in each.items())

    def get(self, key: K) -> V | None:
        """What is remembered under this key, or None."""
        value = self.recent.get(key)
        if value is None and self._older:
            value = self._older.pop(key, None)
            if value is not None:
                self.put(key, value)
        return value

    def offer(self, key: K, value: V, key_hash: int | None = None) -> None:
        """Remember the value, if its key was offered before; `mark` tells that, where another key may come
        to have the hash of this one."""
        seen_once = self._seen_once
        if key_hash is None:
            key_hash = hash(key)
        if key_hash in seen_once:
            seen_once.discard(key_hash)
            self.put(key, value)
            return
        seen_once.add(key_hash)
        if len(seen_once) > self._max_seen_once:
            seen_once.clear()

    def put(self, key: K, value: V) -> None:
        """Remember the value at once: for what nobody can make up."""
        cost = self._cost(key, value)
        if cost > self._size:
            return
        if len(self.recent) >= self._entries or self._used + cost > self._size:
            self._older, self.recent, self._used = self.recent, {}, 0
        self.recent[key] = value
        self._used += cost
