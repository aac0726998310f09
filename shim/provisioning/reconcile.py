"""Navidrome's accounts held against the bindings, off the hot path.

What was renamed, deleted or given rights by hand in Navidrome is followed, forgotten or put right; doors
that are still open are closed, and writes that were left are looked after. Each account is worked on with
its person and name locked, and read again before anything is done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from shim.audit.provisioning_events import AccountCreated, EmptyPasswordsFound
from shim.navidrome.models import User
from shim.provisioning.bindings import Busy, Watcher
from shim.provisioning.means import Means
from shim.provisioning.occasion import Occasion
from shim.provisioning.provisioner import Provisioner, account_keys
from shim.provisioning.records import Binding, BindingState, Intent, IntentKind, Rest
from shim.provisioning.writer import Risen
from shim.trust.identity import Identity
from shim.trust.names import fold_name


class Reconciler:
    """Holds the two against each other. `watcher` is told of each account that is not what it was, before the
    change is seen by a request."""

    def __init__(self, means: Means, provisioner: Provisioner, watcher: Watcher) -> None:
        self._means = means
        self._provisioner = provisioner
        self._watcher = watcher
        self._changed = watcher.forget
        self._one_at_a_time = asyncio.Lock()
        self._vetted: dict[str, str] = {}
        self.without_password: tuple[str, ...] = ()

    async def run(self) -> None:
        """Everything once. Raises what the API and the store raise; what was done until then stays."""
        async with self._one_at_a_time:
            await self._run()

    async def _run(self) -> None:
        await self.look_after_intents(Occasion("reconcile"))
        users = await self._list()
        self._means.directory.libraries = ()
        if self._means.policy.library_groups:
            self._means.directory.libraries = await self._means.api.libraries()
        there = {user.id: user for user in users}
        for binding in self._means.bindings.all():
            if self._is_odd(binding, there.get(binding.navidrome_id)):
                await self._put_right(binding)
        await self.vet(users)

    async def follow_names(self) -> None:
        """List the users, and follow the names of their accounts; after a request that may have changed
        them. Raises what the API and the store raise."""
        there = {user.id: user for user in await self._list()}
        for binding in self._means.bindings.all():
            user = there.get(binding.navidrome_id)
            if user is None or user.user_name != binding.user_name:
                await self._put_right(binding)

    async def _list(self) -> tuple[User, ...]:
        before = self._means.directory.all()
        users = await self._means.directory.read(self._means.api.users)
        await self._rest_freed(before, users)
        there = {user.id for user in users}
        if any(user.id not in there for user in before):
            self._watcher.revoked()
        return users

    async def look_after_intents(self, occasion: Occasion) -> None:
        """See what became of every write that was left. Raises what the API raises: then an account may
        stand open, and nobody is to be let near it."""
        for intent in self._means.bindings.intents():
            if self._means.bindings.is_left(intent):
                async with self._means.locks.held(*account_keys(intent.uid, intent.user_name)):
                    if self._means.bindings.intent(intent.key) is intent:
                        await self._look_after(intent, occasion)

    async def vet(self, users: Iterable[User]) -> None:
        """Ask of every account that is new or was written since, whether an empty password opens it."""
        users = tuple(users)
        open_before = self.without_password
        found = {name for name in open_before if any(u.user_name == name for u in users)}
        for user in users:
            if user.user_name and self._vetted.get(user.id) != user.updated_at:
                opens = await self._means.api.opens_without_password(user.user_name)
                (found.add if opens else found.discard)(user.user_name)
                self._vetted[user.id] = user.updated_at
        self.without_password = tuple(sorted(found))
        if found.difference(open_before):
            self._means.record(
                EmptyPasswordsFound(time=time.time(), accounts=self.without_password)
            )

    def _is_odd(self, binding: Binding, user: User | None) -> bool:
        """Whether anything of an account is not as the policy wants it."""
        policy = self._means.policy
        if user is None or binding.open_door or user.user_name != binding.user_name:
            return True
        if binding.state is BindingState.RELEASED:
            return False
        active = binding.state is BindingState.ACTIVE
        if active and not policy.allows(binding.identity):
            return True
        admin = policy.admin(binding.identity)
        if admin is not None and admin is not user.is_admin and (active or user.is_admin):
            return True
        wanted = self._means.policy.libraries(binding.identity, self._means.directory.libraries)
        if wanted is None or user.is_admin or wanted == user.libraries:
            return False
        # Of a person whom the policy denies, the last libraries stay: no password or token opens them.
        return active or bool(wanted)

    async def _put_right(self, binding: Binding) -> None:
        occasion, upkeep = Occasion("reconcile", binding.identity), self._provisioner.upkeep
        keys = account_keys(binding.uid, binding.user_name, binding.claimed_name)
        async with self._means.locks.held(*keys):
            now = self._means.bindings.of_account(binding.navidrome_id)
            if now is None or now.uid != binding.uid:
                return
            user = await self._means.api.user(now.navidrome_id)
            try:
                if user is None:
                    self._changed(now.uid)
                    await upkeep.forget(now, occasion)
                    return
                if user.user_name != now.user_name:
                    self._changed(now.uid)
                    now = await upkeep.follow(now, user, occasion)
                if now.state is BindingState.ACTIVE and await self._denies(now, user):
                    self._changed(now.uid)
                    await upkeep.refuse(now, now.identity, occasion)
                elif now.open_door:
                    await upkeep.close_door(now, occasion)
                elif now.state is not BindingState.RELEASED:
                    await upkeep.restore(now, user, occasion)
            except Risen:
                self._changed(now.uid)
                await upkeep.forget(now, occasion)
            except Busy:
                return  # another process is at it

    async def _denies(self, binding: Binding, user: User) -> bool:
        """Whether the policy denies the person of an active account."""
        if not self._means.policy.allows(binding.identity):
            return True
        rights = self._provisioner.rights
        return await rights.keeps_denied_libraries(binding.identity, user)

    async def _rest_freed(self, before: tuple[User, ...], users: tuple[User, ...]) -> None:
        """Names that somebody freed in Navidrome, of accounts that nobody is bound to as well."""
        names = {fold_name(user.user_name) for user in users}
        until = time.time() + self._means.policy.rest_seconds
        freed = []
        for user in before:
            folded = fold_name(user.user_name)
            if folded and folded not in names and self._means.bindings.of_account(user.id) is None:
                freed.append(Rest(folded, user.id, None, until))
        await self._means.bindings.rest(freed)

    async def _look_after(self, intent: Intent, occasion: Occasion) -> None:
        try:
            if intent.kind is IntentKind.CREATE:
                await self._bind_begun(intent, occasion)
                return
            await self._provisioner.rights.writer.resolve(intent, occasion)
        except Risen:
            binding = self._means.bindings.of_account(intent.navidrome_id)
            if binding is not None:
                self._changed(binding.uid)
                await self._provisioner.upkeep.forget(binding, occasion)
            return
        await self._means.bindings.close_intent(intent)

    async def _bind_begun(self, intent: Intent, occasion: Occasion) -> None:
        """An account whose making was interrupted belongs to whom it was made for. What else the person
        is to have comes with the next request."""
        user = await self._means.api.user(intent.navidrome_id)
        bound = user is not None and self._means.bindings.of_account(user.id) is not None
        if user is None or bound or intent.uid is None or self._means.bindings.of_uid(intent.uid):
            await self._means.bindings.close_intent(intent)
            return
        self._means.directory.put(user)
        identity = Identity(intent.user_name, uid=intent.uid)
        now = time.time()
        await self._means.bindings.put(
            Binding(
                uid=intent.uid,
                navidrome_id=user.id,
                user_name=user.user_name,
                claimed_name=intent.user_name,
                made=True,
                first_seen=now,
                last_seen=now,
                identity=identity,
            ),
            ends=intent,
        )
        self._means.record(
            AccountCreated(
                time=now,
                account=user.user_name,
                navidrome_id=user.id,
                admin=user.is_admin,
                notes=("its making was interrupted, and taken up again",),
                **Occasion(occasion.cause, identity).told(),
            )
        )
