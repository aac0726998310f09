"""Carry out an operator's commands on accounts, in a process beside the running shim.

The store's intents keep the two processes from working on one account at once, and the running shim sees a
change within `REFRESH_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from shim.audit.events import Event
from shim.navidrome.errors import NavidromeError
from shim.navidrome.models import User
from shim.provisioning.account_writer import AccountRecreated
from shim.provisioning.admin import ensure_admin_access
from shim.provisioning.binding_store import Busy, Outdated
from shim.provisioning.factory import build_service, own_account
from shim.provisioning.models import NOTHING_WRITTEN, AuditContext, Binding, BindingState
from shim.provisioning.policy import field_changes, last_written
from shim.provisioning.service import REFRESH_SECONDS, ProvisioningService
from shim.settings import Settings
from shim.store.database import Database
from shim.store.errors import StoreError
from shim.trust.names import normalize_name

# The number of attempts while the running shim changes the binding at the same time.
_TRIES = 5


class OperationError(Exception):
    """The operation is not possible; the message states the reason and a remedy."""


@dataclass(frozen=True, slots=True)
class AccountRow:
    """One account of `users list`. `admin` is None if Navidrome could not be reached; `state` is the
    binding's, or `unbound`, `reserved` or `gone`. `last_seen` is in seconds since the epoch."""

    account: str
    navidrome_id: str
    uid: str | None
    last_seen: float | None
    admin: bool | None
    state: str
    empty_password: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """A change that `users sync` would write to an account: a field, its current and its new value."""

    account: str
    field: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Hold:
    """A user name that is reserved for the person `uid`, None for no person, until `until` (seconds since the
    epoch)."""

    name: str
    uid: str | None
    until: float


