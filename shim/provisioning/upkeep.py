"""What is done to a binding and its account whoever notices that it has to be: a request or the reconciler.

Called with the person and the name locked.
"""

from __future__ import annotations

import time
from dataclasses import replace

from shim.audit.provisioning_events import AccountForgotten, AccountRenamed, AccountUnlinked
from shim.navidrome.models import User
from shim.provisioning.means import Means
from shim.provisioning.occasion import Occasion
from shim.provisioning.policy import field_changes, is_carried
from shim.provisioning.records import Binding, BindingState, Rest
from shim.provisioning.rights import Rights
from shim.provisioning.writer import Risen
from shim.trust.identity import Identity
from shim.trust.names import fold_name


class Upkeep:
    """Follows, forgets, restores, and closes doors. Raises what the API and the store raise."""

    def __init__(self, means: Means, rights: Rights) -> None:
        self._means = means
        self._rights = rights

    async def refuse(self, binding: Binding, identity: Identity, occasion: Occasion) -> None:
        """Close the door of a person whom the policy refuses: that it has to be done is stored first, so
        that it is done once, and not forgotten."""
        if binding.state is not BindingState.REFUSED:
            binding = await self._means.bindings.put(
                replace(binding, state=BindingState.REFUSED, open_door=True, identity=identity)
            )
        if binding.open_door:
            await self.close_door(binding, occasion)

    async def release(self, binding: Binding, occasion: Occasion) -> None:
        """Unlink: the account is nobody's until it is claimed again, and its door is closed."""
        released = await self._means.bindings.put(binding.released())
        told = occasion.told()
        self._means.record(AccountUnlinked(time=time.time(), account=binding.user_name, **told))
        await self.close_door(released, occasion)

    async def close_door(self, binding: Binding, occasion: Occasion) -> None:
        """Give the account a password that nobody knows, and take what rights the groups don't give."""
        user = await self._means.api.user(binding.navidrome_id)
        if user is None:
            await self.forget(binding, occasion)
            return
        if not self._means.policy.reserves(user.user_name):
            released = binding.state is BindingState.RELEASED
            why = "it was unlinked" if released else "the policy refuses the person"
            demotes = self._means.policy.admin(binding.identity) is False and user.is_admin
            changes = {"isAdmin": False} if demotes and not released else {}
            try:
                await self._rights.change(user, changes, occasion, lock_since=why)
            except Risen:
                await self.forget(binding, occasion)
                return
        await self._means.bindings.put(replace(binding, open_door=False))

    async def restore(self, binding: Binding, user: User, occasion: Occasion) -> None:
        """Put right what was changed by hand of the rights that the groups give. `user` is just read."""
        identity = binding.identity
        changes = field_changes(identity, user, binding.written, self._means.policy)
        rights = {name: value for name, value in changes.items() if name == "isAdmin"}
        after = await self._rights.change(user, rights, occasion)
        await self._rights.set_libraries(identity, after, occasion)

    async def forget(self, binding: Binding, occasion: Occasion) -> None:
        """The account is gone: nobody else gets its name for a while."""
        await self._means.bindings.forget(binding, self.rest_for(binding))
        self._means.directory.drop(binding.navidrome_id)
        told = occasion.told()
        self._means.record(AccountForgotten(time=time.time(), account=binding.user_name, **told))

    async def follow(self, binding: Binding, user: User, occasion: Occasion) -> Binding:
        """Take over the name that the account has in Navidrome."""
        self._means.directory.put(user)
        if user.user_name == binding.user_name or not is_carried(user.user_name):
            return binding
        freed = fold_name(user.user_name) != binding.folded_name
        rest = self.rest_for(binding) if freed else None
        followed = await self._means.bindings.put(
            replace(binding, user_name=user.user_name), rest=rest
        )
        self._means.record(
            AccountRenamed(
                time=time.time(),
                account=user.user_name,
                old_name=binding.user_name,
                **occasion.told(),
            )
        )
        return followed

    def rest_for(self, binding: Binding) -> Rest:
        """The name that this binding's account had is given to nobody else for a while."""
        until = time.time() + self._means.policy.rest_seconds
        return Rest(binding.folded_name, binding.navidrome_id, binding.uid, until)
