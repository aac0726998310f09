"""Every write of the shim to a Navidrome account goes through here.

The rules: an intent is committed before each write and taken back after it. No account is left with a
password that is empty or known, or without a name. A write that meets a deletion makes Navidrome bring the
account back, without a password (its `PUT` makes what is not there): so each write is looked after, and
what has risen is closed, deleted and said. Reserved accounts are never written to.
"""

from __future__ import annotations

import secrets
import string
import time
from collections.abc import Mapping
from dataclasses import replace

from shim.audit.events.provisioning import AccountLocked, AccountRecreatedByRace
from shim.navidrome.api import generated_password
from shim.navidrome.errors import ApiError, Unavailable
from shim.navidrome.models import NewUser, User
from shim.provisioning.audit_context import AuditContext
from shim.provisioning.context import ProvisioningContext
from shim.provisioning.models import Binding, Intent, IntentKind, TokenRule
from shim.trust.names import normalize_name

_ALPHABET = string.ascii_letters + string.digits


class AccountRecreated(Exception):
    """The account was deleted while it was written to; it is gone now."""


class Writer:
    """Writes to accounts."""

    def __init__(self, context: ProvisioningContext) -> None:
        self._context = context

    async def create(self, new: NewUser, uid: str) -> tuple[User, Intent]:
        """Make an account, and give it with the intent that its binding has to end.

        Where the same was begun before, it is found instead: the id is the intent's. Raises `NameTaken`,
        `Unavailable`, `Busy`.
        """
        intent = await self._context.bindings.open_intent(
            Intent(
                key=creation_key(new.user_name),
                kind=IntentKind.CREATE,
                navidrome_id=new.id,
                user_name=new.user_name,
                uid=uid,
                owner=self._context.bindings.owner,
                started_at=time.time(),
            )
        )
        if intent.navidrome_id != new.id:
            found = await self._context.api.user(intent.navidrome_id)
            if found is not None:
                return found, intent
            new = NewUser(intent.navidrome_id, new.user_name, new.name, new.email, new.is_admin)
        try:
            created_id = await self._context.api.create(new, generated_password())
        except ApiError:
            await self._context.bindings.close_intent(intent)
            raise
        except Unavailable:
            # It may have been carried out. If that can't be asked now, the intent stays.
            created = await self._context.api.user(new.id)
            if created is None:
                raise
            created_id = new.id
        created = await self._context.api.user(created_id)
        if created is None:
            raise Unavailable("the account was made, and is not there")
        return created, intent

    async def write(
        self,
        user: User,
        changes: Mapping[str, object],
        audit_context: AuditContext,
        *,
        holder: Binding | None,
        password: str | None = None,
    ) -> User:
        """Write `user`, as just read, back with these changes and, if given, a new password. `holder`: the
        account's binding as it was read, None if it has none; if it is another one by now, nothing is
        written (`Outdated`).

        Raises `Risen` where the account had been deleted meanwhile, `NameTaken`, `Unavailable`, `Busy`.
        """
        name = str(changes.get("userName", user.user_name))
        intent = await self._open_write(user, name, holder)
        try:
            after = await self._context.api.write(user, changes, password)
        except ApiError:
            await self._context.bindings.close_intent(intent)
            raise
        except Unavailable as error:
            if error.sent:
                # It may be carried out yet: the intent stays open, and is looked after again later.
                await self._verify_pending_write(intent, audit_context)
            else:
                await self._context.bindings.close_intent(intent)
            raise
        try:
            await self._verify(
                after, user.created_at, audit_context, had_password=password is not None
            )
        except AccountRecreated:
            await self._context.bindings.close_intent(intent)
            raise
        await self._context.bindings.close_intent(intent)
        return after

    async def set_libraries(
        self, user: User, libraries: frozenset[int], *, holder: Binding | None
    ) -> None:
        """Give `user` these libraries; `holder` and what is raised as for `write`. Navidrome answers 404
        for an account that was deleted, and makes none."""
        intent = await self._open_write(user, user.user_name, holder)
        try:
            await self._context.api.set_libraries(user.id, libraries)
        except Unavailable as error:
            if not error.sent:
                await self._context.bindings.close_intent(intent)
            raise
        except ApiError:
            await self._context.bindings.close_intent(intent)
            raise
        await self._context.bindings.close_intent(intent)

    async def _open_write(self, user: User, name: str, holder: Binding | None) -> Intent:
        """Commit the intent to write to an account whose name is `name` then."""
        if self._context.policy.reserves(user.user_name) or self._context.policy.reserves(name):
            raise ValueError(f"{user.user_name} is reserved: the shim does not write to it")
        return await self._context.bindings.open_intent(
            Intent(
                key=f"write {user.id}",
                kind=IntentKind.WRITE,
                navidrome_id=user.id,
                user_name=name,
                created_at=user.created_at,
                owner=self._context.bindings.owner,
                started_at=time.time(),
            ),
            holder,
        )

    async def recover(self, intent: Intent, audit_context: AuditContext) -> None:
        """Look after a write that was left: whatever it has brought back is closed and deleted."""
        if intent.kind is IntentKind.WRITE:
            await self._verify_pending_write(intent, audit_context)

    async def _verify_pending_write(self, intent: Intent, audit_context: AuditContext) -> None:
        user = await self._context.api.user(intent.navidrome_id)
        if user is None:
            return
        try:
            await self._verify(user, intent.created_at, audit_context, had_password=False)
        except AccountRecreated:
            await self._context.bindings.close_intent(intent)
            raise

    async def _verify(
        self, user: User, created_at: str, audit_context: AuditContext, *, had_password: bool
    ) -> None:
        """Make sure that the account was not deleted before it was written. Navidrome sets `createdAt`
        again where it makes what was not there; since its owner may write that field as well, only an
        account that an empty password opens counts as risen, or one that was just given another."""
        opened = not had_password and await self._context.api.opens_without_password(user.user_name)
        if opened:
            after = await self._context.api.write(user, {}, generated_password())
            rule = self._context.bindings.rule_of(user.id) or TokenRule(user.id)
            await self._context.bindings.put_rule(replace(rule, void_before=after.read_at))
        if (opened or had_password) and user.created_at != created_at:
            await self._context.api.delete(user.id)
            self._context.record(
                AccountRecreatedByRace(
                    time=time.time(), account=user.user_name, **audit_context.as_fields()
                )
            )
            raise AccountRecreated(user.user_name)
        if opened:
            self._context.record(
                AccountLocked(
                    time=time.time(),
                    account=user.user_name,
                    reason="an empty password opened it",
                    **audit_context.as_fields(),
                )
            )


def creation_key(user_name: str) -> str:
    """The key of the intent to make an account of this name."""
    return f"create {normalize_name(user_name)}"


def new_id() -> str:
    """An id as Navidrome makes them: 22 letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(22))
