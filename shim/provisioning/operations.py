"""Carry out an administrator's operations on accounts: for the `users` commands, the API and the console.

A command runs in a process beside the running shim (`operations`): the store's intents keep the two processes
from working on one account at once. The API and the console use the running shim's own service
(`running_operations`), whose locks do the same within the process. Every running shim sees a change within
`REFRESH_SECONDS`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from shim.audit.events import Event, Operator
from shim.audit.events.provisioning import AccountRebound
from shim.navidrome.errors import NavidromeError
from shim.navidrome.models import User
from shim.provisioning.account_writer import AccountRecreated
from shim.provisioning.admin import ensure_admin_access
from shim.provisioning.binding_store import Busy, StaleBinding
from shim.provisioning.factory import build_service, own_account
from shim.provisioning.lifecycle import account_keys
from shim.provisioning.models import (
    NOTHING_WRITTEN,
    REBIND_SOURCE,
    AuditContext,
    Binding,
    BindingState,
    TokenRule,
    is_person,
    waiting_uid,
)
from shim.provisioning.policy import field_changes, last_written
from shim.provisioning.service import REFRESH_SECONDS, ProvisioningService
from shim.settings import Settings
from shim.settings.identity import identity_rules
from shim.store.database import Database
from shim.store.errors import StoreError
from shim.trust.identity import Identity, IdentityRules, Role, parse_value
from shim.trust.names import normalize_name
from shim.trust.rejection import RequestRejected

# The number of attempts while the running shim changes the binding at the same time.
_TRIES = 5


class OperationError(Exception):
    """The operation is not possible; the message states the reason and a remedy."""


class UnknownAccount(OperationError):
    """There is no such account."""


@dataclass(frozen=True, slots=True)
class AccountRow:
    """One account. `admin` is None if Navidrome could not be reached. `state` is the binding's, or `waiting`
    (for its user, after `users rebind`), `unbound`, `reserved` or `gone`. `user`, `display_name`, `email` and
    `groups` are the identity's, as the provider stated them last; None if no identity is linked. `libraries`
    are names, for an admin `("all",)`, None if not known. `locked`: every Navidrome token is void, and the
    password is a random one. Times are in seconds since the epoch."""

    account: str
    navidrome_id: str
    uid: str | None
    last_seen: float | None
    admin: bool | None
    state: str
    empty_password: bool = False
    locked: bool = False
    user: str | None = None
    display_name: str | None = None
    email: str | None = None
    groups: tuple[str, ...] | None = None
    libraries: tuple[str, ...] | None = None
    first_seen: float | None = None
    uid_source: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A change that `users sync` would write to an account: a field, its current and its new value."""

    account: str
    field: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.account}: {self.field}: {self.old} → {self.new}"


@dataclass(frozen=True, slots=True)
class Rebinding:
    """What `users rebind` does with one account. `uid` and `uid_source` are the new ones; `user_name` is the
    name that its user has at the provider. `waits`: the uid is taken from the next sign-in with this name.
    `problem` is why the account can't be bound again, empty if it can."""

    account: str
    user_name: str
    uid: str = ""
    uid_source: str = ""
    waits: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """A user name that is reserved for the person `uid`, None for no person, until `until` (seconds since the
    epoch)."""

    name: str
    uid: str | None
    until: float


