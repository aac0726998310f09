"""Run the coroutine of a request that has to wait.

The coroutine is not an asyncio task: the callback of the awaited event resumes it at once, and cancelling it
runs its `finally` blocks at once. So in no turn of the event loop does an upstream connection lack an owner,
or a disconnected client keep its place in the pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any


@coroutine
def suspend() -> Generator[None, Any, Any]:
    """Suspend the coroutine. Return the value that it is resumed with."""
    return (yield)


class SlowPath:
    """One coroutine from its start to its end. `on_resumed_end` is called if it ends after a wait."""

    __slots__ = ("_coroutine", "_on_resumed_end", "_running")

    def __init__(
        self, slow: Coroutine[None, Any, None], on_resumed_end: Callable[[], None]
    ) -> None:
        self._coroutine: Coroutine[None, Any, None] | None = slow
        self._on_resumed_end = on_resumed_end
        self._running = False

    def start(self) -> None:
        """Run the coroutine up to its first wait."""
        self._step(None)

    def resume(self, value: object = None) -> None:
        """Resume with `value`, up to the next wait. Does nothing if the coroutine has ended."""
        if self._coroutine is not None and self._step(value):
            self._on_resumed_end()

    def throw(self, error: Exception) -> None:
        """Raise `error` at the coroutine's wait. Does nothing if it has ended."""
        if self._coroutine is not None and self._step(error):
            self._on_resumed_end()

    def run(self) -> None:
        """Resume at the awaited turn in the verification queue."""
        self.resume()

    def cancel(self) -> None:
        """End the coroutine at its wait. One that is running continues to its next wait or its end."""
        slow, self._coroutine = self._coroutine, None
        if slow is not None and not self._running:
            slow.close()

    async def wait_for(self, future: asyncio.Future[Any]) -> None:
        """Wait until `future` is done; cancel it if the coroutine ends before."""
        future.add_done_callback(self.resume)
        try:
            await suspend()
        finally:
            future.cancel()

    def _step(self, value: object) -> bool:
        """Resume the coroutine. Return whether it has ended."""
        slow = self._coroutine
        assert slow is not None
        self._running = True
        try:
            if isinstance(value, Exception):
                slow.throw(value)
            else:
                slow.send(value)
        except StopIteration:
            self._coroutine = None
            return True
        except BaseException:
            self._coroutine = None
            raise
        finally:
            self._running = False
        if self._coroutine is None:
            slow.close()  # cancelled while it ran
        return False
