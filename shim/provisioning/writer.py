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

from shim.audit.provisioning_events import AccountLocked, AccountRisen
from shim.navidrome.api import generated_password
from shim.navidrome.errors import Refused, Unavailable
from shim.navidrome.models import NewUser, User
from shim.provisioning.means import Means
from shim.provisioning.occasion import Occasion
from shim.provisioning.records import Binding, Intent, IntentKind, TokenRule
from shim.trust.names import fold_name

_ALPHABET = string.ascii_letters + string.digits


class Risen(Exception):
    """The account was deleted while it was written to; it is gone now."""


class Writer:
    """Writes to accounts."""

    def __init__(self, means: Means) -> None:
        self._means = means

    async def create(self, new: NewUser, uid: str) -> tuple[User, Intent]:
        """Make an account, and give it with the intent that its binding has to end.

        Where the same was begun before, it is found instead: the id is the intent's. Raises `NameTaken`,
        `Unavailable`, `Busy`.
        """
        intent = await self._means.bindings.open_intent(
            Intent(
                key=creation_key(new.user_name),
                kind=IntentKind.CREATE,
                navidrome_id=new.id,
                user_name=new.user_name,
                uid=uid,
                owner=self._means.bindings.owner,
                since=time.time(),
            )
        )
        if intent.navidrome_id != new.id:
            found = await self._means.api.user(intent.navidrome_id)
            if found is not None:
                return found, intent
            new = NewUser(intent.navidrome_id, new.user_name, new.name, new.email, new.is_admin)
        try:
            made_id = await self._means.api.create(new, generated_password())
        except Refused:
            await self._means.bindings.close_intent(intent)
            raise
        except Unavailable:
            # It may have been carried out. If that can't be asked now, the intent stays.
            made = await self._means.api.user(new.id)
            if made is None:
                raise
            made_id = new.id
        made = await self._means.api.user(made_id)
        if made is None:
            raise Unavailable("the account was made, and is not there")
        return made, intent

    async def write(
        self,
        user: User,
        changes: Mapping[str, object],
        occasion: Occasion,
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
        if self._means.policy.reserves(user.user_name) or self._means.policy.reserves(name):
            raise ValueError(f"{user.user_name} is reserved: the shim does not write to it")
        intent = await self._means.bindings.open_intent(
            Intent(
                key=f"write {user.id}",
                kind=IntentKind.WRITE,
                navidrome_id=user.id,
                user_name=name,
                created_at=user.created_at,
                owner=self._means.bindings.owner,
                since=time.time(),
            ),
            holder,
        )
        try:
            after = await self._means.api.write(user, changes, password)
        except Refused:
            await self._means.bindings.close_intent(intent)
            raise
        except Unavailable as error:
            if error.sent:
                # It may be carried out yet: the intent stays open, and is looked after again later.
                await self._look_after(intent, occasion)
            else:
                await self._means.bindings.close_intent(intent)
            raise
        try:
            await self._verify(after, user.created_at, occasion, had_password=password is not None)
        except Risen:
            await self._means.bindings.close_intent(intent)
            raise
        await self._means.bindings.close_intent(intent)
        return after

    async def resolve(self, intent: Intent, occasion: Occasion) -> None:
        """Look after a write that was left: whatever it has brought back is closed and deleted."""
        if intent.kind is IntentKind.WRITE:
            await self._look_after(intent, occasion)

    async def _look_after(self, intent: Intent, occasion: Occasion) -> None:
        user = await self._means.api.user(intent.navidrome_id)
        if user is None:
            return
        try:
            await self._verify(user, intent.created_at, occasion, had_password=False)
        except Risen:
            await self._means.bindings.close_intent(intent)
            raise

    async def _verify(
        self, user: User, created_at: str, occasion: Occasion, *, had_password: bool
    ) -> None:
        """Make sure that the account was not deleted before it was written. Navidrome sets `createdAt`
        anew where it makes what was not there; since its owner may write that field as well, only an
        account that an empty password opens counts as risen, or one that was just given another."""
        opened = not had_password and await self._means.api.opens_without_password(user.user_name)
        if opened:
            after = await self._means.api.write(user, {}, generated_password())
            rule = self._means.bindings.rule_of(user.id) or TokenRule(user.id)
            await self._means.bindings.put_rule(replace(rule, void_before=after.read_at))
        if (opened or had_password) and user.created_at != created_at:
            await self._means.api.delete(user.id)
            self._means.record(
                AccountRisen(time=time.time(), account=user.user_name, **occasion.told())
            )
            raise Risen(user.user_name)
        if opened:
            self._means.record(
                AccountLocked(
                    time=time.time(),
                    account=user.user_name,
                    why="an empty password opened it",
                    **occasion.told(),
                )
            )


def creation_key(user_name: str) -> str:
    """The key of the intent to make an account of this name."""
    return f"create {fold_name(user_name)}"


def new_id() -> str:
    """An id as Navidrome makes them: 22 letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(22))
