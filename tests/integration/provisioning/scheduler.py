"""Decide when each call of the shim to Navidrome's API and to its database continues.

While the scheduler holds, a call stops twice: before it is sent and before its result is used. A
test releases one call at a time, so that every other action can occur between any two steps of a
request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from shim.navidrome.transport import Transport
from shim.store.database import Database

T = TypeVar("T")

# Turns of the event loop without a running call, after which nothing more happens.
_IDLE_TURNS = 40


class Scheduler:
    """Holds and releases calls. `turn_seconds`: how long a turn waits for a server in another process."""

    def __init__(self, turn_seconds: float = 0.0) -> None:
        self._turn_seconds = turn_seconds
        self._holding = False
        self._running = 0
        self._stopped: list[asyncio.Future[None]] = []

    def install(self, patches: pytest.MonkeyPatch) -> None:
        """Stop at every API call and every transaction of all shims in this process."""
        for owner, name in (
            (Transport, "send"),
            (Database, "read_async"),
            (Database, "write_async"),
        ):
            patches.setattr(owner, name, self._wrap(getattr(owner, name)))

    async def checkpoint(self) -> None:
        """Stop here while the scheduler holds."""
        if self._holding:
            stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._stopped.append(stopped)
            await stopped

    async def interleave(
        self, actions: list[Callable[[], Awaitable[T]]], order: list[int]
    ) -> list[T | BaseException]:
        """Run the actions at the same time. Each number of `order` releases one of the calls that are
        stopped then; after the last number, all calls go on. Return the results and the exceptions."""
        self._holding = True
        tasks = [asyncio.ensure_future(self._start(action)) for action in actions]
        try:
            for number in order:
                await self._settle()
                if self._stopped:
                    self._release(number % len(self._stopped))
                elif all(task.done() for task in tasks):
                    break
        finally:
            self._holding = False
            while self._stopped:
                self._release(0)
        return await asyncio.gather(*tasks, return_exceptions=True)

    async def _start(self, action: Callable[[], Awaitable[T]]) -> T:
        await self.checkpoint()
        return await action()

    async def _settle(self) -> None:
        idle = 0
        while idle < _IDLE_TURNS:
            await asyncio.sleep(self._turn_seconds)
            idle = 0 if self._running else idle + 1

    def _release(self, number: int) -> None:
        stopped = self._stopped.pop(number)
        if not stopped.done():
            stopped.set_result(None)

    def _wrap(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def scheduled(*args: Any, **options: Any) -> Any:
            await self.checkpoint()
            self._running += 1
            try:
                result = await call(*args, **options)
            finally:
                self._running -= 1
            await self.checkpoint()
            return result

        return scheduled
