"""The pauses of a reader with a limited rate."""

from __future__ import annotations

import time

_STALL_SECONDS = 2.0


class ReadRate:
    """Limit a reader to a rate in MB/s; it reads nothing in the first two seconds. 0 is no limit."""

    def __init__(self, megabytes_per_second: float) -> None:
        self._rate = megabytes_per_second * 1e6
        self._start = time.monotonic() + _STALL_SECONDS

    def delay(self, taken: int) -> float:
        """Return the seconds to wait before the next read, after `taken` bytes."""
        if not self._rate:
            return 0.0
        return max(0.0, self._start + taken / self._rate - time.monotonic())
