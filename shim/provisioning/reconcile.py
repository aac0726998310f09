"""Compare Navidrome's accounts with the bindings, off the hot path.

A rename by hand in Navidrome is stored, a deleted account's binding is removed, and rights changed by hand
are restored; accounts that are still to be locked are locked, and interrupted writes are recovered. Each
account is processed with its person and name locked, and read again before any change. `EmptyPasswords` finds
accounts that an empty password opens: each test is a failed login in Navidrome's log, so an account is tested
once, and again only after it was changed (`updatedAt`, which every write sets).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, delete, insert, select

from shim.audit.events import Event
from shim.audit.events.provisioning import (
    AccountCreated,
    EmptyPasswordsFound,
    ProvisioningFailed,
)
from shim.navidrome.api import Navidrome
from shim.navidrome.errors import ResponseTooLarge
from shim.navidrome.models import User
from shim.provisioning.account_writer import AccountRecreated, AccountWriter
from shim.provisioning.binding_store import BindingStore, Busy, Watcher
from shim.provisioning.directory import Directory, KeyLocks
from shim.provisioning.lifecycle import AccountLifecycle, account_keys
from shim.provisioning.models import (
    AuditContext,
    Binding,
    BindingState,
    Intent,
    IntentKind,
    NameHold,
)
from shim.provisioning.policy import AccountPolicy
from shim.store.database import Database
from shim.store.schema import PASSWORD_TESTS
from shim.trust.identity import Identity
from shim.trust.names import normalize_name


class Reconciler:
    """Compares the two. `watcher` is notified of each changed account before a request sees the change."""

    def __init__(
        self,
        api: Navidrome,
        bindings: BindingStore,
        directory: Directory,
        locks: KeyLocks,
        writer: AccountWriter,
        lifecycle: AccountLifecycle,
        policy: Callable[[], AccountPolicy],
        record: Callable[[Event], None],
        watcher: Watcher,
    ) -> None:
        self._api = api
        self._bindings = bindings
        self._directory = directory
        self._locks = locks
        self._writer = writer
        self._lifecycle = lifecycle
        self._policy = policy
        self._record = record
        self._watcher = watcher
        self._changed = watcher.discard
        self._run_lock = asyncio.Lock()
        self._empty_passwords = EmptyPasswords(api, bindings.database)
        self.without_password: tuple[str, ...] = ()

    async def run(self) -> None:
        """Run all steps once. Raises what the API and the store raise; completed steps remain."""
        async with self._run_lock:
            await self._run()

    async def _run(self) -> None:
        await self.recover_intents(AuditContext("reconcile"))
        users = await self._list()
        self._directory.forget_libraries()
        if self._policy().library_groups:
            await self._directory.read_libraries(self._api.libraries)
        by_id = {user.id: user for user in users}
        for binding in self._bindings.all():
            if self._drifted(binding, by_id.get(binding.navidrome_id)):
                await self._repair(binding)
        await self.find_empty_passwords(users)

    async def follow_names(self) -> None:
        """List the users, and store the new names of their accounts; called after a request that may have
        changed them. Raises what the API and the store raise."""
        by_id = {user.id: user for user in await self._list()}
        for binding in self._bindings.all():
            user = by_id.get(binding.navidrome_id)
            if user is None or user.user_name != binding.user_name:
                await self._repair(binding)

    async def _list(self) -> tuple[User, ...]:
        before = self._directory.all()
        users = await self._directory.read(self._api.users)
        await self._hold_freed_names(before, users)
        by_id = {user.id for user in users}
        if any(user.id not in by_id for user in before):
            self._watcher.revoked()
        return users

    async def recover_intents(self, audit_context: AuditContext) -> None:
        """Recover every interrupted write. Raises what the API raises: then an account may be without a
        password, and no identity may be admitted."""
        for intent in self._bindings.intents():
            if self._bindings.is_abandoned(intent):
                async with self._locks.held(*account_keys(intent.uid, intent.user_name)):
                    if self._bindings.intent(intent.key) is intent:
                        try:
                            await self._recover(intent, audit_context)
                        except ResponseTooLarge as error:
                            # The intent stays open, and its person gets 503; others do not have to wait for
                            # it.
                            self._unreadable(intent.user_name, intent.uid, error)

    async def find_empty_passwords(self, users: Iterable[User]) -> None:
        """Test every account that is new or was written since, for an empty password."""
        known = frozenset(self.without_password)
        self.without_password = await self._empty_passwords.find(users)
        if not known.issuperset(self.without_password):
            self._record(EmptyPasswordsFound(time=time.time(), accounts=self.without_password))

    def _drifted(self, binding: Binding, user: User | None) -> bool:
        """Return whether an account differs from the policy."""
        policy = self._policy()
        if user is None or binding.lock_pending or user.user_name != binding.user_name:
            return True
        if binding.state is BindingState.UNLINKED:
            return False
        active = binding.state is BindingState.ACTIVE
        if active and not policy.allows(binding.identity):
            return True
        admin = policy.admin(binding.identity)
        if admin is not None and admin is not user.is_admin and (active or user.is_admin):
            return True
        target = self._policy().libraries(binding.identity, self._directory.libraries)
        if target is None or user.is_admin or target == user.libraries:
            return False
        # An account whose person the policy denies keeps its last libraries: no password or token opens it.
        return active or bool(target)

    async def _repair(self, binding: Binding) -> None:
        audit_context, lifecycle = AuditContext("reconcile", binding.identity), self._lifecycle
        keys = account_keys(binding.uid, binding.user_name, binding.provider_username)
        async with self._locks.held(*keys):
            now = self._bindings.by_account(binding.navidrome_id)
            if now is None or now.uid != binding.uid:
                return
            user = None
            try:
                user = await self._api.user(now.navidrome_id)
                if user is None:
                    self._changed(now.uid)
                    await lifecycle.remove_binding(now, audit_context)
                    return
                if user.user_name != now.user_name:
                    self._changed(now.uid)
                    now = await lifecycle.adopt_rename(now, user, audit_context)
                if now.state is BindingState.ACTIVE and await self._denies(now, user):
                    self._changed(now.uid)
                    await lifecycle.deny(now, now.identity, audit_context)
                elif now.lock_pending:
                    await lifecycle.finish_lock(now, audit_context)
                elif now.state is not BindingState.UNLINKED:
                    await lifecycle.restore_rights(now, user, audit_context)
            except AccountRecreated:
                self._changed(now.uid)
                await lifecycle.remove_binding(now, audit_context)
            except Busy as error:  # another process works on it; the next run tries again
                if user is not None:
                    lifecycle.report_kept_admin(now, user, str(error), audit_context)
            except ResponseTooLarge as error:
                self._changed(now.uid)
                self._unreadable(now.user_name, now.uid, error)

    async def _denies(self, binding: Binding, user: User) -> bool:
        """Return whether the policy denies the person of an active account."""
        if not self._policy().allows(binding.identity):
            return True
        return await self._writer.keeps_denied_libraries(binding.identity, user)

    async def _hold_freed_names(self, before: tuple[User, ...], users: tuple[User, ...]) -> None:
        """Hold names that were freed in Navidrome, also those of accounts without a binding."""
        names = {normalize_name(user.user_name) for user in users}
        until = time.time() + self._policy().name_hold_seconds
        freed = []
        for user in before:
            normalized = normalize_name(user.user_name)
            linked = self._bindings.by_account(user.id) is not None
            if normalized and normalized not in names and not linked and await self._is_freed(user):
                freed.append(NameHold(normalized, user.id, None, until))
        await self._bindings.hold_names(freed)

    async def _is_freed(self, user: User) -> bool:
        """Return whether no account has the name of an account that is no longer listed, as far as known."""
        if not self._api.unreadable:
            return True
        try:
            now = await self._api.user(user.id)
        except ResponseTooLarge:
            return False
        return now is None or normalize_name(now.user_name) != normalize_name(user.user_name)

    def _unreadable(self, name: str, uid: str | None, error: ResponseTooLarge) -> None:
        self._record(ProvisioningFailed(time=time.time(), detail=str(error), user=name, uid=uid))

    async def _recover(self, intent: Intent, audit_context: AuditContext) -> None:
        try:
            if intent.kind is IntentKind.CREATE:
                await self._finish_interrupted_create(intent, audit_context)
                return
            await self._writer.recover(intent, audit_context)
        except AccountRecreated:
            binding = self._bindings.by_account(intent.navidrome_id)
            if binding is not None:
                self._changed(binding.uid)
                await self._lifecycle.remove_binding(binding, audit_context)
            return
        await self._bindings.close_intent(intent)

    async def _finish_interrupted_create(self, intent: Intent, audit_context: AuditContext) -> None:
        """Bind an account whose creation was interrupted to the person that it was created for. The next
        request writes the person's other fields and rights."""
        user = await self._api.user(intent.navidrome_id)
        linked = user is not None and self._bindings.by_account(user.id) is not None
        if user is None or linked or intent.uid is None or self._bindings.by_uid(intent.uid):
            await self._bindings.close_intent(intent)
            return
        self._directory.put(user)
        identity = Identity(intent.user_name, uid=intent.uid, uid_source=intent.uid_source)
        now = time.time()
        await self._bindings.put(
            Binding(
                uid=intent.uid,
                uid_source=intent.uid_source,
                navidrome_id=user.id,
                user_name=user.user_name,
                provider_username=intent.user_name,
                created_by_shim=True,
                first_seen=now,
                last_seen=now,
                identity=identity,
            ),
            ends=intent,
        )
        self._record(
            AccountCreated(
                time=now,
                account=user.user_name,
                navidrome_id=user.id,
                admin=user.is_admin,
                notes=("its creation was interrupted, and then completed",),
                **AuditContext(audit_context.trigger, identity).as_fields(),
            )
        )


