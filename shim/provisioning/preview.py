"""Preview accounts and the store for `check`, and an identity's steps for `explain`.

Changes no account, and creates no file and no table; results of empty-password tests are recorded in a store
that exists.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass

from shim.health import Check, State
from shim.navidrome.api import Navidrome
from shim.navidrome.errors import NavidromeError
from shim.navidrome.models import User
from shim.provisioning.admin import (
    OwnAccountRecords,
    ensure_admin_access,
    is_lost_database,
    lost_database,
    own_account_of,
)
from shim.provisioning.binding_store import BindingStore
from shim.provisioning.factory import build_api, own_account
from shim.provisioning.health import accounts_check, store_check
from shim.provisioning.models import REBIND_SOURCE, Binding, is_person, waiting_uid
from shim.provisioning.policy import AccountPolicy, account_policy, is_header_safe
from shim.provisioning.reconcile import EmptyPasswords
from shim.settings import Settings
from shim.store.database import Database, file_problem
from shim.store.errors import StoreError
from shim.trust.identity import Identity
from shim.trust.names import normalize_name
from shim.trust.reasons import Reason


@dataclass(frozen=True, slots=True)
class AccountOutcome:
    """An existing account, and the outcome for an identity of its name. `with_admin_group` is None if no
    group grants the admin right."""

    account: str
    admin: bool
    outcome: str
    with_admin_group: str | None


async def check_accounts(settings: Settings, tls: ssl.SSLContext | None) -> tuple[Check, ...]:
    """Return the checks of the store and the accounts. `tls` verifies Navidrome's certificate."""
    api = build_api(settings, tls)
    try:
        accounts = await _accounts(settings, api, tls)
    except NavidromeError as error:
        accounts = Check("accounts", State.FAILING, str(error), "Look at Navidrome's log.")
    finally:
        await api.close()
    return (_store(settings), accounts)


async def outcomes(settings: Settings, tls: ssl.SSLContext | None) -> tuple[AccountOutcome, ...]:
    """Return the outcome for an identity of each existing account's name, without an admin group and with
    one. Empty if Navidrome can't be reached: `check_accounts` states the reason."""
    api = build_api(settings, tls)
    try:
        admin_access = await ensure_admin_access(api, own_account(settings, tls))
    except NavidromeError:
        return ()
    finally:
        await api.close()
    policy = account_policy(settings)
    bindings = await _bindings(settings)
    found = (
        AccountOutcome(
            user.user_name,
            user.is_admin,
            outcome_of(user, policy, bindings.get(user.id), in_admin_group=False),
            outcome_of(user, policy, bindings.get(user.id), in_admin_group=True)
            if policy.admin_groups
            else None,
        )
        for user in admin_access.users or ()
    )
    return tuple(sorted(found, key=lambda each: normalize_name(each.account)))


def outcome_of(
    user: User, policy: AccountPolicy, binding: Binding | None, *, in_admin_group: bool
) -> str:
    """Describe the outcome for an identity of this account's name on its first visit, in words."""
    if policy.reserves(user.user_name):
        return "rejected: the account is reserved"
    if not is_header_safe(user.user_name):
        return "rejected: the name contains characters not allowed in a header"
    if binding is not None and binding.uid is not None:
        return f"signs in if its uid is {binding.uid}, else rejected"
    groups = tuple(policy.admin_groups)[:1] if in_admin_group else ()
    identity = Identity(user.user_name, None, None, groups, "any")
    released = binding is not None and binding.created_by_shim
    error = policy.link_error(user, identity, unlinked=released)
    if error is not None:
        return f"rejected: {error}"
    if policy.grants_admin(user, identity):
        return "linked to this account, becomes admin; its password is replaced and its tokens are void"
    ends = binding is not None  # unlinked: it belongs to no person
    password_effect = "gets a new password" if ends else "keeps its password and its tokens"
    if user.is_admin and policy.admin(identity) is False:
        return f"linked to this account, {password_effect}, loses the admin right"
    return f"linked to this account, {password_effect}"


async def _bindings(settings: Settings) -> dict[str, Binding]:
    """Return the bindings by account, if there is a database that can be read without an upgrade."""
    try:
        database = Database(settings.database_url.get_secret_value())
    except StoreError:
        return {}
    try:
        if database.file is not None and not database.file.exists():
            return {}
        bindings = BindingStore(database, "check", time.time)
        await bindings.load()
        return {binding.navidrome_id: binding for binding in bindings.all()}
    except StoreError:
        return {}
    finally:
        await asyncio.to_thread(database.close)


async def _is_lost(settings: Settings, users: tuple[User, ...]) -> bool:
    database = Database(settings.database_url.get_secret_value())
    try:
        if database.file is not None and not database.file.exists():
            return await is_lost_database(users, None)
        return await is_lost_database(users, OwnAccountRecords(database))
    except StoreError:
        return False  # the check of the store reports it
    finally:
        await asyncio.to_thread(database.close)


async def _accounts(settings: Settings, api: Navidrome, tls: ssl.SSLContext | None) -> Check:
    policy = account_policy(settings)
    admin_access = await ensure_admin_access(api, own_account(settings, tls))
    if admin_access.users is None:
        # An empty server is no fault: a start of the shim creates the first admin.
        state = State.FAILING if admin_access.has_users else State.WARNING
        return Check("accounts", state, admin_access.error, admin_access.remedy)
    if await _is_lost(settings, admin_access.users):
        lost = lost_database()
        return Check("accounts", State.FAILING, lost.error, lost.remedy)
    return accounts_check(
        len(admin_access.users),
        None,
        await _without_password(settings, api, admin_access.users),
        await _unknown_libraries(api, policy),
        api.unreadable,
    )


