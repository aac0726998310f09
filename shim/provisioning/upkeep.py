"""What is done to a binding and its account whoever notices that it has to be: a request or the reconciler.

Called with the person and the name locked. An account is locked in the store first, so that its tokens are
void even if the shim ends before Navidrome has the new password.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from shim.audit.provisioning_events import AccountForgotten, AccountRenamed, AccountUnlinked
from shim.navidrome.errors import NavidromeError
from shim.navidrome.models import User
from shim.provisioning.bindings import Busy, Outdated
from shim.provisioning.means import Means
from shim.provisioning.occasion import Occasion
from shim.provisioning.policy import field_changes, is_carried
from shim.provisioning.records import Binding, BindingState, Rest
from shim.provisioning.rights import Lock, Rights
from shim.provisioning.writer import Risen
from shim.trust.identity import Identity
from shim.trust.names import fold_name

# Why an account is locked, by its binding's state.
_WHY = {
    BindingState.ACTIVE: "an operator locked it",
    BindingState.REFUSED: "the policy refuses the person",
    BindingState.RELEASED: "it was unlinked",
}


class Upkeep:
    """Follows, forgets, restores and locks. Raises what the API and the store raise."""

    def __init__(self, means: Means, rights: Rights) -> None:
        self._means = means
        self._rights = rights
        self._renaming = asyncio.Lock()

    async def refuse(self, binding: Binding, identity: Identity, occasion: Occasion) -> None:
        """Lock the account of a person whom the policy refuses."""
        bindings = self._means.bindings
        if binding.state is not BindingState.REFUSED:
            refused = replace(
                binding, state=BindingState.REFUSED, open_door=True, identity=identity
            )
            rule = bindings.locked_rule(binding.navidrome_id)
            binding = await bindings.put(refused, rule=rule)
        elif binding.identity != identity:
            binding = await bindings.put(replace(binding, identity=identity))
        if binding.open_door:
            await self.close_door(binding, occasion)

    async def release(self, binding: Binding, occasion: Occasion) -> bool:
        """Unlink: the account is nobody's until it is claimed again. Return whether it is locked already; if
        not, the running shim does it. Raises `Busy` where it was not unlinked."""
        bindings = self._means.bindings
        rule = bindings.locked_rule(binding.navidrome_id)
        released = await bindings.put(binding.released(), rule=rule)
        told = occasion.told()
        self._means.record(AccountUnlinked(time=time.time(), account=binding.user_name, **told))
        try:
            await self.close_door(released, occasion)
        except (NavidromeError, Busy):
            return False
        return True

    async def lock(self, user: User, occasion: Occasion) -> None:
        """Lock an account at an operator's wish, whether somebody is linked to it or not. The person of a
        linked one is let in again at the next sign-in."""
        bindings = self._means.bindings
        rule = bindings.locked_rule(user.id)
        binding = bindings.of_account(user.id)
        if binding is not None:
            await self.close_door(
                await bindings.put(replace(binding, open_door=True), rule=rule), occasion
            )
            return
        await bindings.put_rule(rule)
        after = await self._rights.change(
            user, {}, occasion, holder=None, password=Lock(_WHY[BindingState.ACTIVE])
        )
        await bindings.put_rule(replace(rule, void_before=after.read_at))

    async def close_door(self, binding: Binding, occasion: Occasion) -> None:
        """Give the account a password that nobody knows, and take what rights the groups don't give."""
        bindings = self._means.bindings
        rule = bindings.locked_rule(binding.navidrome_id)
        if not bindings.is_locked(binding.navidrome_id):
            binding = await bindings.put(binding, rule=rule)
        user = await self._means.api.user(binding.navidrome_id)
        if user is None:
            await self.forget(binding, occasion)
            return
        if not self._means.policy.reserves(user.user_name):
            released = binding.state is BindingState.RELEASED
            demotes = self._means.policy.admin(binding.identity) is False and user.is_admin
            changes = {"isAdmin": False} if demotes and not released else {}
            try:
                after = await self._rights.change(
                    user, changes, occasion, holder=binding, password=Lock(_WHY[binding.state])
                )
            except Risen:
                await self.forget(binding, occasion)
                return
            rule = replace(rule, void_before=after.read_at)
        await bindings.put(replace(binding, open_door=False), rule=rule)

    async def restore(self, binding: Binding, user: User, occasion: Occasion) -> None:
        """Put right what was changed by hand of the rights that the groups give. `user` is just read. A
        person whom the policy refuses gets no right."""
        identity = binding.identity
        changes = field_changes(identity, user, binding.written, self._means.policy)
        rights = {name: value for name, value in changes.items() if name == "isAdmin"}
        if binding.state is not BindingState.ACTIVE and rights.get("isAdmin"):
            rights = {}
        after = await self._rights.change(user, rights, occasion, holder=binding)
        await self._rights.set_libraries(identity, after, occasion)

    async def forget(self, binding: Binding, occasion: Occasion) -> None:
        """The account is gone: nobody else gets its name for a while."""
        await self._means.bindings.forget(binding, self.rest_for(binding))
        self._means.directory.drop(binding.navidrome_id)
        told = occasion.told()
        self._means.record(AccountForgotten(time=time.time(), account=binding.user_name, **told))

    async def follow(self, binding: Binding, user: User, occasion: Occasion) -> Binding:
        """Take over the name that the account has in Navidrome, and of the accounts that had this name
        theirs."""
        self._means.directory.put(user)
        if user.user_name == binding.user_name or not is_carried(user.user_name):
            return binding
        async with self._renaming:
            current = self._means.bindings.of_account(binding.navidrome_id)
            if current is None or current.version != binding.version:
                raise Outdated("the account was changed meanwhile")
            names, gone = await self._names_in_the_way(binding, user)
            kept = {fold_name(name) for name in names.values()}
            freed = [each for each in (*names, *gone) if each.folded_name not in kept]
            await self._means.bindings.rename(names, gone, map(self.rest_for, freed))
        now, told = time.time(), occasion.told()
        for each, name in names.items():
            self._means.record(
                AccountRenamed(time=now, account=name, old_name=each.user_name, **told)
            )
        for each in gone:
            self._means.directory.drop(each.navidrome_id)
            self._means.record(AccountForgotten(time=now, account=each.user_name, **told))
        followed = self._means.bindings.of_account(binding.navidrome_id)
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
            holder = self._means.bindings.of_name(fold_name(name))
            if holder is None or holder in names:
                return names, []
            other = await self._means.api.user(holder.navidrome_id)
            if other is None:
                return names, [holder]
            self._means.directory.put(other)
            name = other.user_name
            if fold_name(name) == holder.folded_name or "\0" in name:
                raise Busy("two accounts in Navidrome have one name")
            names[holder] = name

    def rest_for(self, binding: Binding) -> Rest:
        """The name that this binding's account had is given to nobody else for a while."""
        until = time.time() + self._means.policy.rest_seconds
        # Of an account that was unlinked, it was the last person's.
        uid = binding.identity.uid if binding.uid is None else binding.uid
        return Rest(binding.folded_name, binding.navidrome_id, uid, until)
