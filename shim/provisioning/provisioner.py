"""What is done for one identity: the steps from a believed name to an account that is ready.

Called with the person and the name locked, and Navidrome's users known. Whatever the policy refuses is
refused before Navidrome is asked anything.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from shim.audit.provisioning_events import AccountCreated, AccountFailed, AccountLinked
from shim.navidrome.errors import NameTaken, NavidromeError
from shim.navidrome.models import NewUser, User
from shim.provisioning.bindings import Busy, Outdated
from shim.provisioning.means import Means
from shim.provisioning.occasion import Occasion
from shim.provisioning.policy import (
    field_changes,
    is_carried,
    usable_email,
    written_of,
)
from shim.provisioning.records import NOTHING_WRITTEN, Binding, BindingState, TokenRule
from shim.provisioning.rights import Readmission, Rights
from shim.provisioning.upkeep import Upkeep
from shim.provisioning.writer import Risen, new_id
from shim.store.errors import StoreError
from shim.trust.identity import Identity
from shim.trust.names import fold_name
from shim.trust.reasons import Reason

NO_LIBRARY = (
    "in no group of SHIM_LIBRARY_GROUPS that gives a library, Navidrome has no default library, and it takes "
    "no account's last one"
)
_CONFLICT = Reason.IDENTITY_CONFLICT


class Denied(Exception):
    """The identity gets no account: `reason`, and a sentence."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Provisioner:
    """Sees to accounts, one at a time for each person and name. `refresh` takes in what other processes
    changed in the store."""

    def __init__(self, means: Means, refresh: Callable[[], Awaitable[None]]) -> None:
        self._means = means
        self._refresh = refresh
        self.rights = Rights(means)
        self.upkeep = Upkeep(means, self.rights)

    async def settle(self, identity: Identity, occasion: Occasion, *, verified: bool) -> Binding:
        """The binding of the identity, its account as it should be. `verified`: a verified token says
        what the identity says.

        Raises `Denied`, and what the API and the store raise.
        """
        uid = identity.uid
        if uid is None:
            raise Denied(Reason.IDENTITY_INCOMPLETE, "an identity without the provider's uid")
        if self._means.policy.reserves(identity.username):
            raise Denied(Reason.RESERVED_ACCOUNT, "the name is reserved")
        binding = self._means.bindings.of_uid(uid)
        if not self._means.policy.allows(identity):
            if binding is not None:
                await self._refuse(binding, identity, occasion)
            raise Denied(Reason.GROUP_NOT_ALLOWED, "in no group of SHIM_ALLOWED_GROUPS")
        if binding is None:
            await self._refresh()
            binding = self._means.bindings.of_uid(uid)
        if binding is None:
            return await self._admit(identity, uid, occasion)
        renames = fold_name(identity.username) != fold_name(binding.claimed_name)
        if renames:
            self._check_rename(identity, binding, verified=verified)
        user = await self._means.api.user(binding.navidrome_id)
        if user is not None:
            binding = await self.upkeep.follow(binding, user, occasion)
            if await self.rights.keeps_denied_libraries(identity, user):
                await self._refuse(binding, identity, occasion)
                raise Denied(Reason.GROUP_NOT_ALLOWED, NO_LIBRARY)
            try:
                return await self._update(identity, binding, user, occasion, renames=renames)
            except Risen:
                pass
        await self.upkeep.forget(binding, occasion)
        return await self._admit(identity, uid, occasion)

    # what is refused

    async def _refuse(self, binding: Binding, identity: Identity, occasion: Occasion) -> None:
        try:
            await self.upkeep.refuse(binding, identity, occasion)
        except Outdated:
            raise  # what is refused is decided again, by what the binding is now
        except (NavidromeError, StoreError, Busy) as error:
            # The person is refused all the same, and the door closed as soon as that can be done.
            self._means.record(
                AccountFailed(
                    time=time.time(),
                    peer="-" if occasion.asker is None else occasion.asker.peer,
                    detail=str(error),
                    name=identity.username,
                    uid=identity.uid,
                    groups=identity.groups,
                )
            )

    def _check_rename(self, identity: Identity, binding: Binding, *, verified: bool) -> None:
        if fold_name(identity.username) == binding.folded_name:
            return  # somebody renamed the account in Navidrome already
        policy = self._means.policy
        if not policy.follows(verified=verified):
            why = f"SHIM_FOLLOW_RENAMES is {policy.follow_renames}"
            raise Denied(_CONFLICT, f"the uid belongs to {binding.user_name}, and {why}")
        self._check_free(identity, binding.navidrome_id)
        if self._means.directory.of_name(identity.username) is not None:
            raise Denied(_CONFLICT, "another account has the new name")

    def _check_free(self, identity: Identity, navidrome_id: str | None) -> None:
        """Raise `Denied` where the name is somebody else's, or rests for somebody else."""
        folded = fold_name(identity.username)
        holder = self._means.bindings.of_name(folded)
        if holder is not None and holder.uid is not None and holder.uid != identity.uid:
            raise Denied(_CONFLICT, f"the name is bound to another uid ({holder.uid})")
        rest = self._means.bindings.rest_of(folded)
        if rest is not None and navidrome_id != rest.navidrome_id and rest.uid != identity.uid:
            why = "whose tokens have not ended yet; it is free after SHIM_NAME_REST_HOURS"
            raise Denied(_CONFLICT, f"the name was another account's, {why}")

    def _check_usable(self, user: User) -> None:
        if self._means.policy.reserves(user.user_name):
            raise Denied(Reason.RESERVED_ACCOUNT, "the account has a reserved name by now")
        if not is_carried(user.user_name):
            raise Denied(_CONFLICT, "the account's name in Navidrome can stand in no header")

    # a person who has no account

    async def _admit(self, identity: Identity, uid: str, occasion: Occasion) -> Binding:
        self._check_free(identity, None)
        known = self._means.directory.of_name(identity.username)
        if known is None:
            try:
                return await self._create(identity, uid, occasion)
            except NameTaken:
                await self._means.directory.read(self._means.api.users)
            known = self._means.directory.of_name(identity.username)
            if known is None:
                raise Busy("Navidrome says that the name is taken, and lists nobody who has it")
        return await self._link(identity, uid, known, occasion)

    async def _create(self, identity: Identity, uid: str, occasion: Occasion) -> Binding:
        new = NewUser(
            id=new_id(),
            user_name=identity.username,
            name=identity.name or identity.username,
            email=usable_email(identity.email) or "",
            is_admin=self._means.policy.admin(identity) is True,
        )
        user, intent = await self.rights.writer.create(new, uid)
        self._means.directory.put(user)
        binding = await self._means.bindings.put(
            _binding(identity, uid, user, made=True), ends=intent
        )
        odd = identity.email and usable_email(identity.email) is None
        self._means.record(
            AccountCreated(
                time=time.time(),
                account=user.user_name,
                navidrome_id=user.id,
                admin=user.is_admin,
                notes=("the e-mail is none, and was left out",) if odd else (),
                **occasion.told(),
            )
        )
        # An account that was begun earlier may have been begun for other groups.
        changes = field_changes(identity, user, binding.written, self._means.policy)
        user = await self.rights.change(user, changes, occasion, holder=binding)
        await self.rights.set_libraries(identity, user, occasion)
        return binding

    async def _link(self, identity: Identity, uid: str, known: User, occasion: Occasion) -> Binding:
        """Bind an account that is there already. It keeps its password and its tokens where it was never
        bound before and the link gives it no right."""
        user = await self._means.api.user(known.id)
        if user is None or fold_name(user.user_name) != fold_name(identity.username):
            await self._means.directory.read(self._means.api.users)
            raise Outdated("the account with this name changed just now")
        old = self._means.bindings.of_account(user.id)
        if old is not None and old.uid is not None:
            raise Denied(_CONFLICT, f"the account is bound to another uid ({old.uid})")
        released = old is not None and old.made
        why_not = self._means.policy.why_not_linked(user, identity, released=released)
        if why_not is not None:
            raise Denied(_CONFLICT, why_not)
        self._check_usable(user)
        if await self.rights.keeps_denied_libraries(identity, user):
            raise Denied(Reason.GROUP_NOT_ALLOWED, NO_LIBRARY)
        changes = field_changes(identity, user, NOTHING_WRITTEN, self._means.policy)
        claims_admin = user.is_admin
        password = None
        if old is not None or not await self._keeps_password(user, identity):
            password = Readmission("it was linked to a person")
            await self._means.bindings.put_rule(self._means.bindings.locked_rule(user.id))
        try:
            after = await self.rights.change(user, changes, occasion, holder=old, password=password)
        except Risen:
            if old is not None:
                await self._means.bindings.forget(old)
            self._means.directory.drop(user.id)
            return await self._create(identity, uid, occasion)
        binding = _binding(identity, uid, after, made=released)
        if old is not None:
            binding = replace(binding, id=old.id, first_seen=old.first_seen, version=old.version)
        rule = None if password is None else TokenRule(after.id, void_before=after.read_at)
        binding = await self._means.bindings.put(binding, rule=rule)
        self._means.record(
            AccountLinked(
                time=time.time(),
                account=after.user_name,
                navidrome_id=after.id,
                admin=after.is_admin,
                password_kept=password is None,
                notes=("it was an admin already",) if claims_admin else (),
                **occasion.told(),
            )
        )
        await self.rights.set_libraries(identity, after, occasion)
        return binding

    async def _keeps_password(self, user: User, identity: Identity) -> bool:
        """Whether an account that was never bound keeps its password and its tokens when it is."""
        if self._means.bindings.is_locked(user.id) or self._means.policy.grants_admin(
            user, identity
        ):
            return False
        return not await self._means.api.opens_without_password(user.user_name)

    # a person who has one

    async def _update(
        self,
        identity: Identity,
        binding: Binding,
        user: User,
        occasion: Occasion,
        *,
        renames: bool,
    ) -> Binding:
        """Make the account what it should be."""
        self._check_usable(user)
        changes = field_changes(identity, user, binding.written, self._means.policy)
        if renames and fold_name(identity.username) != fold_name(user.user_name):
            changes["userName"] = identity.username
            # The old name rests before it is free: whoever is killed in between has said so.
            await self._means.bindings.rest((self.upkeep.rest_for(binding),))
        password = self._readmission(binding)
        try:
            after = await self.rights.change(
                user, changes, occasion, holder=binding, password=password
            )
        except NameTaken:
            await self._means.directory.read(self._means.api.users)
            raise Denied(_CONFLICT, "another account has the new name") from None
        settled = replace(
            binding,
            user_name=after.user_name,
            claimed_name=identity.username,
            state=BindingState.ACTIVE,
            open_door=False,
            identity=identity,
            written=written_of(identity, binding.written),
        )
        if settled != binding or password is not None:
            rule = None if password is None else TokenRule(after.id, void_before=after.read_at)
            settled = replace(settled, last_seen=time.time())
            settled = await self._means.bindings.put(settled, rule=rule)
        await self.rights.set_libraries(identity, after, occasion)
        return settled

    def _readmission(self, binding: Binding) -> Readmission | None:
        """The new password of an account that is locked, or was to be: its person may come in again."""
        locked = self._means.bindings.is_locked(binding.navidrome_id)
        if binding.state is BindingState.ACTIVE and not binding.open_door and not locked:
            return None
        refused = binding.state is BindingState.REFUSED
        return Readmission(
            "the policy allows the person again" if refused else "its person came back after a lock"
        )


def account_keys(uid: str | None, *user_names: str) -> tuple[str, ...]:
    """What has to be locked while an account is worked on: its person, and every name in question."""
    keys = [f"name {fold_name(name)}" for name in user_names]
    return (*keys, f"uid {uid}") if uid is not None else tuple(keys)


def _binding(identity: Identity, uid: str, user: User, *, made: bool) -> Binding:
    now = time.time()
    return Binding(
        uid=uid,
        navidrome_id=user.id,
        user_name=user.user_name,
        claimed_name=identity.username,
        made=made,
        first_seen=now,
        last_seen=now,
        identity=identity,
        written=written_of(identity),
    )
