"""Changing an account: its record, its rights and its password, each change recorded.

Above `writer`, which knows how to write. An admin's libraries are left alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shim.audit.events.provisioning import AccountChanged, AccountLocked, AccountReadmitted
from shim.navidrome.api import generated_password, locking_password
from shim.navidrome.models import Library, User
from shim.provisioning.account_writer import Writer
from shim.provisioning.audit_context import AuditContext
from shim.provisioning.context import ProvisioningContext
from shim.provisioning.models import Binding
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


class AccountUpdater:
    """Changes accounts. Raises what the writer raises."""

    def __init__(self, context: ProvisioningContext) -> None:
        self._context = context
        self.writer = Writer(context)

    async def change(
        self,
        user: User,
        changes: Mapping[str, object],
        audit_context: AuditContext,
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
        after = await self._write(user, changes, audit_context, holder, text)
        self._context.directory.put(after)
        self._record_change(after, _differences(user, after), audit_context)
        if password is not None:
            event = AccountLocked if isinstance(password, Lock) else AccountReadmitted
            now, audit_fields = time.time(), audit_context.as_fields()
            self._context.record(
                event(time=now, account=after.user_name, reason=password.why, **audit_fields)
            )
        return after

    async def _write(
        self,
        user: User,
        changes: Mapping[str, object],
        audit_context: AuditContext,
        holder: Binding | None,
        password: str | None,
    ) -> User:
        if password is None and changes.get("isAdmin", True):
            return await self.writer.write(user, changes, audit_context, holder=holder)
        # Navidrome carries out what the account began before with the rights that it had then.
        async with self._context.user_writes.held(user.id):
            return await self.writer.write(
                user, changes, audit_context, holder=holder, password=password
            )

    async def set_libraries(
        self, identity: Identity, user: User, audit_context: AuditContext
    ) -> None:
        """Give the account the libraries of the identity's groups."""
        if user.is_admin or not self._context.policy.library_groups:
            return
        libraries = await self._libraries()
        target = self._context.policy.libraries(identity, libraries)
        # Navidrome takes no account's last library: see `keeps_denied_libraries`.
        if not target or target == user.libraries:
            return
        await self._context.api.set_libraries(user.id, target)
        self._context.directory.put(replace(user, libraries=target))
        names = {library.id: library.name for library in libraries}
        change = f"libraries: {_named(user.libraries, names)} → {_named(target, names)}"
        self._record_change(user, (change,), audit_context)

    async def keeps_denied_libraries(self, identity: Identity, user: User) -> bool:
        """Return whether the account has libraries, may have none, and can't be left with none: Navidrome
        takes no account's last library."""
        policy = self._context.policy
        admin = policy.admin(identity)
        if (user.is_admin if admin is None else admin) or not policy.library_groups:
            return False
        target = policy.libraries(identity, await self._libraries())
        return target is not None and not target and bool(user.libraries)

    async def _libraries(self) -> tuple[Library, ...]:
        if not self._context.directory.libraries:
            self._context.directory.libraries = await self._context.api.libraries()
        return self._context.directory.libraries

    def _record_change(
        self, user: User, changes: tuple[str, ...], audit_context: AuditContext
    ) -> None:
        if changes:
            audit_fields = audit_context.as_fields()
            now = time.time()
            self._context.record(
                AccountChanged(time=now, account=user.user_name, changes=changes, **audit_fields)
            )


def _differences(before: User, after: User) -> tuple[str, ...]:
    pairs = (
        ("userName", before.user_name, after.user_name),
        ("name", before.name, after.name),
        ("email", before.email, after.email),
        ("isAdmin", before.is_admin, after.is_admin),
    )
    return tuple(f"{name}: {previous} → {new}" for name, previous, new in pairs if previous != new)


def _named(libraries: frozenset[int], names: Mapping[int, str]) -> str:
    return ", ".join(names.get(each, str(each)) for each in sorted(libraries)) or "none"
