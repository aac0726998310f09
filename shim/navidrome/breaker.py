"""A circuit breaker: after so many failures in a row nothing is tried for a while.

Pure: time is handed in. Closed, it lets every call pass. Open, none. When its time is over, one call is
let through, and what becomes of it decides.
"""

from __future__ import annotations


class Breaker:
    """Opens after `failures` in a row, for `first` seconds and twice as long each time, at most `last`."""

    __slots__ = ("_failed", "_failures", "_first", "_last", "_open_until", "_pause", "_probing")

    def __init__(self, failures: int = 5, first: float = 1.0, last: float = 30.0) -> None:
        self._failures = failures
        self._first = first
        self._last = last
        self._failed = 0
        self._pause = first
        self._open_until: float | None = None
        self._probing = False

    def wait(self, now: float) -> float:
        """Seconds until a call may be made; 0: now. Who gets 0 has to say what became of it."""
        if self._open_until is None:
            return 0.0
        if now < self._open_until:
            return self._open_until - now
        if self._probing:
            return self._first
        self._probing = True
        return 0.0

    def succeeded(self) -> None:
        """A call got a response."""
        self._failed = 0
        self._pause = self._first
        self._open_until = None
        self._probing = False

    def failed(self, now: float) -> None:
        """A call got none."""
        self._failed += 1
        if self._probing or (self._open_until is None and self._failed >= self._failures):
            self._open_until = now + self._pause
            self._pause = min(self._last, self._pause * 2)
        self._probing = False

    def cancelled(self) -> None:
        """A call was ended by who made it: that says nothing."""
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether calls are held back."""
        return self._open_until is not None
