"""Store administrative actions before they are answered.

An action that gives a right begins with `require`, and is refused while nothing can be stored. An action that
takes one (lock, revoke) or reloads is carried out all the same. Every action ends with `record`, or with
`record_refused`. None of them waits for longer than `STORE_SECONDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shim.audit.events import AdminAction, Event
from shim.store.errors import StoreError

if TYPE_CHECKING:
    from shim.audit.store.writer import TrailStore  # importing it loads the database code


# Time that an action waits for the store.
STORE_SECONDS = 5.0


class NotStored(Exception):
    """The audit trail cannot be written, so the action was refused. The message says why."""


class AdminActions:
    """Records administrative actions in `store`; None: the trail is in the log only. `record` takes the event
    for the log and the other sinks."""

    def __init__(self, store: TrailStore | None, record: Callable[[Event], None]) -> None:
        self._store = store
        self._record = record

    async def require(self) -> None:
        """Write to the trail, to make sure that the action can be recorded. Waits at most `STORE_SECONDS`.
        Raises `NotStored`."""
        if self._store is None:
            return
        try:
            await self._store.check_writable(STORE_SECONDS)
        except StoreError as error:
            raise NotStored(f"refused, because the audit trail can't be written: {error}") from None

    async def record(self, action: AdminAction, seconds: float | None = None) -> str | None:
        """Store the action, and write it to the log. Return None once it is on disk. Return a sentence for
        the response if it is not within `seconds`, by default `STORE_SECONDS`; the trail then stores it when
        it can be written again, if this process still runs."""
        problem = None
        if self._store is not None:
            try:
                await self._store.store(action, STORE_SECONDS if seconds is None else seconds)
            except StoreError as error:
                problem = f"not recorded in the audit trail, only in the log: {error}"
        self._record(action)
        return problem

    def record_refused(self, action: AdminAction) -> None:
        """Write an action to the log that `require` refused. The trail stores it when it can be written
        again, if this process still runs. Does not wait: `require` has waited."""
        self._record(action)
