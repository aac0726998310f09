"""A circuit breaker: after several failures in a row, calls fail at once for a while.

Pure: the caller passes the time. Closed, the breaker allows every call; open, none. When its time is over, it
allows one call, whose result closes or opens it.
"""

from __future__ import annotations


class Breaker:
    """Opens after `failures` in a row, for `first` seconds, then twice as long each time, at most `last`."""

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
        """Return the seconds until a call is allowed; 0 is now. After 0, the caller must report the
        result."""
        if self._open_until is None:
            return 0.0
        if now < self._open_until:
            return self._open_until - now
        if self._probing:
            return self._first
        self._probing = True
        return 0.0

    def succeeded(self) -> None:
        """Report that a call got a response."""
        self._failed = 0
        self._pause = self._first
        self._open_until = None
        self._probing = False

    def failed(self, now: float) -> None:
        """Report that a call got no response."""
        self._failed += 1
        if self._probing or (self._open_until is None and self._failed >= self._failures):
            self._open_until = now + self._pause
            self._pause = min(self._last, self._pause * 2)
        self._probing = False

    def cancelled(self) -> None:
        """Report that the caller cancelled the call, which has no effect on the state."""
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether the breaker is open."""
        return self._open_until is not None