class Operations:
    """The operations of the commands, on an opened store. `users` is None if Navidrome could not be reached;
    `unavailable_reason` is the reason."""

    def __init__(
        self, service: ProvisioningService, users: tuple[User, ...] | None, unavailable_reason: str
    ) -> None:
        self._service = service
        self._users = users
        self.unavailable_reason = unavailable_reason

    async def rows(self) -> list[AccountRow]:
        """Return every account of the server, and every binding, by name."""
        users = {user.id: user for user in self._users or ()}
        bindings = {binding.navidrome_id: binding for binding in self._service.bindings.all()}
        await self._find_empty_passwords(users)
        open_names = self._service.reconciler.without_password
        rows = [self._row(user, bindings.get(user.id), open_names) for user in users.values()]
        for binding in bindings.values():
            if binding.navidrome_id not in users:
                state = str(binding.state) if self._users is None else "gone"
                rows.append(_binding_row(binding, None, state))
        return sorted(rows, key=lambda row: normalize_name(row.account))

    async def plan(self, name: str | None) -> list[Change]:
        """Return the differences from the provider's last values, of one account or of all."""
        changes = []
        for binding, user in await self._synced(name):
            record, libraries = await self._target_state(binding, user)
            for field, new in record.items():
                changes.append(Change(user.user_name, field, str(user.record.get(field)), str(new)))
            if libraries is not None:
                previous = ", ".join(map(str, sorted(user.libraries)))
                new = ", ".join(map(str, sorted(libraries)))
                changes.append(Change(user.user_name, "libraries", previous, new))
        return changes

    async def sync(self, name: str | None) -> None:
        """Write the changes of `plan`."""
        service = self._service
        for binding, _ in await self._synced(name):
            user = await service.api.user(binding.navidrome_id)
            if user is None:
                continue
            audit_context = AuditContext("admin_action", binding.identity)
            updater = service.writer
            with _as_operation_error(user.user_name):
                record, _ = await self._target_state(binding, user)
                after = await updater.change(user, record, audit_context, holder=binding)
                await updater.set_libraries(binding.identity, after, audit_context, holder=binding)
                written = last_written(binding.identity, binding.last_written)
                await service.bindings.put(replace(binding, last_written=written))

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
            f"The next user who signs in as {account} may claim it, {binding.provider_username} too.",
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

    async def unlock(self, name: str) -> None:
        """Unlock an account without a linked person. Tokens issued before stay void."""
        user, bindings = self._account(name), self._service.bindings
        rule, binding = bindings.rule_of(user.id), bindings.by_account(user.id)
        if rule is None or not rule.locked:
            raise OperationError(f"{user.user_name} is not locked")
        if binding is not None:
            raise OperationError(
                f"{user.user_name} was linked before: the lock ends when a user who may have it signs in"
            )
        await bindings.put_rule(replace(rule, locked=False))

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
        await self._service.bindings.end_rest(normalized)
        await asyncio.sleep(2 * REFRESH_SECONDS)

    async def unlink(self, name: str) -> bool:
        """Unlink an account from its person. Return whether its password is already replaced; if not, the
        running shim does it."""
        binding = self._linked(name)
        with _as_operation_error(name):
            closed = await self._release(binding)
        # The running shim refreshes this often: after this wait, the link is no longer in force there.
        await asyncio.sleep(2 * REFRESH_SECONDS)
        return closed

    async def lock(self, name: str) -> None:
        """Replace an account's password by a random one that is stored nowhere."""
        with _as_operation_error(name):
            user = await self._service.api.user(self._account(name).id)
            if user is None:
                raise OperationError(f"{name} was deleted in Navidrome meanwhile")
            await self._service.lifecycle.lock(user, AuditContext("admin_action"))
        # The running shim refreshes this often: after this wait, it accepts no token of the account.
        await asyncio.sleep(2 * REFRESH_SECONDS)

    async def _release(self, binding: Binding) -> bool:
        """Unlink, also if the running shim changes the binding at the same time, as long as the person stays
        the same."""
        release, bindings = self._service.lifecycle.unlink, self._service.bindings
        for _ in range(_TRIES):
            try:
                return await release(binding, AuditContext("admin_action", binding.identity))
            except Outdated:
                await bindings.load()
                found = bindings.by_account(binding.navidrome_id)
                if found is None or found.uid != binding.uid:
                    break
                binding = found
        raise Busy("another process changed it meanwhile. Try again.")

    def _row(self, user: User, binding: Binding | None, open_names: tuple[str, ...]) -> AccountRow:
        is_open = user.user_name in open_names
        if self._service.policy.reserves(user.user_name):
            return AccountRow(
                user.user_name, user.id, None, None, user.is_admin, "reserved", is_open
            )
        if binding is None:
            return AccountRow(
                user.user_name, user.id, None, None, user.is_admin, "unbound", is_open
            )
        return replace(_binding_row(binding, user.is_admin, binding.state), empty_password=is_open)

    async def _find_empty_passwords(self, users: dict[str, User]) -> None:
        if self._users is not None:
            await self._service.reconciler.find_empty_passwords(users.values())

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
        if not service.directory.libraries:
            service.directory.libraries = await service.api.libraries()
        libraries = service.policy.libraries(identity, service.directory.libraries)
        return record, None if not libraries or libraries == user.libraries else libraries

    def _binding(self, name: str) -> Binding:
        normalized = normalize_name(name)
        for binding in self._service.bindings.all():
            if normalized in (binding.normalized_name, normalize_name(binding.provider_username)):
                return binding
        raise OperationError(f"no account named {name} is linked. Run `users list` to see all.")

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
            raise OperationError(f"Navidrome has no account {name}")
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
    settings: Settings, record: Callable[[Event], None]
) -> AsyncIterator[Operations]:
    """Return the operations for these settings. Raises `StoreError` if the store can't be opened."""
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
        yield Operations(service, users, unavailable_reason)
    finally:
        await service.api.close()
        await asyncio.to_thread(database.close)


@contextmanager
def _as_operation_error(name: str) -> Iterator[None]:
    """Raise expected errors as `OperationError`."""
    try:
        yield
    except AccountRecreated:
        raise OperationError(f"{name} was deleted in Navidrome meanwhile") from None
    except (Busy, NavidromeError) as error:
        raise OperationError(f"{name}: {error}") from None


def _binding_row(binding: Binding, admin: bool | None, state: str) -> AccountRow:
    return AccountRow(
        binding.user_name,
        binding.navidrome_id,
        binding.uid,
        binding.last_seen,
        admin,
        str(state),
    )
