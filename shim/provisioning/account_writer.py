"""Write to Navidrome accounts, and record every write; the shim writes to accounts only here.

The rules: an intent is committed before each write, by the holder of the account, and removed after it. No
account is left with a password that is empty or known, or without a name. Navidrome's `PUT` creates a missing
account again, without a password. So each write is verified, and an account that a write recreated after its
deletion is locked, deleted and recorded. Reserved accounts are never written to. An admin's libraries are not
changed.
"""

from __future__ import annotations

import secrets
import string
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from shim.audit.events import Event
from shim.audit.events.provisioning import (
    AccountChanged,
    AccountLocked,
    AccountReadmitted,
    AccountRecreatedByRace,
)
from shim.navidrome.api import Navidrome, generated_password, locking_password
from shim.navidrome.errors import ApiError, Unavailable
from shim.navidrome.models import Library, NewUser, User
from shim.provisioning.binding_store import BindingStore
from shim.provisioning.directory import Directory
from shim.provisioning.models import AuditContext, Binding, Intent, IntentKind, TokenRule
from shim.provisioning.policy import AccountPolicy
from shim.provisioning.user_writes import UserWrites
from shim.trust.identity import Identity
from shim.trust.names import normalize_name

_ALPHABET = string.ascii_letters + string.digits


class AccountRecreated(Exception):
    """The account was deleted during the write; it no longer exists."""


@dataclass(frozen=True, slots=True)
class Lock:
    """A new random password that is stored nowhere, and that can't be replaced without knowing it; `detail`:
    a sentence for the audit trail."""

    detail: str
    password: str = field(default_factory=locking_password, repr=False)


@dataclass(frozen=True, slots=True)
class Readmission:
    """A new random password that is stored nowhere (see `new_password`); `detail`: a sentence for the audit
    trail."""

    detail: str
    password: str = field(repr=False)


def new_password(policy: AccountPolicy) -> str:
    """Return a new random password for an account that is in use. Its owner may replace it without knowing
    it, unless only device passwords are allowed."""
    return locking_password() if policy.only_device_passwords else generated_password()