@dataclass(frozen=True, slots=True)
class PasswordTest:
    """The result of a test: whether an empty password opened the account as it was at `updated_at`."""

    updated_at: str
    empty: bool


class EmptyPasswords:
    """Tests accounts, and stores the results in `database`; None keeps them in memory only."""

    def __init__(self, api: Navidrome, database: Database | None) -> None:
        self._api = api
        self._database = database
        self._tests: dict[str, PasswordTest] = {}

    async def find(self, users: Iterable[User]) -> tuple[str, ...]:
        """Return the names of these accounts that an empty password opens, sorted. Raises what the API and
        the store raise."""
        existing = {user.id: user for user in users if user.user_name}
        if self._database is not None and any(self._is_due(user) for user in existing.values()):
            # Another process may have tested them.
            self._tests = await self._database.read_async(_stored)
        await self._test([user for user in existing.values() if self._is_due(user)], existing)
        return tuple(
            sorted(user.user_name for user in existing.values() if self._tests[user.id].empty)
        )

    def _is_due(self, user: User) -> bool:
        test = self._tests.get(user.id)
        return test is None or test.updated_at != user.updated_at

    async def _test(self, to_test: list[User], existing: Mapping[str, User]) -> None:
        found: dict[str, PasswordTest] = {}
        try:
            for user in to_test:
                empty = await self._api.opens_without_password(user.user_name)
                found[user.id] = PasswordTest(user.updated_at, empty)
        finally:
            # Results from before a failure are kept, so those accounts are not tested again.
            removed = self._tests.keys() - existing.keys()
            self._tests.update(found)
            for navidrome_id in removed:
                del self._tests[navidrome_id]
            if self._database is not None and (found or removed):
                await self._database.write_async(
                    lambda connection: _store(connection, found, removed)
                )


def _stored(connection: Connection) -> dict[str, PasswordTest]:
    return {
        row.navidrome_id: PasswordTest(row.updated_at, row.empty)
        for row in connection.execute(select(PASSWORD_TESTS))
    }


def _store(
    connection: Connection, found: Mapping[str, PasswordTest], removed: Iterable[str]
) -> None:
    previous = [{"old": navidrome_id} for navidrome_id in (*found, *removed)]
    connection.execute(
        delete(PASSWORD_TESTS).where(PASSWORD_TESTS.c.navidrome_id == bindparam("old")), previous
    )
    new = [
        {"navidrome_id": navidrome_id, "updated_at": test.updated_at, "empty": test.empty}
        for navidrome_id, test in found.items()
    ]
    if new:
        connection.execute(insert(PASSWORD_TESTS), new)
