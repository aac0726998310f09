"""What is done to a binding and its account whoever notices that it has to be: a request or the reconciler.

Called with the person and the name locked. An account is locked in the store first, so that its tokens are
void even if the shim ends before Navidrome has the new password.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from shim.audit.events.provisioning import AccountBindingRemoved, AccountRenamed, AccountUnlinked
from shim.navidrome.errors import NavidromeError
from shim.navidrome.models import User
from shim.provisioning.account_updater import AccountUpdater, Lock
from shim.provisioning.account_writer import AccountRecreated
from shim.provisioning.audit_context import AuditContext
from shim.provisioning.binding_store import Busy, Outdated
from shim.provisioning.context import ProvisioningContext
from shim.provisioning.models import Binding, BindingState, NameHold
from shim.provisioning.policy import field_changes, is_header_safe
from shim.trust.identity import Identity
from shim.trust.names import normalize_name

# Why an account is locked, by its binding's state.
_WHY = {
    BindingState.ACTIVE: "an operator locked it",
    BindingState.DENIED: "the policy refuses the person",
    BindingState.UNLINKED: "it was unlinked",
}


class AccountLifecycle:
    """Follows, forgets, restores and locks. Raises what the API and the store raise."""

    def __init__(self, context: ProvisioningContext, rights: AccountUpdater) -> None:
        self._context = context
        self._rights = rights
        self._renaming = asyncio.Lock()

    async def deny(self, binding: Binding, identity: Identity, audit_context: AuditContext) -> None:
        """Lock the account of a person whom the policy refuses."""
        bindings = self._context.bindings
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
        """Unlink: the account is nobody's until it is claimed again. Return whether it is locked already; if
        not, the running shim does it. Raises `Busy` where it was not unlinked."""
        bindings = self._context.bindings
        rule = bindings.locked_rule(binding.navidrome_id)
        unlinked = await bindings.put(binding.unlinked(), rule=rule)
        audit_fields = audit_context.as_fields()
        self._context.record(
            AccountUnlinked(time=time.time(), account=binding.user_name, **audit_fields)
        )
        try:
            await self.finish_lock(unlinked, audit_context)
        except (NavidromeError, Busy):
            return False
        return True

    async def lock(self, user: User, audit_context: AuditContext) -> None:
        """Lock an account at an operator's wish, whether somebody is linked to it or not. The person of a
        linked one is let in again at the next sign-in."""
        bindings = self._context.bindings
        rule = bindings.locked_rule(user.id)
        binding = bindings.by_account(user.id)
        if binding is not None:
            await self.finish_lock(
                await bindings.put(replace(binding, lock_pending=True), rule=rule), audit_context
            )
            return
        await bindings.put_rule(rule)
        after = await self._rights.change(
            user, {}, audit_context, holder=None, password=Lock(_WHY[BindingState.ACTIVE])
        )
        await bindings.put_rule(replace(rule, void_before=after.read_at))

    async def finish_lock(self, binding: Binding, audit_context: AuditContext) -> None:
        """Give the account a password that nobody knows, and take what rights the groups don't give."""
        bindings = self._context.bindings
        rule = bindings.locked_rule(binding.navidrome_id)
        if not bindings.is_locked(binding.navidrome_id):
            binding = await bindings.put(binding, rule=rule)
        user = await self._context.api.user(binding.navidrome_id)
        if user is None:
            await self.remove_binding(binding, audit_context)
            return
        if not self._context.policy.reserves(user.user_name):
            unlinked = binding.state is BindingState.UNLINKED
            demotes = self._context.policy.admin(binding.identity) is False and user.is_admin
            changes = {"isAdmin": False} if demotes and not unlinked else {}
            try:
                after = await self._rights.change(
                    user, changes, audit_context, holder=binding, password=Lock(_WHY[binding.state])
                )
            except AccountRecreated:
                await self.remove_binding(binding, audit_context)
                return
            rule = replace(rule, void_before=after.read_at)
        # A request that took too long may have changed the account after the lock: then it is locked again.
        late = self._context.user_writes.is_under_way(binding.navidrome_id)
        await bindings.put(replace(binding, lock_pending=late), rule=rule)

    async def restore_rights(
        self, binding: Binding, user: User, audit_context: AuditContext
    ) -> None:
        """Put right what was changed by hand of the rights that the groups give. `user` is just read. A
        person whom the policy refuses gets no right."""
        identity = binding.identity
        changes = field_changes(identity, user, binding.last_written, self._context.policy)
        rights = {name: value for name, value in changes.items() if name == "isAdmin"}
        if binding.state is not BindingState.ACTIVE and rights.get("isAdmin"):
            rights = {}
        after = await self._rights.change(user, rights, audit_context, holder=binding)
        await self._rights.set_libraries(identity, after, audit_context)

    async def remove_binding(self, binding: Binding, audit_context: AuditContext) -> None:
        """The account is gone: nobody else gets its name for a while."""
        await self._context.bindings.remove(binding, self.name_hold_for(binding))
        self._context.directory.drop(binding.navidrome_id)
        audit_fields = audit_context.as_fields()
        self._context.record(
            AccountBindingRemoved(time=time.time(), account=binding.user_name, **audit_fields)
        )

    async def adopt_rename(
        self, binding: Binding, user: User, audit_context: AuditContext
    ) -> Binding:
        """Take over the name that the account has in Navidrome, and of the accounts that had this name
        theirs."""
        self._context.directory.put(user)
        if user.user_name == binding.user_name or not is_header_safe(user.user_name):
            return binding
        async with self._renaming:
            current = self._context.bindings.by_account(binding.navidrome_id)
            if current is None or current.version != binding.version:
                raise Outdated("the account was changed meanwhile")
            names, gone = await self._names_in_the_way(binding, user)
            kept = {normalize_name(name) for name in names.values()}
            freed = [each for each in (*names, *gone) if each.normalized_name not in kept]
            await self._context.bindings.rename(names, gone, map(self.name_hold_for, freed))
        now, audit_fields = time.time(), audit_context.as_fields()
        for each, name in names.items():
            self._context.record(
                AccountRenamed(time=now, account=name, previous_name=each.user_name, **audit_fields)
            )
        for each in gone:
            self._context.directory.drop(each.navidrome_id)
            self._context.record(
                AccountBindingRemoved(time=now, account=each.user_name, **audit_fields)
            )
        followed = self._context.bindings.by_account(binding.navidrome_id)
        if followed is None:
            raise Outdated("the account was changed meanwhile")
        return followed

    async def _names_in_the_way(
        self, binding: Binding, user: User
    ) -> tuple[dict[Binding, str], list[Binding]]:
        """The binding with its account's new name, and every other one that has to be renamed or removed
        first: names may have been swapped, in a circle of any length."""
        names, name = {binding: user.user_name}, user.user_name
        while True:
            holder = self._context.bindings.by_name(normalize_name(name))
            if holder is None or holder in names:
                return names, []
            other = await self._context.api.user(holder.navidrome_id)
            if other is None:
                return names, [holder]
            self._context.directory.put(other)
            name = other.user_name
            if normalize_name(name) == holder.normalized_name or "\0" in name:
                raise Busy("two accounts in Navidrome have one name")
            names[holder] = name

    def name_hold_for(self, binding: Binding) -> NameHold:
        """The name that this binding's account had is given to nobody else for a while."""
        until = time.time() + self._context.policy.name_hold_seconds
        # Of an account that was unlinked, it was the last person's.
        uid = binding.identity.uid if binding.uid is None else binding.uid
        return NameHold(binding.normalized_name, binding.navidrome_id, uid, until)