class Operations:
    """The operations on an opened store, done by `operator`. `users` is None if Navidrome could not be
    reached; `unavailable_reason` is the reason. `tests_passwords`: `rows` tests new accounts for an empty
    password."""

    def __init__(
        self,
        service: ProvisioningService,
        users: tuple[User, ...] | None,
        unavailable_reason: str,
        rules: IdentityRules,
        record: Callable[[Event], None],
        operator: Operator,
        *,
        tests_passwords: bool = True,
    ) -> None:
        self._service = service
        self._rules = rules
        self._record = record
        self._operator = operator
        self._users = users
        self._tests_passwords = tests_passwords
        self.unavailable_reason = unavailable_reason

    def _context(self, identity: Identity | None = None) -> AuditContext:
        return AuditContext("admin_action", identity, operator=self._operator)

    async def rows(self) -> list[AccountRow]:
        """Return every account of the server, and every binding, by name."""
        users = {user.id: user for user in self._users or ()}
        bindings = {binding.navidrome_id: binding for binding in self._service.bindings.all()}
        if self._users is not None and self._tests_passwords:
            await self._service.reconciler.find_empty_passwords(users.values())
        libraries = await self._library_names()
        rows = [self._row(user, bindings.get(user.id), libraries) for user in users.values()]
        for binding in bindings.values():
            if binding.navidrome_id not in users:
                state = str(binding.state) if self._users is None else "gone"
                rows.append(self._binding_row(binding, state))
        return sorted(rows, key=lambda row: normalize_name(row.account))

    async def plan(self, name: str | None) -> list[Change]:
        """Return the differences from the provider's last values, of one account or of all."""
        changes = []
        names: dict[int, str] | None = None
        for binding, user in await self._synced(name):
            record, libraries = await self._target_state(binding, user)
            for field, new in record.items():
                changes.append(Change(user.user_name, field, str(user.record.get(field)), str(new)))
            if libraries is not None:
                names = await self._library_names() if names is None else names
                previous, new = (
                    ", ".join(sorted(names.get(each, str(each)) for each in ids)) or "none"
                    for ids in (user.libraries, libraries)
                )
                changes.append(Change(user.user_name, "libraries", previous, new))
        return changes

    async def sync(self, name: str | None) -> None:
        """Write the changes of `plan`."""
        for synced, _ in await self._synced(name):
            with _as_operation_error(synced.user_name):
                async with self._exclusive(synced):
                    await self._sync(synced.navidrome_id)

    async def _sync(self, navidrome_id: str) -> None:
        service = self._service
        binding = service.bindings.by_account(navidrome_id)
        if binding is None or binding.state is not BindingState.ACTIVE:
            return
        user = await service.api.user(navidrome_id)
        if user is None:
            return
        audit_context = self._context(binding.identity)
        record, _ = await self._target_state(binding, user)
        after = await service.writer.change(user, record, audit_context, holder=binding)
        await service.writer.set_libraries(binding.identity, after, audit_context, holder=binding)
        written = last_written(binding.identity, binding.last_written)
        await service.bindings.put(replace(binding, last_written=written))

    def rebind_plan(self, name: str | None, *, same_source: bool) -> list[Rebinding]:
        """Return how one linked account, or each whose uid has another source than the settings ask for, is
        bound under these settings. `same_source`: each of the others too."""
        if name is not None:
            chosen = [self._linked(name)]
        else:
            chosen = [
                each
                for each in self._service.bindings.all()
                if each.uid_source != REBIND_SOURCE and (same_source or not self._is_current(each))
            ]
        found = [(each, self._rebinding(each)) for each in chosen if each.uid is not None]
        other_uids = {each.uid for each in self._service.bindings.all()} - {
            each.uid for each in chosen
        }
        uses = Counter(plan.uid for _, plan in found if plan.uid)
        plans = []
        for binding, plan in found:
            if (plan.uid, plan.uid_source) == (binding.uid, binding.uid_source):
                continue
            if uses[plan.uid] > 1 or plan.uid in other_uids:
                plan = replace(plan, problem=f"another account would have the uid {plan.uid} too")
            plans.append(plan)
        return sorted(plans, key=lambda plan: normalize_name(plan.account))

    async def rebind(self, plans: Iterable[Rebinding]) -> None:
        """Carry out these plans, without those that have a problem."""
        bindings = self._service.bindings
        for plan in plans:
            binding = bindings.by_name(normalize_name(plan.account))
            if plan.problem or binding is None or binding.uid is None:
                continue
            identity = replace(
                binding.identity,
                username=plan.user_name,
                uid=plan.uid,
                uid_source=plan.uid_source,
            )
            with _as_operation_error(plan.account):
                await bindings.put(
                    replace(
                        binding,
                        uid=plan.uid,
                        uid_source=plan.uid_source,
                        provider_username=plan.user_name,
                        identity=identity,
                    )
                )
            if not plan.waits:
                context = self._context(identity).as_fields()
                source = plan.uid_source
                self._record(
                    AccountRebound(
                        time=time.time(), account=plan.account, uid_source=source, **context
                    )
                )
        # The running shim refreshes this often: after this wait, the new uids are in force there.
        await asyncio.sleep(2 * REFRESH_SECONDS)

    def _is_current(self, binding: Binding) -> bool:
        """Return whether the binding's uid has the source that the settings ask for."""
        current = Identity("", uid=binding.uid, uid_source=self._rules.uid_source_name)
        return is_person(binding.uid, binding.uid_source, current)

    def _rebinding(self, binding: Binding) -> Rebinding:
        rules, account = self._rules, binding.user_name
        values = {Role.USERNAME: binding.provider_username}
        remedy = f"use `users unlink {account}`, and let the user sign in"
        if rules.email_decides:
            email = _deciding_email(binding.identity.email)
            if email is None:
                problem = f"no e-mail is known that can be the user name or the uid: {remedy}"
                return Rebinding(account, binding.provider_username, problem=problem)
            values[Role.EMAIL] = email
        try:
            identity = rules.identity(values, None)
        except RequestRejected as rejection:
            problem = f"{rejection.detail}: {remedy}"
            return Rebinding(account, binding.provider_username, problem=problem)
        name = identity.username
        if identity.uid is None:
            return Rebinding(account, name, waiting_uid(name), REBIND_SOURCE, waits=True)
        return Rebinding(account, name, identity.uid, identity.uid_source)

    def unlink_plan(self, name: str) -> list[str]:
        """Return the effects of `unlink`, in sentences."""
        binding = self._linked(name)
        account, person = binding.user_name, f"{binding.provider_username} (uid {binding.uid})"
        plan = [f"{account} is linked to {person}. The link is removed."]
        if self._users is not None and binding.navidrome_id not in {u.id for u in self._users}:
            hours = self._service.policy.name_hold_seconds / 3600
            return [
                *plan,
                (
                    f"The account was deleted in Navidrome. {person} may have the name {account} again; it "
                    f"is held for this user for {hours:g} hours (`users holds end {account}` ends "
                    "that)."
                ),
            ]
        return [
            *plan,
            (
                "Its password is replaced by a random one. Its tokens become void, and every "
                "response in progress ends."
            ),
            f"The next user who signs in as {account} may be linked to it, also {binding.provider_username}.",
        ]

    def lock_plan(self, name: str) -> list[str]:
        """Return the effects of `lock`, in sentences."""
        user = self._account(name)
        binding = self._service.bindings.by_account(user.id)
        plan = [
            (
                f"The password of {user.user_name} is replaced by a random one. Its tokens become void, "
                "and every response in progress ends."
            )
        ]
        if binding is None or binding.uid is None:
            return [
                *plan,
                "It is not linked: the lock ends when a user claims it, or with `users unlock`.",
            ]
        return [
            *plan,
            (
                f"{binding.provider_username} (uid {binding.uid}) is let in again at the next "
                f"sign-in, if the "
                "policy allows it, and can then set a password. To keep this user out, use the identity "
                "provider."
            ),
        ]

    def unlock_plan(self, name: str) -> list[str]:
        """Return the effects of `unlock`, in sentences."""
        user, _ = self._unlockable(name)
        return [
            f"{user.user_name} can be used again. Tokens that were issued before the lock stay void.",
            "Its password stays the random one: set another one for it in Navidrome.",
        ]

    async def unlock(self, name: str) -> None:
        """Unlock an account without a linked person. Tokens issued before stay void."""
        user, rule = self._unlockable(name)
        async with self._service.locks.held(*account_keys(None, user.user_name)):
            await self._service.bindings.put_rule(replace(rule, locked=False))

    def _unlockable(self, name: str) -> tuple[User, TokenRule]:
        """Return the account and its rule, if it is locked and was never linked."""
        user, bindings = self._account(name), self._service.bindings
        rule, binding = bindings.rule_of(user.id), bindings.by_account(user.id)
        if rule is None or not rule.locked:
            raise OperationError(f"{user.user_name} is not locked")
        if binding is not None:
            raise OperationError(
                f"{user.user_name} was linked before: the lock ends when a user who may have it signs in"
            )
        return user, rule

    def holds(self) -> list[Hold]:
        """Return every user name that is held, by name."""
        found = (
            Hold(hold.normalized_name, hold.uid, hold.until)
            for hold in self._service.bindings.holds()
        )
        return sorted(found, key=lambda hold: hold.name)

    async def end_hold(self, name: str) -> None:
        """Remove the hold of a user name."""
        normalized = normalize_name(name)
        if normalized not in {hold.name for hold in self.holds()}:
            raise OperationError(f"{name} is not held. Run `users holds list` to see all.")
        await self._service.bindings.remove_name_hold(normalized)
        await asyncio.sleep(2 * REFRESH_SECONDS)

    async def unlink(self, name: str) -> bool:
        """Unlink an account from its person. Return whether its password is already replaced; if not, the
        running shim does it."""
        binding = self._linked(name)
        with _as_operation_error(name):
            async with self._exclusive(binding):
                closed = await self._release(binding)
        # The running shim refreshes this often: after this wait, the link is no longer in force there.
        await asyncio.sleep(2 * REFRESH_SECONDS)
        return closed

    async def lock(self, name: str) -> None:
        """Replace an account's password by a random one that is stored nowhere."""
        account = self._account(name)
        with _as_operation_error(name):
            async with self._exclusive(self._service.bindings.by_account(account.id), account):
                user = await self._service.api.user(account.id)
                if user is None:
                    raise OperationError(f"{name} was just deleted in Navidrome")
                await self._service.lifecycle.lock(user, self._context())
        # The running shim refreshes this often: after this wait, it accepts no token of the account.
        await asyncio.sleep(2 * REFRESH_SECONDS)

    async def _release(self, binding: Binding) -> bool:
        """Unlink, also if the running shim changes the binding at the same time, as long as the person stays
        the same."""
        release, bindings = self._service.lifecycle.unlink, self._service.bindings
        for _ in range(_TRIES):
            try:
                return await release(binding, self._context(binding.identity))
            except StaleBinding:
                await bindings.load()
                found = bindings.by_account(binding.navidrome_id)
                if found is None or found.uid != binding.uid:
                    break
                binding = found
        raise Busy("another process changed it at the same time. Try again.")

    @asynccontextmanager
    async def _exclusive(
        self, binding: Binding | None, user: User | None = None
    ) -> AsyncIterator[None]:
        """Hold the account's locks, and drop it from the known accounts before and after the change: a
        request may have read it in between."""
        service = self._service
        names = [user.user_name] if user is not None else []
        uid = None
        if binding is not None:
            uid = binding.uid
            names += [binding.user_name, binding.provider_username]
        async with service.locks.held(*account_keys(uid, *names)):
            service.discard(uid)
            try:
                yield
            finally:
                service.discard(uid)

    def _row(self, user: User, binding: Binding | None, libraries: Mapping[int, str]) -> AccountRow:
        reserved = self._service.policy.reserves(user.user_name)
        if binding is None or reserved:
            state = "reserved" if reserved else "unbound"
            row = AccountRow(user.user_name, user.id, None, None, None, state)
        else:
            row = self._binding_row(binding, str(binding.state))
        names = sorted(libraries.get(each, str(each)) for each in user.libraries)
        return replace(
            row,
            admin=user.is_admin,
            empty_password=user.user_name in self._service.reconciler.without_password,
            locked=self._service.bindings.is_locked(user.id),
            libraries=("all",) if user.is_admin else tuple(names),
        )

    def _binding_row(self, binding: Binding, state: str) -> AccountRow:
        identity = binding.identity if binding.uid is not None else None
        if binding.uid_source == REBIND_SOURCE and state == BindingState.ACTIVE:
            state = "waiting"
        return AccountRow(
            account=binding.user_name,
            navidrome_id=binding.navidrome_id,
            uid=binding.uid,
            last_seen=binding.last_seen,
            admin=None,
            state=state,
            locked=self._service.bindings.is_locked(binding.navidrome_id),
            user=None if identity is None else identity.username,
            display_name=None if identity is None else identity.name,
            email=None if identity is None else identity.email,
            groups=None if identity is None else identity.groups,
            first_seen=binding.first_seen,
            uid_source=binding.uid_source,
        )

    async def _library_names(self) -> dict[int, str]:
        """Return the names of the libraries by id, empty if Navidrome does not respond: then the ids are
        shown."""
        if self._users is None:
            return {}
        found = self._service.directory.libraries
        if not found:
            try:
                found = await self._service.api.libraries()
            except NavidromeError:
                return {}
        return {library.id: library.name for library in found}

    async def _synced(self, name: str | None) -> list[tuple[Binding, User]]:
        users = {user.id: user for user in self._known_users()}
        chosen = self._service.bindings.all() if name is None else (self._binding(name),)
        return [
            (binding, users[binding.navidrome_id])
            for binding in chosen
            if binding.state is BindingState.ACTIVE and binding.navidrome_id in users
        ]

    async def _target_state(
        self, binding: Binding, user: User
    ) -> tuple[dict[str, object], frozenset[int] | None]:
        service, identity = self._service, binding.identity
        record = field_changes(identity, user, NOTHING_WRITTEN, service.policy)
        if not service.policy.library_groups or record.get("isAdmin", user.is_admin):
            return record, None
        known = await service.directory.read_libraries(service.api.libraries)
        libraries = service.policy.libraries(identity, known)
        return record, None if not libraries or libraries == user.libraries else libraries

    def _binding(self, name: str) -> Binding:
        normalized = normalize_name(name)
        for binding in self._service.bindings.all():
            if normalized in (binding.normalized_name, normalize_name(binding.provider_username)):
                return binding
        raise UnknownAccount(f"no account named {name} is linked. Run `users list` to see all.")

    def _linked(self, name: str) -> Binding:
        binding = self._binding(name)
        if binding.uid is None:
            raise OperationError(f"{binding.user_name} is not linked")
        return binding

    def _account(self, name: str) -> User:
        """Return the account with this name, if the shim may write to it."""
        users = self._known_users()
        found = [user for user in users if normalize_name(user.user_name) == normalize_name(name)]
        if not found:
            raise UnknownAccount(f"Navidrome has no account {name}")
        if self._service.policy.reserves(name):
            raise OperationError(
                f"{name} is the shim's own account or protected, so the shim does not change it"
            )
        return found[0]

    def _known_users(self) -> tuple[User, ...]:
        if self._users is None:
            raise OperationError(self.unavailable_reason)
        return self._users


