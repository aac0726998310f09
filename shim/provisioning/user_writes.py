"""Count the users' requests that change Navidrome's users, and to which Navidrome has not yet responded.

Navidrome checks the caller's rights when such a request begins and writes when it ends. So a change that
removes rights from an account waits for them, and new ones are rejected meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

# How long a change of an account waits for its requests.
WAIT_SECONDS = 2.0
# How long a request without a response is counted: Navidrome may still carry it out.
_UNANSWERED_SECONDS = 1.0


class UserWrites:
    """Counts these requests by the account ids that they act for. `on_late` is called when a request ends
    that a change did not wait for: the change must be repeated."""

    def __init__(self, on_late: Callable[[], None]) -> None:
        self._in_progress: Counter[str] = Counter()
        self._blocked: Counter[str] = Counter()
        self._late: set[str] = set()
        self._ended = asyncio.Event()
        self._on_late = on_late

    @property
    def any_in_progress(self) -> bool:
        """Return whether any request is in progress: until it ends, it may change any account's name."""
        return bool(self._in_progress)

    def is_in_progress(self, account_id: str) -> bool:
        """Return whether a request in progress acts for this account."""
        return self._in_progress[account_id] > 0

    def begin(self, account_ids: Iterable[str]) -> bool:
        """Count a request that is about to be sent; not while one of its accounts is held. Return whether it
        may be sent."""
        ids = tuple(account_ids)
        if any(self._blocked[each] for each in ids):
            return False
        self._in_progress.update(ids)
        return True

    def end(self, account_ids: Iterable[str], *, response_began: bool) -> None:
        """Stop counting the request; a little later if Navidrome did not respond."""
        ids = tuple(account_ids)
        if response_began:
            self._end(ids)
        else:
            asyncio.get_running_loop().call_later(_UNANSWERED_SECONDS, self._end, ids)

    def _end(self, account_ids: tuple[str, ...]) -> None:
        self._in_progress.subtract(account_ids)
        self._in_progress = +self._in_progress
        self._ended.set()
        late = {
            each for each in account_ids if each in self._late and not self.is_in_progress(each)
        }
        if late:
            self._late -= late
            self._on_late()

    @asynccontextmanager
    async def blocked(self, account_id: str) -> AsyncIterator[None]:
        """Reject new requests of this account, and wait for those in progress, at most `WAIT_SECONDS`. Those
        that take longer are late."""
        self._blocked[account_id] += 1
        try:
            await self._wait(account_id)
            if self.is_in_progress(account_id):
                self._late.add(account_id)
            yield
        finally:
            self._blocked[account_id] -= 1
            self._blocked = +self._blocked

    async def _wait(self, account_id: str) -> None:
        deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
        try:
            async with asyncio.timeout_at(deadline):
                while self.is_in_progress(account_id):
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            return
