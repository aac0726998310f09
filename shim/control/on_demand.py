"""Load code with the first request that needs it, without holding up the event loop.

The loop also moves the data plane's bytes, so nothing is imported on its thread after the start.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from typing import TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

T = TypeVar("T")


# Python gives the interpreter to a thread that waits for it after this many seconds. The event loop waits for
# it several times for each request.
_SWITCH_SECONDS = sys.getswitchinterval()
_SWITCH_SECONDS_WHILE_LOADING = 0.001


async def load(function: Callable[[], T]) -> T:
    """Return the result of a function that imports modules. It runs in a thread."""
    sys.setswitchinterval(_SWITCH_SECONDS_WHILE_LOADING)
    try:
        return await asyncio.to_thread(function)
    finally:
        sys.setswitchinterval(_SWITCH_SECONDS)


class OnDemandApp:
    """The application that `build` returns. `build` imports the modules, and runs once, in a thread.

    Requests that arrive meanwhile wait for it. If it fails, they fail too, and the next one tries again.
    """

    def __init__(self, build: Callable[[], ASGIApp]) -> None:
        self._build = build
        self._app: ASGIApp | None = None
        self._building: asyncio.Task[ASGIApp] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app or await self._load()
        await app(scope, receive, send)

    async def _load(self) -> ASGIApp:
        if self._building is None:
            self._building = asyncio.create_task(load(self._build))
        building = self._building
        try:
            # Not cancelled with one of the requests that wait for it.
            self._app = await asyncio.shield(building)
            # As at the start: what was loaded lives as long as the process, and is much to scan.
            gc.freeze()
        finally:
            if building.done() and self._building is building:
                self._building = None
        return self._app