@asynccontextmanager
async def operations(
    settings: Settings, record: Callable[[Event], None], operator: Operator
) -> AsyncIterator[Operations]:
    """Return the operations for these settings, for a command. Raises `StoreError` if the store can't be
    opened."""
    database = Database(settings.database_url.get_secret_value())
    service = build_service(settings, record, database)
    if database.file is not None and not database.file.exists():
        raise StoreError(
            f"{database.display_url}: the database does not exist. Run the command with the settings of "
            f"the running shim: "
            "in its folder, with --env-file, or in its container."
        )
    try:
        await database.open_async()
        await service.bindings.load()
        unavailable_reason = ""
        users = None
        try:
            admin_access = await ensure_admin_access(service.api, own_account(settings))
            users, unavailable_reason = (
                admin_access.users,
                f"{admin_access.error}. {admin_access.remedy}",
            )
        except NavidromeError as error:
            unavailable_reason = str(error)
        service.directory.replace(users or ())
        rules = identity_rules(settings)
        yield Operations(service, users, unavailable_reason, rules, record, operator)
    finally:
        await service.api.close()
        await asyncio.to_thread(database.close)


def running_operations(
    service: ProvisioningService,
    settings: Settings,
    record: Callable[[Event], None],
    operator: Operator,
) -> Operations:
    """Return the operations on the running shim's own service."""
    fault, users, reason = service.fault, None, ""
    if fault is None:
        users = service.directory.all()
    else:
        reason = f"{fault.detail}. {fault.remedy}" if fault.remedy else fault.detail
    rules = identity_rules(settings)
    return Operations(service, users, reason, rules, record, operator, tests_passwords=False)


@contextmanager
def _as_operation_error(name: str) -> Iterator[None]:
    """Raise expected errors as `OperationError`."""
    try:
        yield
    except AccountRecreated:
        raise OperationError(f"{name} was just deleted in Navidrome") from None
    except (Busy, NavidromeError) as error:
        raise OperationError(f"{name}: {error}") from None


def _deciding_email(email: str | None) -> str | None:
    """Return the e-mail address if it can be a user name or a uid, else None."""
    try:
        return parse_value(Role.EMAIL, (email or "").encode(), decides=True) or None
    except RequestRejected:
        return None
