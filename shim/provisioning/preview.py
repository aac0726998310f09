"""What the account policy and the bindings make of an identity, for `explain`. Asks, and changes nothing."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from shim.navidrome.errors import NavidromeError
from shim.navidrome.models import User
from shim.provisioning.admin import ensure_admin_access, is_lost_database, own_account_of
from shim.provisioning.binding_store import BindingStore
from shim.provisioning.factory import build_api, own_account
from shim.provisioning.models import Binding
from shim.provisioning.own_account import OwnAccountRecords
from shim.provisioning.policy import AccountPolicy, account_policy
from shim.settings import Settings
from shim.store.database import Database
from shim.store.errors import StoreError
from shim.trust.identity import Identity
from shim.trust.names import normalize_name
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
        bindings = BindingStore(database, "explain", time.time)
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
        reason = "the name is the shim's own account's or one of SHIM_PROTECTED_USERS"
        return _rejected("policy", Reason.RESERVED_ACCOUNT, reason)
    allowed = ", ".join(sorted(policy.allowed_groups))
    groups = ", ".join(identity.groups or ()) or "none"
    if not policy.allows(identity):
        reason = f"none of the groups ({groups}) is in SHIM_ALLOWED_GROUPS ({allowed})"
        return _rejected("policy", Reason.GROUP_NOT_ALLOWED, reason)
    reason = f"a group ({groups}) is in SHIM_ALLOWED_GROUPS ({allowed})" if allowed else ""
    return Step("policy", "may sign in", reason or "SHIM_ALLOWED_GROUPS is not set: everybody may")


async def _binding_step(
    settings: Settings,
    policy: AccountPolicy,
    identity: Identity,
    bindings: BindingStore,
    new: bool,
    verified: bool,
) -> Step:
    api = build_api(settings)
    try:
        admin_access = await ensure_admin_access(api, own_account(settings))
    except NavidromeError as error:
        return _rejected("account", Reason.NAVIDROME_UNAVAILABLE, str(error))
    finally:
        await api.close()
    if admin_access.users is None:
        reason = f"{admin_access.error}. {admin_access.remedy}"
        return _rejected("account", Reason.NAVIDROME_ACCESS_DENIED, reason)
    records = None if new else OwnAccountRecords(bindings.database)
    if await is_lost_database(admin_access.users, records):
        reason = (
            "the database knows nothing of the account navidrome-shim: see `navidrome-shim check`"
        )
        return _rejected("account", Reason.DATABASE_UNCONFIRMED, reason)
    assert identity.uid is not None
    binding = bindings.by_uid(identity.uid)
    if binding is not None:
        return _bound_step(policy, identity, binding, verified=verified)
    return _unbound_step(policy, identity, bindings, admin_access.users)


def _bound_step(
    policy: AccountPolicy, identity: Identity, binding: Binding, *, verified: bool
) -> Step:
    name = normalize_name(identity.username)
    renamed = name not in (normalize_name(binding.provider_username), binding.normalized_name)
    if renamed and not policy.follows(verified=verified):
        reason = (
            f"the uid is bound to {binding.user_name}, the name changed, and SHIM_FOLLOW_RENAMES is "
            f"{policy.follow_renames}"
        )
        return _rejected("account", Reason.RENAME_NOT_FOLLOWED, reason)
    if renamed:
        reason = f"the account {binding.user_name} is renamed to {identity.username}"
        return Step("account", "renamed", reason, user_name=identity.username)
    reason = f"the uid is bound to the account {binding.user_name}"
    return Step("account", "bound", reason, user_name=binding.user_name)


def _unbound_step(
    policy: AccountPolicy, identity: Identity, bindings: BindingStore, users: tuple[User, ...]
) -> Step:
    normalized = normalize_name(identity.username)
    holder = bindings.by_name(normalized)
    if holder is not None and holder.uid is not None:
        reason = f"the account {holder.user_name} is bound to another uid ({holder.uid})"
        return _rejected("account", Reason.IDENTITY_CONFLICT, reason)
    held = bindings.name_hold(normalized)
    if held is not None and held.uid != identity.uid:
        reason = "the name was another account's until recently, and is held for it"
        return _rejected("account", Reason.NAME_HELD, reason)
    user = own_account_of(users, identity.username)
    if user is None:
        reason = "the uid is bound to no account, and Navidrome has none of this name"
        return Step("account", "created on the first visit", reason, user_name=identity.username)
    binding = bindings.by_account(user.id)
    error = policy.link_error(
        user, identity, unlinked=binding is not None and binding.created_by_shim
    )
    if error is not None:
        return _rejected("account", Reason.IDENTITY_CONFLICT, error)
    reason = f"Navidrome has the account {user.user_name}, which is bound to nobody"
    return Step("account", "linked on the first visit", reason, user_name=user.user_name)


def _rejected(name: str, reason: Reason, why: str) -> Step:
    return Step(name, "rejected", why, reason)
