"""Keep the stored trail within its limits, and react while nothing can be stored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from shim.audit.events import Event
from shim.audit.events.storage import TrailAvailable, TrailUnavailable
from shim.audit.store.factory import retention_limits
from shim.audit.store.writer import UNAVAILABLE_SECONDS, TrailStore
from shim.health import Check
from shim.settings import Settings
from shim.store.errors import StoreError

RETENTION_SECONDS = 60.0
_WATCH_SECONDS = 1.0
# Time without a write after which one is tried.
_CHECK_WRITABLE_SECONDS = 5.0
_START_SECONDS = 5.0


class AuditKeeper:
    """Opens and maintains the stored trail of a process that serves.

    `record` takes events. With `SHIM_AUDIT_FAIL_MODE=closed`, `set_available` is called with False after ten
    seconds without a successful write, and with True after the next one.
    """

    def __init__(
        self,
        settings: Settings,
        store: TrailStore,
        record: Callable[[Event], None],
        set_available: Callable[[bool], None],
    ) -> None:
        self.store = store
        self._settings = settings
        self._record = record
        self._set_available = set_available
        self._closed_mode = settings.audit_fail_mode == "closed"
        self._unavailable_since: float | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._writable_check: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the trail, and begin to maintain it. If it cannot be opened, and has to be, no identity is
        accepted from the start."""
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self.store.open()
        except (StoreError, TimeoutError) as error:
            fault = str(error) or "the database does not respond"
            if self._closed_mode:
                self._became_unavailable(fault)
        self._tasks = [
            asyncio.create_task(self._watch_forever()),
            asyncio.create_task(self._remove_old_rows_forever()),
        ]

    async def stop(self) -> None:
        """Stop the maintenance. The trail closes the store."""
        tasks = [*self._tasks, *([] if self._writable_check is None else [self._writable_check])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def check(self) -> Check:
        """Return the state of the trail for `/readyz`."""
        blocked = self._closed_mode and self._unavailable_since is not None
        return self.store.check(blocked=blocked)

    async def _check_writable(self) -> None:
        with suppress(StoreError):  # the store knows it
            await self.store.check_writable()

    async def _watch_forever(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            self._watch()

    def _watch(self) -> None:
        store = self.store
        failing = store.fault is not None
        # Without events nothing else would notice that writes fail, or that they work again.
        if (failing or self._closed_mode) and store.idle_for >= _CHECK_WRITABLE_SECONDS:
            if self._writable_check is None or self._writable_check.done():
                self._writable_check = asyncio.create_task(self._check_writable())
            if store.idle_for >= UNAVAILABLE_SECONDS:
                fault = store.fault or f"{store.display_url}: the database does not respond"
                self._became_unavailable(fault)
        elif not failing and self._unavailable_since is not None:
            seconds = time.monotonic() - self._unavailable_since
            self._unavailable_since = None
            self._record(TrailAvailable(time=time.time(), down_seconds=round(seconds, 3)))
            if self._closed_mode:
                self._set_available(True)

    def _became_unavailable(self, detail: str) -> None:
        if self._unavailable_since is not None:
            return
        self._unavailable_since = time.monotonic()
        self._record(TrailUnavailable(time=time.time(), detail=detail))
        if self._closed_mode:
            self._set_available(False)

    async def _remove_old_rows_forever(self) -> None:
        while True:
            limits = retention_limits(self._settings)
            with suppress(StoreError):  # the store's check reports it
                await self.store.apply_retention(limits)
                await self.store.remove_counts(
                    limits["changes"].since or 0, limits["requests"].since or 0
                )
            await asyncio.sleep(RETENTION_SECONDS)
