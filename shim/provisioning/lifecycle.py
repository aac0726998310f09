"""Change accounts and their bindings.

`AccountLifecycle`: the operations of a request, the reconciler or a command on one account. An account is
locked in the store first, so that its tokens are void even if the shim ends before Navidrome has the new
password. `Provisioner`: the steps from an accepted identity to an account that is ready. An identity that the
policy denies is rejected before any request to Navidrome. The caller of both holds the locks of the person
and the name.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from shim.audit.events import Event
from shim.audit.events.provisioning import (
    AccountBindingRemoved,
    AccountCreated,
    AccountDemotionSkipped,
    AccountLinked,
    AccountRebound,
    AccountRenamed,
    AccountUnlinked,
    ProvisioningFailed,
)
from shim.navidrome.api import Navidrome
from shim.navidrome.errors import NameTaken, NavidromeError
from shim.navidrome.models import NewUser, User
from shim.provisioning.account_writer import (
    AccountRecreated,
    AccountWriter,
    Lock,
    Readmission,
    new_id,
    new_password,
)
from shim.provisioning.binding_store import BindingStore, Busy, StaleBinding
from shim.provisioning.directory import Directory
from shim.provisioning.models import (
    NOTHING_WRITTEN,
    REBIND_SOURCE,
    AuditContext,
    Binding,
    BindingState,
    NameHold,
    TokenRule,
    is_person,
    waiting_uid,
)
from shim.provisioning.policy import (
    AccountPolicy,
    field_changes,
    is_header_safe,
    last_written,
    usable_email,
)
from shim.provisioning.user_writes import UserWrites
from shim.proxy.gate import AccountDenied
from shim.store.errors import StoreError
from shim.trust.identity import Identity
from shim.trust.names import normalize_name
from shim.trust.reasons import Reason

# Why an account is locked, by its binding's state.
_LOCK_REASONS = {
    BindingState.ACTIVE: "an administrator locked it",
    BindingState.DENIED: "the policy denies the user",
    BindingState.UNLINKED: "it was unlinked",
}


class AccountLifecycle:
    """Renames, removes, restores and locks. Raises what the API and the store raise."""

    def __init__(
        self,
        api: Navidrome,
        bindings: BindingStore,
        directory: Directory,
        user_writes: UserWrites,
        writer: AccountWriter,
        policy: Callable[[], AccountPolicy],
        record: Callable[[Event], None],
    ) -> None:
        self._api = api
        self._bindings = bindings
        self._directory = directory
        self._user_writes = user_writes
        self._writer = writer
        self._policy = policy
        self._record = record
        self._renaming = asyncio.Lock()
        self._kept_admins: set[tuple[str, str]] = set()  # that were reported, with the reason

    async def deny(self, binding: Binding, identity: Identity, audit_context: AuditContext) -> None:
        """Lock the account of a person whom the policy denies."""
        bindings = self._bindings
        if binding.state is not BindingState.DENIED:
            refused = replace(
                binding, state=BindingState.DENIED, lock_pending=True, identity=identity
            )
            rule = bindings.locked_rule(binding.navidrome_id)
            binding = await bindings.put(refused, rule=rule)
        elif binding.identity != identity:
            binding = await bindings.put(replace(binding, identity=identity))
        if binding.lock_pending:
            await self.finish_lock(binding, audit_context)

    async def unlink(self, binding: Binding, audit_context: AuditContext) -> bool:
        """Unlink: the account belongs to no person until it is claimed again. Return whether it is already
        locked; if not, the running shim locks it. Raises `Busy` if it was not unlinked."""
        bindings = self._bindings
        rule = bindings.locked_rule(binding.navidrome_id)
        unlinked = await bindings.put(binding.unlinked(), rule=rule)
        audit_fields = audit_context.as_fields()
        self._record(AccountUnlinked(time=time.time(), account=binding.user_name, **audit_fields))
        try:
            await self.finish_lock(unlinked, audit_context)
        except (NavidromeError, Busy):
            return False
        return True

    async def lock(self, user: User, audit_context: AuditContext) -> None:
        """Lock an account on request of an operator, whether a person is linked to it or not. The person of a
        linked account is admitted again at the next sign-in."""
        bindings = self._bindings
        rule = bindings.locked_rule(user.id)
        binding = bindings.by_account(user.id)
        if binding is not None:
            await self.finish_lock(
                await bindings.put(replace(binding, lock_pending=True), rule=rule), audit_context
            )
            return
        await bindings.put_rule(rule)
        after = await self._writer.change(
            user, {}, audit_context, holder=None, password=Lock(_LOCK_REASONS[BindingState.ACTIVE])
        )
        await bindings.put_rule(replace(rule, void_before=after.read_at))

    async def finish_lock(self, binding: Binding, audit_context: AuditContext) -> None:
        """Replace the account's password by a random one that is stored nowhere, and remove the rights that
        the groups do not give."""
        bindings = self._bindings
        rule = bindings.locked_rule(binding.navidrome_id)
        if not bindings.is_locked(binding.navidrome_id):
            binding = await bindings.put(binding, rule=rule)
        user = await self._api.user(binding.navidrome_id)
        if user is None:
            await self.remove_binding(binding, audit_context)
            return
        demotes = self._policy().admin(binding.identity) is False and user.is_admin
        if self._policy().reserves(user.user_name):
            self.report_kept_admin(binding, user, _RESERVED, audit_context)
        else:
            unlinked = binding.state is BindingState.UNLINKED
            if unlinked:
                self.report_kept_admin(binding, user, _UNLINKED, audit_context)
            changes = {"isAdmin": False} if demotes and not unlinked else {}
            try:
                after = await self._writer.change(
                    user,
                    changes,
                    audit_context,
                    holder=binding,
                    password=Lock(_LOCK_REASONS[binding.state]),
                )
            except AccountRecreated:
                await self.remove_binding(binding, audit_context)
                return
            rule = replace(rule, void_before=after.read_at)
        # A request that took too long may have changed the account after the lock: then it is locked again.
        late = self._user_writes.is_in_progress(binding.navidrome_id)
        await bindings.put(replace(binding, lock_pending=late), rule=rule)

    def report_kept_admin(
        self, binding: Binding, user: User, detail: str, audit_context: AuditContext
    ) -> None:
        """Record, once for an account, that it keeps an admin right that the groups do not give, if that is
        so. `detail` is the reason in words."""
        keeps_right = user.is_admin and self._policy().admin(binding.identity) is False
        if not keeps_right or (user.id, detail) in self._kept_admins:
            return
        self._kept_admins.add((user.id, detail))
        self._record(
            AccountDemotionSkipped(
                time=time.time(),
                account=user.user_name,
                detail=detail,
                **audit_context.as_fields(),
            )
        )

    async def restore_rights(
        self, binding: Binding, user: User, audit_context: AuditContext
    ) -> None:
        """Restore the rights that the groups give after a change by hand. `user` is just read. A person whom
        the policy denies gets no right."""
        identity = binding.identity
        if self._policy().reserves(user.user_name):
            self.report_kept_admin(binding, user, _RESERVED, audit_context)
            return
        changes = field_changes(identity, user, binding.last_written, self._policy())
        rights = {name: value for name, value in changes.items() if name == "isAdmin"}
        if binding.state is not BindingState.ACTIVE and rights.get("isAdmin"):
            rights = {}
        after = await self._writer.change(user, rights, audit_context, holder=binding)
        await self._writer.set_libraries(identity, after, audit_context, holder=binding)

    async def remove_binding(self, binding: Binding, audit_context: AuditContext) -> None:
        """Remove the binding of an account that no longer exists, and hold its name for a while."""
        await self._bindings.remove(binding, self.name_hold_for(binding))
        self._directory.drop(binding.navidrome_id)
        audit_fields = audit_context.as_fields()
        self._record(
            AccountBindingRemoved(time=time.time(), account=binding.user_name, **audit_fields)
        )

    async def adopt_rename(
        self, binding: Binding, user: User, audit_context: AuditContext
    ) -> Binding:
        """Store the name that the account has in Navidrome, and the current names of the accounts that had
        this name before."""
        self._directory.put(user)
        if user.user_name == binding.user_name or not is_header_safe(user.user_name):
            return binding
        async with self._renaming:
            current = self._bindings.by_account(binding.navidrome_id)
            if current is None or current.version != binding.version:
                raise StaleBinding("the account was changed at the same time")
            names, removed = await self._conflicting_names(binding, user)
            names_in_use = {normalize_name(name) for name in names.values()}
            freed = [
                each for each in (*names, *removed) if each.normalized_name not in names_in_use
            ]
            await self._bindings.rename(names, removed, map(self.name_hold_for, freed))
        now, audit_fields = time.time(), audit_context.as_fields()
        for each, name in names.items():
            self._record(
                AccountRenamed(
                    time=now, account=name, previous_account=each.user_name, **audit_fields
                )
            )
        for each in removed:
            self._directory.drop(each.navidrome_id)
            self._record(AccountBindingRemoved(time=now, account=each.user_name, **audit_fields))
        followed = self._bindings.by_account(binding.navidrome_id)
        if followed is None:
            raise StaleBinding("the account was changed at the same time")
        return followed

    async def _conflicting_names(
        self, binding: Binding, user: User
    ) -> tuple[dict[Binding, str], list[Binding]]:
        """Return the binding with its account's new name, and every other one that must be renamed or removed
        first: names may have been swapped, in a cycle of any length."""
        names, name = {binding: user.user_name}, user.user_name
        while True:
            holder = self._bindings.by_name(normalize_name(name))
            if holder is None or holder in names:
                return names, []
            other = await self._api.user(holder.navidrome_id)
            if other is None:
                return names, [holder]
            self._directory.put(other)
            name = other.user_name
            if normalize_name(name) == holder.normalized_name or "\0" in name:
                raise Busy("two accounts in Navidrome have one name")
            names[holder] = name

    def name_hold_for(self, binding: Binding) -> NameHold:
        """Return a hold that reserves the name of this binding's account for a while."""
        until = time.time() + self._policy().name_hold_seconds
        # The binding of an unlinked account has no uid: the last person had this name.
        uid, source = binding.uid, binding.uid_source
        if uid is None:
            uid, source = binding.identity.uid, binding.identity.uid_source
        return NameHold(binding.normalized_name, binding.navidrome_id, uid, until, source)


