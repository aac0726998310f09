"""A queue for token verifications, each as expensive as many requests: one in each turn of the event loop.

Without it, a flood of unknown tokens would delay every later request. Tokens wait here in the order of
arrival; a request that needs no verification does not wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol


class QueuedVerification(Protocol):
    """A verification that waits for its turn."""

    def run(self) -> None:
        """Do one piece of work. It is bounded, since everything else waits meanwhile."""


class VerificationQueue:
    """The verifications in the order of arrival. The length is bounded: each connection has at most one
    entry."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self._queue: deque[QueuedVerification] = deque()

    def enqueue(self, verification: QueuedVerification) -> None:
        """Schedule `verification.run` for one of the next turns of the running event loop."""
        self._queue.append(verification)
        if len(self._queue) == 1:
            asyncio.get_running_loop().call_soon(self._run_next)

    def _run_next(self) -> None:
        verification = self._queue[0]
        try:
            verification.run()
        finally:
            # Read what arrived meanwhile before the next turn.
            self._queue.popleft()
            if self._queue:
                asyncio.get_running_loop().call_soon(self._run_next)