async def _without_password(
    settings: Settings, api: Navidrome, users: tuple[User, ...]
) -> tuple[str, ...]:
    database = _usable_store(settings)
    try:
        return await EmptyPasswords(api, database).find(users)
    except StoreError:
        return await EmptyPasswords(api, None).find(users)
    finally:
        if database is not None:
            await asyncio.to_thread(database.close)


def _usable_store(settings: Settings) -> Database | None:
    """Return the store, if it exists and its tables are up to date."""
    try:
        database = Database(settings.database_url.get_secret_value())
    except StoreError:
        return None
    try:
        if (database.file is None or database.file.exists()) and database.is_current():
            return database
    except StoreError:
        pass
    database.close()
    return None


async def _unknown_libraries(api: Navidrome, policy: AccountPolicy) -> tuple[str, ...]:
    if not policy.library_groups:
        return ()
    return policy.unknown_libraries(await api.libraries())


def _store(settings: Settings) -> Check:
    try:
        database = Database(settings.database_url.get_secret_value())
    except StoreError as error:
        return store_check("", str(error))
    try:
        file = database.file
        if file is not None and (problem := file_problem(file)) is not None:
            return store_check(database.display_url, f"{database.display_url}: {problem}")
        if file is not None and not file.exists():
            return store_check(database.display_url, None)
        database.check()
    except StoreError as error:
        return store_check(database.display_url, str(error))
    finally:
        database.close()
    return store_check(database.display_url, None)


@dataclass(frozen=True, slots=True)
class Step:
    """One step: the subject, the result, and the reason. `reason` is set if the request is rejected;
    `user_name` is the account whose name Navidrome gets, if known."""

    name: str
    result: str
    explanation: str
    reason: Reason | None = None
    user_name: str | None = None


async def preview(settings: Settings, identity: Identity, *, verified: bool) -> tuple[Step, ...]:
    """Return the steps from an identity to its account, up to the one that rejects it."""
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
            "the identity has no uid, but accounts are bound to uids",
        )
    if policy.reserves(identity.username):
        reason = "the name belongs to the shim's own account or is in SHIM_PROTECTED_USERS"
        return _rejected("policy", Reason.RESERVED_ACCOUNT, reason)
    allowed = ", ".join(sorted(policy.allowed_groups))
    groups = ", ".join(identity.groups or ()) or "none"
    if not policy.allows(identity):
        reason = f"none of the groups ({groups}) is in SHIM_ALLOWED_GROUPS ({allowed})"
        paths = [
            group
            for group in identity.groups or ()
            if group.startswith("/") and group.rpartition("/")[2] in policy.allowed_groups
        ]
        if paths:
            reason += f"; write a group with its whole path, as the provider sends it: {paths[0]}"
        return _rejected("policy", Reason.GROUP_NOT_ALLOWED, reason)
    reason = f"a group ({groups}) is in SHIM_ALLOWED_GROUPS ({allowed})" if allowed else ""
    return Step(
        "policy", "may sign in", reason or "SHIM_ALLOWED_GROUPS is not set: all users may sign in"
    )


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
        reason = "the database does not know the account navidrome-shim: see `navidrome-shim check`"
        return _rejected("account", Reason.DATABASE_UNCONFIRMED, reason)
    assert identity.uid is not None
    binding = bindings.by_uid(identity.uid)
    if binding is not None and not is_person(binding.uid, binding.uid_source, identity):
        reason = (
            f"the account {binding.user_name} is bound to this uid of another source "
            f"({binding.uid_source or 'a header'}; now: {identity.uid_source}). See `users rebind`"
        )
        return _rejected("account", Reason.UID_SOURCE_CHANGED, reason)
    if binding is None:
        waiting = bindings.by_uid(waiting_uid(identity.username))
        if waiting is not None and waiting.uid_source == REBIND_SOURCE:
            reason = (
                f"the account {waiting.user_name} waits for a user with this name (`users rebind`)"
            )
            return Step("account", "bound on the first visit", reason, user_name=waiting.user_name)
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
    hold = bindings.name_hold(normalized)
    if hold is not None and not is_person(hold.uid, hold.uid_source, identity):
        reason = "the name belonged to another account until recently, and is held for its user"
        return _rejected("account", Reason.NAME_HELD, reason)
    user = own_account_of(users, identity.username)
    if user is None:
        reason = "the uid is bound to no account, and Navidrome has no account with this name"
        return Step("account", "created on the first visit", reason, user_name=identity.username)
    binding = bindings.by_account(user.id)
    error = policy.link_error(
        user, identity, unlinked=binding is not None and binding.created_by_shim
    )
    if error is not None:
        return _rejected("account", Reason.IDENTITY_CONFLICT, error)
    reason = f"Navidrome has the account {user.user_name}, which is not linked"
    return Step("account", "linked on the first visit", reason, user_name=user.user_name)


def _rejected(name: str, reason: Reason, explanation: str) -> Step:
    return Step(name, "rejected", explanation, reason)
