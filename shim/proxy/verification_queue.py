"""A lane for what takes as long as many requests: one piece in each turn of the loop.

A flood of tokens that nobody has seen before would else stand before every request that came after it. So
they wait for each other here, in the order in which they came, and whoever needs none of it passes by.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol


class QueuedVerification(Protocol):
    """Whoever stands in the lane."""

    def run(self) -> None:
        """It is their turn: what they do now, everybody waits for."""


class VerificationQueue:
    """A queue, as long as there are connections: each stands in it once at most."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: deque[QueuedVerification] = deque()

    def enqueue(self, verification: QueuedVerification) -> None:
        """Have `turn` called, in one of the next turns of the running loop."""
        self._queue.append(verification)
        if len(self._queue) == 1:
            asyncio.get_running_loop().call_soon(self._run_next)

    def _run_next(self) -> None:
        verification = self._queue[0]
        try:
            verification.run()
        finally:
            # What came in meanwhile is read before the next one's turn.
            self._queue.popleft()
            if self._queue:
                asyncio.get_running_loop().call_soon(self._run_next)