_RESERVED = "its name is reserved now, so the shim does not write to it"
_UNLINKED = "it is unlinked, so groups do not apply to it"
NO_LIBRARY = (
    "in no group of SHIM_LIBRARY_GROUPS that gives a library, Navidrome has no default library, and it takes "
    "no account's last one"
)
_CONFLICT = Reason.IDENTITY_CONFLICT


class Provisioner:
    """Provisions accounts, one at a time for each person and name. `refresh` reads the changes of other
    processes from the store."""

    def __init__(
        self,
        api: Navidrome,
        bindings: BindingStore,
        directory: Directory,
        writer: AccountWriter,
        lifecycle: AccountLifecycle,
        policy: Callable[[], AccountPolicy],
        record: Callable[[Event], None],
        refresh: Callable[[], Awaitable[None]],
    ) -> None:
        self._api = api
        self._bindings = bindings
        self._directory = directory
        self._writer = writer
        self._lifecycle = lifecycle
        self._policy = policy
        self._record = record
        self._refresh = refresh

    async def provision(
        self, identity: Identity, audit_context: AuditContext, *, verified: bool
    ) -> Binding:
        """Return the identity's binding, after its account was created, linked or updated. `verified`: a
        verified token states the identity.

        Raises `AccountDenied`, and what the API and the store raise.
        """
        uid = identity.uid
        if uid is None:
            raise AccountDenied(
                Reason.IDENTITY_INCOMPLETE, "an identity without the provider's uid"
            )
        if self._policy().reserves(identity.username):
            raise AccountDenied(Reason.RESERVED_ACCOUNT, "the name is reserved")
        binding = self._bindings.by_uid(uid)
        if binding is not None and not _is_holder(binding, identity):
            await self._refresh()
            binding = self._checked(self._bindings.by_uid(uid), identity)
        if not self._policy().allows(identity):
            if binding is not None:
                await self._deny(binding, identity, audit_context)
            raise AccountDenied(Reason.GROUP_NOT_ALLOWED, "in no group of SHIM_ALLOWED_GROUPS")
        if binding is None:
            await self._refresh()
            binding = self._checked(self._bindings.by_uid(uid), identity)
        if binding is None:
            binding = await self._rebind_if_waiting(identity, audit_context)
        if binding is None:
            return await self._provision_new(identity, uid, audit_context)
        renames = normalize_name(identity.username) != normalize_name(binding.provider_username)
        if renames:
            self._check_rename(identity, binding, verified=verified)
        user = await self._api.user(binding.navidrome_id)
        if user is not None:
            binding = await self._lifecycle.adopt_rename(binding, user, audit_context)
            if await self._writer.keeps_denied_libraries(identity, user):
                await self._deny(binding, identity, audit_context)
                raise AccountDenied(Reason.GROUP_NOT_ALLOWED, NO_LIBRARY)
            try:
                return await self._update(identity, binding, user, audit_context, renames=renames)
            except AccountRecreated:
                pass
        await self._lifecycle.remove_binding(binding, audit_context)
        return await self._provision_new(identity, uid, audit_context)

    async def _rebind_if_waiting(
        self, identity: Identity, audit_context: AuditContext
    ) -> Binding | None:
        """Return the binding that waits for a user with this name after `users rebind`, bound to this uid;
        None if there is none."""
        waiting = self._bindings.by_uid(waiting_uid(identity.username))
        if waiting is None or waiting.uid_source != REBIND_SOURCE:
            return None
        uid, source = identity.uid, identity.uid_source
        known = replace(waiting.identity, uid=uid, uid_source=source)
        binding = await self._bindings.put(
            replace(waiting, uid=uid, uid_source=source, identity=known)
        )
        audit_fields = audit_context.as_fields()
        self._record(
            AccountRebound(
                time=time.time(), account=binding.user_name, uid_source=source, **audit_fields
            )
        )
        return binding

    # rejections

    def _checked(self, binding: Binding | None, identity: Identity) -> Binding | None:
        """Return the binding of the identity's uid. Raises `AccountDenied` if its uid has another source:
        then it may belong to another person."""
        if binding is None or _is_holder(binding, identity):
            return binding
        raise AccountDenied(
            Reason.UID_SOURCE_CHANGED,
            f"the account {binding.user_name} is bound to this uid of another source "
            f"({binding.uid_source or 'a header'}; now: {identity.uid_source}). See `users rebind`",
        )

    async def _deny(
        self, binding: Binding, identity: Identity, audit_context: AuditContext
    ) -> None:
        try:
            await self._lifecycle.deny(binding, identity, audit_context)
        except StaleBinding:
            raise  # a rejection is decided again, by the current binding
        except (NavidromeError, StoreError, Busy) as error:
            # The person is denied in any case; the reconciler locks the account later.
            self._record(
                ProvisioningFailed(
                    time=time.time(),
                    detail=str(error),
                    user=identity.username,
                    uid=identity.uid,
                    groups=identity.groups,
                    **audit_context.request_fields(),
                )
            )

    def _check_rename(self, identity: Identity, binding: Binding, *, verified: bool) -> None:
        if normalize_name(identity.username) == binding.normalized_name:
            return  # the account was already renamed in Navidrome
        policy = self._policy()
        if not policy.follows(verified=verified):
            reason = f"SHIM_FOLLOW_RENAMES is {policy.follow_renames}"
            raise AccountDenied(
                Reason.RENAME_NOT_FOLLOWED,
                f"the person's account is {binding.user_name}, and the new name is not followed: {reason}",
            )
        self._check_name_free(identity, binding.navidrome_id)
        if self._directory.by_name(identity.username) is not None:
            raise AccountDenied(_CONFLICT, "another account has the new name")

    def _check_name_free(self, identity: Identity, navidrome_id: str | None) -> None:
        """Raise `AccountDenied` if the name belongs to another person, or is held for another person."""
        normalized = normalize_name(identity.username)
        holder = self._bindings.by_name(normalized)
        if holder is not None and holder.uid is not None and not _is_holder(holder, identity):
            raise AccountDenied(_CONFLICT, f"the name is bound to another uid ({holder.uid})")
        hold = self._bindings.name_hold(normalized)
        if (
            hold is not None
            and navidrome_id != hold.navidrome_id
            and not is_person(hold.uid, hold.uid_source, identity)
        ):
            reason = (
                "whose tokens have not expired yet; it is free after SHIM_NAME_REUSE_DELAY_HOURS"
            )
            raise AccountDenied(Reason.NAME_HELD, f"the name belonged to another account, {reason}")

    def _check_usable(self, user: User) -> None:
        if self._policy().reserves(user.user_name):
            raise AccountDenied(Reason.RESERVED_ACCOUNT, "the account has a reserved name now")
        if not is_header_safe(user.user_name):
            raise AccountDenied(
                _CONFLICT,
                "the Navidrome username contains characters that are not allowed in a header",
            )

    # a person without an account

    async def _provision_new(
        self, identity: Identity, uid: str, audit_context: AuditContext
    ) -> Binding:
        self._check_name_free(identity, None)
        known = self._directory.by_name(identity.username)
        if known is None:
            try:
                return await self._create(identity, uid, audit_context)
            except NameTaken:
                await self._directory.read(self._api.users)
            known = self._directory.by_name(identity.username)
            if known is None:
                raise Busy(_empty_list_error(self._api.unreadable))
        return await self._link(identity, uid, known, audit_context)

    async def _create(self, identity: Identity, uid: str, audit_context: AuditContext) -> Binding:
        new = NewUser(
            id=new_id(),
            user_name=identity.username,
            name=identity.name or identity.username,
            email=usable_email(identity.email) or "",
            is_admin=self._policy().admin(identity) is True,
        )
        user, intent = await self._writer.create(new, identity)
        self._directory.put(user)
        binding = await self._bindings.put(
            _binding(identity, uid, user, created_by_shim=True), ends=intent
        )
        unusable_email = identity.email and usable_email(identity.email) is None
        self._record(
            AccountCreated(
                time=time.time(),
                account=user.user_name,
                navidrome_id=user.id,
                admin=user.is_admin,
                notes=("the e-mail is not valid and was not used",) if unusable_email else (),
                **audit_context.as_fields(),
            )
        )
        # An account whose creation began earlier may have been meant for other groups.
        changes = field_changes(identity, user, binding.last_written, self._policy())
        user = await self._writer.change(user, changes, audit_context, holder=binding)
        await self._writer.set_libraries(identity, user, audit_context, holder=binding)
        return binding

    async def _link(
        self, identity: Identity, uid: str, known: User, audit_context: AuditContext
    ) -> Binding:
        """Bind an existing account. It keeps its password and its tokens if it was never bound before and the
        link gives it no right."""
        user = await self._api.user(known.id)
        if user is None or normalize_name(user.user_name) != normalize_name(identity.username):
            await self._directory.read(self._api.users)
            raise StaleBinding("the account with this name changed just now")
        existing = self._bindings.by_account(user.id)
        if existing is not None and existing.uid == uid:
            raise StaleBinding("another process has just linked the account")
        if existing is not None and existing.uid is not None:
            raise AccountDenied(_CONFLICT, f"the account is bound to another uid ({existing.uid})")
        unlinked = existing is not None and existing.created_by_shim
        error = self._policy().link_error(user, identity, unlinked=unlinked)
        if error is not None:
            raise AccountDenied(_CONFLICT, error)
        self._check_usable(user)
        if await self._writer.keeps_denied_libraries(identity, user):
            raise AccountDenied(Reason.GROUP_NOT_ALLOWED, NO_LIBRARY)
        changes = field_changes(identity, user, NOTHING_WRITTEN, self._policy())
        claims_admin = user.is_admin
        password = None
        if existing is not None or not await self._keeps_password(user, identity):
            password = Readmission("it was linked to a user", new_password(self._policy()))
            await self._bindings.put_rule(self._bindings.locked_rule(user.id))
        try:
            after = await self._writer.change(
                user, changes, audit_context, holder=existing, password=password
            )
        except AccountRecreated:
            if existing is not None:
                await self._bindings.remove(existing)
            self._directory.drop(user.id)
            return await self._create(identity, uid, audit_context)
        binding = _binding(identity, uid, after, created_by_shim=unlinked)
        if existing is not None:
            binding = replace(
                binding, id=existing.id, first_seen=existing.first_seen, version=existing.version
            )
        rule = None if password is None else TokenRule(after.id, void_before=after.read_at)
        binding = await self._bindings.put(binding, rule=rule)
        self._record(
            AccountLinked(
                time=time.time(),
                account=after.user_name,
                navidrome_id=after.id,
                admin=after.is_admin,
                credentials_kept=password is None,
                notes=("it was already an admin",) if claims_admin else (),
                **audit_context.as_fields(),
            )
        )
        await self._writer.set_libraries(identity, after, audit_context, holder=binding)
        return binding

    async def _keeps_password(self, user: User, identity: Identity) -> bool:
        """Return whether an account that was never bound keeps its password and its tokens when it is
        bound."""
        policy = self._policy()
        if policy.only_device_passwords or policy.grants_admin(user, identity):
            return False
        if self._bindings.is_locked(user.id):
            return False
        return not await self._api.opens_without_password(user.user_name)

    # a person with an account

    async def _update(
        self,
        identity: Identity,
        binding: Binding,
        user: User,
        audit_context: AuditContext,
        *,
        renames: bool,
    ) -> Binding:
        """Update the account to the identity's name, fields and libraries."""
        self._check_usable(user)
        changes = field_changes(identity, user, binding.last_written, self._policy())
        if renames and normalize_name(identity.username) != normalize_name(user.user_name):
            changes["userName"] = identity.username
            # Hold the old name before it becomes free: the hold remains if the shim is killed in between.
            await self._bindings.hold_names((self._lifecycle.name_hold_for(binding),))
        password = self._readmission(binding)
        try:
            after = await self._writer.change(
                user, changes, audit_context, holder=binding, password=password
            )
        except NameTaken:
            await self._directory.read(self._api.users)
            raise AccountDenied(_CONFLICT, "another account has the new name") from None
        updated = replace(
            binding,
            uid_source=identity.uid_source,
            user_name=after.user_name,
            provider_username=identity.username,
            state=BindingState.ACTIVE,
            lock_pending=False,
            identity=identity,
            last_written=last_written(identity, binding.last_written),
        )
        if updated != binding or password is not None:
            rule = None if password is None else TokenRule(after.id, void_before=after.read_at)
            updated = replace(updated, last_seen=time.time())
            updated = await self._bindings.put(updated, rule=rule)
        await self._writer.set_libraries(identity, after, audit_context, holder=updated)
        return updated

    def _readmission(self, binding: Binding) -> Readmission | None:
        """Return the new password of an account that is locked, or was about to be: its person is admitted
        again."""
        locked = self._bindings.is_locked(binding.navidrome_id)
        if binding.state is BindingState.ACTIVE and not binding.lock_pending and not locked:
            return None
        refused = binding.state is BindingState.DENIED
        return Readmission(
            "the policy allows the user again"
            if refused
            else "its user signed in again after a lock",
            new_password(self._policy()),
        )


def _is_holder(binding: Binding, identity: Identity) -> bool:
    return is_person(binding.uid, binding.uid_source, identity)


def account_keys(uid: str | None, *user_names: str) -> tuple[str, ...]:
    """Return the keys to lock while an account is worked on: its person, and every name involved."""
    keys = [f"name {normalize_name(name)}" for name in user_names]
    return (*keys, f"uid {uid}") if uid is not None else tuple(keys)


def _empty_list_error(unreadable: int) -> str:
    detail = "Navidrome reports that the name is taken, but lists no account with it"
    if unreadable:
        detail += (
            f"; {unreadable} accounts can't be read because their records are too large: shorten their "
            "names in Navidrome, as an admin, or delete them"
        )
    return detail


def _binding(identity: Identity, uid: str, user: User, *, created_by_shim: bool) -> Binding:
    now = time.time()
    return Binding(
        uid=uid,
        uid_source=identity.uid_source,
        navidrome_id=user.id,
        user_name=user.user_name,
        provider_username=identity.username,
        created_by_shim=created_by_shim,
        first_seen=now,
        last_seen=now,
        identity=identity,
        last_written=last_written(identity),
    )
