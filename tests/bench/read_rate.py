"""How long a slow reader rests, and nothing else."""

from __future__ import annotations

import time

_STALL_SECONDS = 2.0


class ReadRate:
    """A reader of so many MB/s, that reads nothing for its first two seconds. At 0 it never rests."""

    def __init__(self, megabytes_per_second: float) -> None:
        self._rate = megabytes_per_second * 1e6
        self._start = time.monotonic() + _STALL_SECONDS

    def delay(self, taken: int) -> float:
        """Seconds to wait before reading on, `taken` bytes having been read."""
        if not self._rate:
            return 0.0
        return max(0.0, self._start + taken / self._rate - time.monotonic())
