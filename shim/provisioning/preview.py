"""What the account policy and the bindings make of an identity, for `explain`. Asks, and changes nothing."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from shim.navidrome.errors import NavidromeError
from shim.navidrome.models import User
from shim.provisioning.bindings import Bindings
from shim.provisioning.building import build_api, own_account
from shim.provisioning.footing import find_footing, is_lost_database, own_account_of
from shim.provisioning.own_account import OwnAccountRecords
from shim.provisioning.policy import AccountPolicy, account_policy
from shim.provisioning.records import Binding
from shim.settings import Settings
from shim.store.database import Database
from shim.store.errors import StoreError
from shim.trust.identity import Identity
from shim.trust.names import fold_name
from shim.trust.reasons import Reason


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what was looked at, what came of it, and why. `reason` is set where the request is rejected;
    `user_name` is the account that Navidrome is told, where that is known."""

    name: str
    result: str
    why: str
    reason: Reason | None = None
    user_name: str | None = None


async def preview(settings: Settings, identity: Identity, *, verified: bool) -> tuple[Step, ...]:
    """The steps from an identity to its account, up to the one that rejects it."""
    policy = account_policy(settings)
    step = _policy_step(policy, identity)
    if step.reason is not None:
        return (step,)
    try:
        database = Database(settings.database_url.get_secret_value())
    except StoreError as error:
        return (step, _rejected("binding", Reason.STORE_UNAVAILABLE, str(error)))
    try:
        new = database.file is not None and not database.file.exists()
        bindings = Bindings(database, "explain", time.time)
        if not new:
            await bindings.load()
        return (step, await _binding_step(settings, policy, identity, bindings, new, verified))
    except StoreError as error:
        return (step, _rejected("binding", Reason.STORE_UNAVAILABLE, str(error)))
    finally:
        await asyncio.to_thread(database.close)


def _policy_step(policy: AccountPolicy, identity: Identity) -> Step:
    if identity.uid is None:
        return _rejected(
            "policy",
            Reason.IDENTITY_INCOMPLETE,
            "the identity has no uid, which accounts are bound by",
        )
    if policy.reserves(identity.username):
        why = "the name is the shim's own account's or one of SHIM_PROTECTED_USERS"
        return _rejected("policy", Reason.RESERVED_ACCOUNT, why)
    allowed = ", ".join(sorted(policy.allowed_groups))
    groups = ", ".join(identity.groups or ()) or "none"
    if not policy.allows(identity):
        why = f"none of the groups ({groups}) is in SHIM_ALLOWED_GROUPS ({allowed})"
        return _rejected("policy", Reason.GROUP_NOT_ALLOWED, why)
    why = f"a group ({groups}) is in SHIM_ALLOWED_GROUPS ({allowed})" if allowed else ""
    return Step("policy", "may sign in", why or "SHIM_ALLOWED_GROUPS is not set: everybody may")


async def _binding_step(
    settings: Settings,
    policy: AccountPolicy,
    identity: Identity,
    bindings: Bindings,
    new: bool,
    verified: bool,
) -> Step:
    api = build_api(settings)
    try:
        footing = await find_footing(api, own_account(settings))
    except NavidromeError as error:
        return _rejected("account", Reason.NAVIDROME_UNAVAILABLE, str(error))
    finally:
        await api.close()
    if footing.users is None:
        why = f"{footing.problem}. {footing.remedy}"
        return _rejected("account", Reason.NAVIDROME_ACCESS_DENIED, why)
    records = None if new else OwnAccountRecords(bindings.database)
    if await is_lost_database(footing.users, records):
        why = "the database knows nothing of the account navidrome-shim: see `navidrome-shim check`"
        return _rejected("account", Reason.DATABASE_UNCONFIRMED, why)
    assert identity.uid is not None
    binding = bindings.of_uid(identity.uid)
    if binding is not None:
        return _bound_step(policy, identity, binding, verified=verified)
    return _unbound_step(policy, identity, bindings, footing.users)


def _bound_step(
    policy: AccountPolicy, identity: Identity, binding: Binding, *, verified: bool
) -> Step:
    name = fold_name(identity.username)
    renamed = name not in (fold_name(binding.claimed_name), binding.folded_name)
    if renamed and not policy.follows(verified=verified):
        why = (
            f"the uid is bound to {binding.user_name}, the name changed, and SHIM_FOLLOW_RENAMES is "
            f"{policy.follow_renames}"
        )
        return _rejected("account", Reason.RENAME_NOT_FOLLOWED, why)
    if renamed:
        why = f"the account {binding.user_name} is renamed to {identity.username}"
        return Step("account", "renamed", why, user_name=identity.username)
    why = f"the uid is bound to the account {binding.user_name}"
    return Step("account", "bound", why, user_name=binding.user_name)


def _unbound_step(
    policy: AccountPolicy, identity: Identity, bindings: Bindings, users: tuple[User, ...]
) -> Step:
    folded = fold_name(identity.username)
    holder = bindings.of_name(folded)
    if holder is not None and holder.uid is not None:
        why = f"the account {holder.user_name} is bound to another uid ({holder.uid})"
        return _rejected("account", Reason.IDENTITY_CONFLICT, why)
    held = bindings.rest_of(folded)
    if held is not None and held.uid != identity.uid:
        why = "the name was another account's until recently, and is held for it"
        return _rejected("account", Reason.NAME_HELD, why)
    user = own_account_of(users, identity.username)
    if user is None:
        why = "the uid is bound to no account, and Navidrome has none of this name"
        return Step("account", "created on the first visit", why, user_name=identity.username)
    binding = bindings.of_account(user.id)
    why_not = policy.why_not_linked(user, identity, released=binding is not None and binding.made)
    if why_not is not None:
        return _rejected("account", Reason.IDENTITY_CONFLICT, why_not)
    why = f"Navidrome has the account {user.user_name}, which is bound to nobody"
    return Step("account", "linked on the first visit", why, user_name=user.user_name)


def _rejected(name: str, reason: Reason, why: str) -> Step:
    return Step(name, "rejected", why, reason)
