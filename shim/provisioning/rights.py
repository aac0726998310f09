"""Changing an account: its record, its rights and its password, each change recorded.

Above `writer`, which knows how to write. An admin's libraries are left alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shim.audit.provisioning_events import AccountChanged, AccountLocked, AccountReadmitted
from shim.navidrome.api import generated_password, locking_password
from shim.navidrome.models import Library, User
from shim.provisioning.means import Means
from shim.provisioning.occasion import Occasion
from shim.provisioning.records import Binding
from shim.provisioning.writer import Writer
from shim.trust.identity import Identity


@dataclass(frozen=True, slots=True)
class Lock:
    """A new password that nobody knows and that can't be replaced without knowing it; `why`: a sentence for
    the trail."""

    why: str
    password: str = field(default_factory=locking_password, repr=False)


@dataclass(frozen=True, slots=True)
class Readmission:
    """A new password that nobody knows, and that the account's owner may replace without knowing it; `why`: a
    sentence for the trail."""

    why: str
    password: str = field(default_factory=generated_password, repr=False)


class Rights:
    """Changes accounts. Raises what the writer raises."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self.writer = Writer(means)

    async def change(
        self,
        user: User,
        changes: Mapping[str, object],
        occasion: Occasion,
        *,
        holder: Binding | None,
        password: Lock | Readmission | None = None,
    ) -> User:
        """Write these changes of `user`, as just read, and a new password if one is given. `holder`: the
        account's binding as it was read, None if it has none. Return the user as it is now: of a new
        password, `read_at` is when it was written."""
        if not changes and password is None:
            return user
        text = None if password is None else password.password
        after = await self.writer.write(user, changes, occasion, holder=holder, password=text)
        self._means.directory.put(after)
        self._say(after, _differences(user, after), occasion)
        if password is not None:
            event = AccountLocked if isinstance(password, Lock) else AccountReadmitted
            now, told = time.time(), occasion.told()
            self._means.record(event(time=now, account=after.user_name, why=password.why, **told))
        return after

    async def set_libraries(self, identity: Identity, user: User, occasion: Occasion) -> None:
        """Give the account the libraries of the identity's groups."""
        if user.is_admin or not self._means.policy.library_groups:
            return
        libraries = await self._libraries()
        wanted = self._means.policy.libraries(identity, libraries)
        # Navidrome takes no account's last library: see `keeps_denied_libraries`.
        if not wanted or wanted == user.libraries:
            return
        await self._means.api.set_libraries(user.id, wanted)
        self._means.directory.put(replace(user, libraries=wanted))
        names = {library.id: library.name for library in libraries}
        change = f"libraries: {_named(user.libraries, names)} → {_named(wanted, names)}"
        self._say(user, (change,), occasion)

    async def keeps_denied_libraries(self, identity: Identity, user: User) -> bool:
        """Return whether the account has libraries, may have none, and can't be left with none: Navidrome
        takes no account's last library."""
        policy = self._means.policy
        admin = policy.admin(identity)
        if (user.is_admin if admin is None else admin) or not policy.library_groups:
            return False
        wanted = policy.libraries(identity, await self._libraries())
        return wanted is not None and not wanted and bool(user.libraries)

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