class AccountWriter:
    """Writes to accounts. `user_writes` are the users' own requests in progress; `policy` returns the policy
    in force; `record` receives events."""

    def __init__(
        self,
        api: Navidrome,
        bindings: BindingStore,
        directory: Directory,
        user_writes: UserWrites,
        policy: Callable[[], AccountPolicy],
        record: Callable[[Event], None],
    ) -> None:
        self._api = api
        self._bindings = bindings
        self._directory = directory
        self._user_writes = user_writes
        self._policy = policy
        self._record = record

    async def create(self, new: NewUser, identity: Identity) -> tuple[User, Intent]:
        """Create an account for this identity, and return it with its intent, which the caller ends by
        storing the binding.

        If an earlier attempt already created the account, it is found by its id, which is in the intent.
        Raises `NameTaken`, `Unavailable`, `Busy`.
        """
        intent = await self._bindings.open_intent(
            Intent(
                key=creation_key(new.user_name),
                kind=IntentKind.CREATE,
                navidrome_id=new.id,
                user_name=new.user_name,
                uid=identity.uid,
                uid_source=identity.uid_source,
                owner=self._bindings.owner,
                started_at=time.time(),
            )
        )
        if intent.navidrome_id != new.id:
            found = await self._api.user(intent.navidrome_id)
            if found is not None:
                return found, intent
            new = NewUser(intent.navidrome_id, new.user_name, new.name, new.email, new.is_admin)
        try:
            created_id = await self._api.create(new, new_password(self._policy()))
        except ApiError:
            await self._bindings.close_intent(intent)
            raise
        except Unavailable:
            # The request may have been carried out. If Navidrome can't be queried now, the intent stays.
            created = await self._api.user(new.id)
            if created is None:
                raise
            created_id = new.id
        created = await self._api.user(created_id)
        if created is None:
            raise Unavailable("the account was created, but Navidrome does not list it")
        return created, intent

    async def change(
        self,
        user: User,
        changes: Mapping[str, object],
        audit_context: AuditContext,
        *,
        holder: Binding | None,
        password: Lock | Readmission | None = None,
    ) -> User:
        """Write these changes of `user`, as just read, and a new password if one is given.

        `holder`: the account's binding as it was read, None if it has none. Return the user as it is now;
        after a new password, `read_at` is the time of the write.
        """
        if not changes and password is None:
            return user
        text = None if password is None else password.password
        if password is None and changes.get("isAdmin", True):
            after = await self._write(user, changes, audit_context, holder=holder, password=None)
        else:
            # Navidrome applies a change that the account began before with the rights that it had then.
            async with self._user_writes.blocked(user.id):
                after = await self._write(
                    user, changes, audit_context, holder=holder, password=text
                )
        self._directory.put(after)
        self._record_change(after, _differences(user, after), audit_context)
        if password is not None:
            event = AccountLocked if isinstance(password, Lock) else AccountReadmitted
            now, audit_fields = time.time(), audit_context.as_fields()
            self._record(
                event(time=now, account=after.user_name, detail=password.detail, **audit_fields)
            )
        return after

    async def set_libraries(
        self, identity: Identity, user: User, audit_context: AuditContext, *, holder: Binding
    ) -> None:
        """Set the account's libraries to those of the identity's groups. `holder`: its binding as it was
        read."""
        policy = self._policy()
        if user.is_admin or not policy.library_groups:
            return
        libraries = await self._libraries()
        target = policy.libraries(identity, libraries)
        # Navidrome does not allow removing an account's last library: see `keeps_denied_libraries`.
        if not target or target == user.libraries:
            return
        await self._write_libraries(user, target, holder=holder)
        self._directory.put(replace(user, libraries=target))
        names = {library.id: library.name for library in libraries}
        change = (
            f"libraries: {_library_names(user.libraries, names)} → {_library_names(target, names)}"
        )
        self._record_change(user, (change,), audit_context)

    async def keeps_denied_libraries(self, identity: Identity, user: User) -> bool:
        """Return whether the account has libraries, may have none, and can't be left with none: Navidrome
        does not allow removing an account's last library."""
        policy = self._policy()
        admin = policy.admin(identity)
        if (user.is_admin if admin is None else admin) or not policy.library_groups:
            return False
        target = policy.libraries(identity, await self._libraries())
        return target is not None and not target and bool(user.libraries)

    async def recover(self, intent: Intent, audit_context: AuditContext) -> None:
        """Recover an interrupted write: lock and delete an account that it recreated."""
        if intent.kind is IntentKind.WRITE:
            await self._verify_pending_write(intent, audit_context)

    async def _write(
        self,
        user: User,
        changes: Mapping[str, object],
        audit_context: AuditContext,
        *,
        holder: Binding | None,
        password: str | None = None,
    ) -> User:
        """Write `user`, as just read, with these changes and, if given, a new password.

        `holder`: the account's binding as it was read, None if it has none; if the binding has changed,
        nothing is written (`StaleBinding`). Raises `AccountRecreated` if the account was deleted meanwhile,
        `NameTaken`, `Unavailable`, `Busy`.
        """
        name = str(changes.get("userName", user.user_name))
        intent = await self._open_write(user, name, holder)
        try:
            after = await self._api.write(user, changes, password)
        except ApiError:
            await self._bindings.close_intent(intent)
            raise
        except Unavailable as error:
            if error.sent:
                # Navidrome may still carry it out: the intent stays open, and is recovered later.
                await self._verify_pending_write(intent, audit_context)
            else:
                await self._bindings.close_intent(intent)
            raise
        try:
            await self._verify(
                after, user.created_at, audit_context, had_password=password is not None
            )
        except AccountRecreated:
            await self._bindings.close_intent(intent)
            raise
        await self._bindings.close_intent(intent)
        return after

    async def _write_libraries(
        self, user: User, libraries: frozenset[int], *, holder: Binding | None
    ) -> None:
        """Set the libraries of `user`; `holder` and exceptions as for `change`. Navidrome responds 404 for an
        account that was deleted, and creates none."""
        intent = await self._open_write(user, user.user_name, holder)
        try:
            await self._api.set_libraries(user.id, libraries)
        except Unavailable as error:
            if not error.sent:
                await self._bindings.close_intent(intent)
            raise
        except ApiError:
            await self._bindings.close_intent(intent)
            raise
        await self._bindings.close_intent(intent)

    async def _open_write(self, user: User, name: str, holder: Binding | None) -> Intent:
        """Commit the intent to write to an account, whose name will be `name`."""
        if self._policy().reserves(user.user_name) or self._policy().reserves(name):
            raise ValueError(f"{user.user_name} is reserved: the shim does not write to it")
        return await self._bindings.open_intent(
            Intent(
                key=f"write {user.id}",
                kind=IntentKind.WRITE,
                navidrome_id=user.id,
                user_name=name,
                created_at=user.created_at,
                owner=self._bindings.owner,
                started_at=time.time(),
            ),
            holder,
        )

    async def _verify_pending_write(self, intent: Intent, audit_context: AuditContext) -> None:
        user = await self._api.user(intent.navidrome_id)
        if user is None:
            return
        try:
            await self._verify(user, intent.created_at, audit_context, had_password=False)
        except AccountRecreated:
            await self._bindings.close_intent(intent)
            raise

    async def _verify(
        self, user: User, created_at: str, audit_context: AuditContext, *, had_password: bool
    ) -> None:
        """Verify that the account was not deleted before the write.

        Navidrome sets `createdAt` again when it creates a missing account, but the owner of the account may
        also write that field. So an account counts as recreated only if an empty password opens it, or if it
        just got a new password.
        """
        opened = not had_password and await self._api.opens_without_password(user.user_name)
        if opened:
            after = await self._api.write(user, {}, new_password(self._policy()))
            rule = self._bindings.rule_of(user.id) or TokenRule(user.id)
            await self._bindings.put_rule(replace(rule, void_before=after.read_at))
        if (opened or had_password) and user.created_at != created_at:
            await self._api.delete(user.id)
            self._record(
                AccountRecreatedByRace(
                    time=time.time(), account=user.user_name, **audit_context.as_fields()
                )
            )
            raise AccountRecreated(user.user_name)
        if opened:
            self._record(
                AccountLocked(
                    time=time.time(),
                    account=user.user_name,
                    detail="an empty password opened it",
                    **audit_context.as_fields(),
                )
            )

    async def _libraries(self) -> tuple[Library, ...]:
        return await self._directory.read_libraries(self._api.libraries)

    def _record_change(
        self, user: User, changes: tuple[str, ...], audit_context: AuditContext
    ) -> None:
        if changes:
            audit_fields = audit_context.as_fields()
            now = time.time()
            self._record(
                AccountChanged(time=now, account=user.user_name, changes=changes, **audit_fields)
            )


def creation_key(user_name: str) -> str:
    """Return the key of the intent to create an account with this name."""
    return f"create {normalize_name(user_name)}"


def new_id() -> str:
    """Return an id in Navidrome's format: 22 letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(22))


def _differences(before: User, after: User) -> tuple[str, ...]:
    pairs = (
        ("userName", before.user_name, after.user_name),
        ("name", before.name, after.name),
        ("email", before.email, after.email),
        ("isAdmin", before.is_admin, after.is_admin),
    )
    return tuple(f"{name}: {previous} → {new}" for name, previous, new in pairs if previous != new)


def _library_names(libraries: frozenset[int], names: Mapping[int, str]) -> str:
    return ", ".join(names.get(each, str(each)) for each in sorted(libraries)) or "none"
