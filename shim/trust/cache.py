"""A bounded cache whose entries a flood of unique keys cannot evict.

A value is stored when its key is offered for the second time, so that keys that occur once use no space.
Eviction works by generations: recently used entries are in `recent`. When `recent` is full it becomes the
older generation, and entries of the previous older generation are evicted unless they were used again. So
entries in use stay, regardless of other keys.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_NOTED_PER_ENTRY = 2  # hashes of keys seen once that are kept, per entry of a generation


class AdmissionCache(Generic[K, V]):
    """A cache with values by key.

    A generation holds at most `entries` values and at most `size` bytes, computed by `cost`; two
    generations are kept. `recent` may be read directly where a call is too slow: it is replaced as a
    whole, and otherwise changes in no way that affects a reader. `new` returns the empty mapping of a
    generation.
    """

    __slots__ = (
        "_cost",
        "_entries",
        "_max_seen_once",
        "_new",
        "_older",
        "_seen_once",
        "_size",
        "_used",
        "recent",
    )

    def __init__(
        self,
        entries: int,
        size: int,
        cost: Callable[[K, V], int],
        new: Callable[[], dict[K, V]] = dict,
    ) -> None:
        self._new = new
        self.recent: dict[K, V] = new()
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
        """Return the size of all entries in bytes, computed by `cost`."""
        generations = (self.recent, self._older)
        return sum(self._cost(key, value) for each in generations for key, value in each.items())

    def get(self, key: K) -> V | None:
        """Return the value for this key, or None."""
        value = self.recent.get(key)
        return self.recall(key) if value is None and self._older else value

    def recall(self, key: K) -> V | None:
        """Return the value for a key that is not in `recent`, or None. The entry is recent from now on."""
        value = self._older.pop(key, None)
        if value is not None:
            self.put(key, value)
        return value

    def offer(self, key: K, value: V, key_hash: int | None = None) -> None:
        """Store the value if its key was offered before.

        `key_hash` identifies the key if another key may later have the same hash.
        """
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
        """Store the value at once. Use it only for values that a client cannot make up."""
        cost = self._cost(key, value)
        if cost > self._size:
            return
        if len(self.recent) >= self._entries or self._used + cost > self._size:
            self._older, self.recent, self._used = self.recent, self._new(), 0
        self.recent[key] = value
        self._used += cost
