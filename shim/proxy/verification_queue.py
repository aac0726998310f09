"""A queue for work that takes as long as many requests: one piece in each turn of the event loop.

A flood of tokens that were not seen before would otherwise delay every later request. So they wait here for
each other, in the order in which they came; a request that needs no verification does not wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol


class QueuedVerification(Protocol):
    """Work that waits for its turn."""

    def run(self) -> None:
        """Do one piece of work. Everything else waits meanwhile, so it is bounded."""


class VerificationQueue:
    """The work in the order of arrival. Its length is bounded: each connection has at most one entry."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: deque[QueuedVerification] = deque()

    def enqueue(self, verification: QueuedVerification) -> None:
        """Have `verification.run` called, in one of the next turns of the running loop."""
        self._queue.append(verification)
        if len(self._queue) == 1:
            asyncio.get_running_loop().call_soon(self._run_next)

    def _run_next(self) -> None:
        verification = self._queue[0]
        try:
            verification.run()
        finally:
            # What arrived meanwhile is read before the next turn.
            self._queue.popleft()
            if self._queue:
                asyncio.get_running_loop().call_soon(self._run_next)
