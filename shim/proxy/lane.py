"""A lane for what takes as long as many requests: one piece in each turn of the loop.

A flood of tokens that nobody has seen before would else stand before every request that came after it. So
they wait for each other here, in the order in which they came, and whoever needs none of it passes by.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol


class Waiting(Protocol):
    """Whoever stands in the lane."""

    def turn(self) -> None:
        """It is their turn: what they do now, everybody waits for."""


class Lane:
    """A queue, as long as there are connections: each stands in it once at most."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()

    def join(self, waiting: Waiting) -> None:
        """Have `turn` called, in one of the next turns of the running loop."""
        self._waiting.append(waiting)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        waiting = self._waiting[0]
        try:
            waiting.turn()
        finally:
            # What came in meanwhile is read before the next one's turn.
            self._waiting.popleft()
            if self._waiting:
                asyncio.get_running_loop().call_soon(self._turn)
