"""Changing an account: its record, its rights and its password, each change said.

Above `writer`, which knows how to write; here is what is written with care for the others: the last admin
keeps his right, an admin's libraries are left alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from shim.audit.provisioning_events import AccountChanged, AccountLocked, DemotionWithheld
from shim.navidrome.models import Library, User
from shim.provisioning.means import Means
from shim.provisioning.occasion import Occasion
from shim.provisioning.records import Intent, IntentKind
from shim.provisioning.writer import Writer
from shim.trust.identity import Identity
from shim.trust.names import fold_name


class Rights:
    """Changes accounts. Raises what the writer raises."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self.writer = Writer(means)
        self._demotion = asyncio.Lock()
        self._withheld: set[str] = set()

    async def change(
        self,
        user: User,
        changes: Mapping[str, object],
        occasion: Occasion,
        *,
        lock_since: str | None = None,
    ) -> User:
        """Write these changes of `user`, as just read; with `lock_since`, which says why, the account also
        gets a password that nobody knows. The user as it is now."""
        if changes.get("isAdmin") is False:
            async with self._may_demote(user, occasion) as may:
                if not may:
                    changes = {n: value for n, value in changes.items() if n != "isAdmin"}
                return await self._write(user, changes, occasion, lock_since)
        return await self._write(user, changes, occasion, lock_since)

    async def set_libraries(self, identity: Identity, user: User, occasion: Occasion) -> None:
        """Give the account the libraries of the identity's groups."""
        if user.is_admin or not self._means.policy.library_groups:
            return
        libraries = await self._libraries()
        wanted = self._means.policy.libraries(identity, libraries)
        if wanted is None or wanted == user.libraries:
            return
        await self._means.api.set_libraries(user.id, wanted)
        self._means.directory.put(replace(user, libraries=wanted))
        names = {library.id: library.name for library in libraries}
        change = f"libraries: {_named(user.libraries, names)} → {_named(wanted, names)}"
        self._say(user, (change,), occasion)

    async def _write(
        self,
        user: User,
        changes: Mapping[str, object],
        occasion: Occasion,
        lock_since: str | None,
    ) -> User:
        if not changes and lock_since is None:
            return user
        after = await self.writer.write(user, changes, occasion, lock=lock_since is not None)
        self._means.directory.put(after)
        self._say(after, _differences(user, after), occasion)
        if lock_since is not None:
            told = occasion.told()
            now = time.time()
            self._means.record(
                AccountLocked(time=now, account=after.user_name, why=lock_since, **told)
            )
        return after

    @asynccontextmanager
    async def _may_demote(self, user: User, occasion: Occasion) -> AsyncIterator[bool]:
        """Whether the account may lose its right: another admin beside the shim's own has to be left.
        Held until it is written, so that no two lose it at once."""
        async with self._demotion:
            intent = await self._means.bindings.open_intent(
                Intent(
                    key="demotion",
                    kind=IntentKind.LOCK,
                    owner=self._means.bindings.owner,
                    since=time.time(),
                )
            )
            try:
                yield await self._may_lose_it(user, occasion)
            finally:
                await self._means.bindings.close_intent(intent)

    async def _may_lose_it(self, user: User, occasion: Occasion) -> bool:
        own = fold_name(self._means.policy.own_name)
        others = (one for one in await self._means.api.users() if one.id != user.id)
        left = any(one.is_admin and fold_name(one.user_name) != own for one in others)
        if left or self._means.policy.demotes_last_admin:
            self._withheld.discard(user.id)
            return True
        if user.id not in self._withheld:
            self._withheld.add(user.id)
            told = occasion.told()
            self._means.record(DemotionWithheld(time=time.time(), account=user.user_name, **told))
        return False

    async def _libraries(self) -> tuple[Library, ...]:
        if not self._means.directory.libraries:
            self._means.directory.libraries = await self._means.api.libraries()
        return self._means.directory.libraries

    def _say(self, user: User, changes: tuple[str, ...], occasion: Occasion) -> None:
        if changes:
            told = occasion.told()
            now = time.time()
            self._means.record(
                AccountChanged(time=now, account=user.user_name, changes=changes, **told)
            )


def _differences(before: User, after: User) -> tuple[str, ...]:
    pairs = (
        ("userName", before.user_name, after.user_name),
        ("name", before.name, after.name),
        ("email", before.email, after.email),
        ("isAdmin", before.is_admin, after.is_admin),
    )
    return tuple(f"{name}: {old} → {new}" for name, old, new in pairs if old != new)


def _named(libraries: frozenset[int], names: Mapping[int, str]) -> str:
    return ", ".join(names.get(each, str(each)) for each in sorted(libraries)) or "none"
