"""What `check` says of accounts and the store. Changes no account, and makes no file and no table; what it
finds out about empty passwords is remembered in a store that is there.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from shim.health import Check, State
from shim.navidrome.api import Navidrome
from shim.navidrome.errors import NavidromeError
from shim.navidrome.models import User
from shim.provisioning.admin import ensure_admin_access, is_lost_database, lost_database
from shim.provisioning.binding_store import BindingStore
from shim.provisioning.empty_passwords import EmptyPasswords
from shim.provisioning.factory import build_api, own_account
from shim.provisioning.health import accounts_check, store_check
from shim.provisioning.models import Binding
from shim.provisioning.own_account import OwnAccountRecords
from shim.provisioning.policy import AccountPolicy, account_policy, is_header_safe
from shim.settings import Settings
from shim.store.database import Database, file_problem
from shim.store.errors import StoreError
from shim.trust.identity import Identity
from shim.trust.names import normalize_name


@dataclass(frozen=True, slots=True)
class AccountOutcome:
    """An existing account, and what happens to an identity of its name. `with_admin_group` is None where no
    group grants the admin right."""

    account: str
    admin: bool
    outcome: str
    with_admin_group: str | None


async def check_accounts(settings: Settings) -> tuple[Check, ...]:
    """How the store and the accounts stand."""
    api = build_api(settings)
    try:
        accounts = await _accounts(settings, api)
    except NavidromeError as error:
        accounts = Check("accounts", State.FAILING, str(error), "Look at Navidrome's log.")
    finally:
        await api.close()
    return (_store(settings), accounts)


async def outcomes(settings: Settings) -> tuple[AccountOutcome, ...]:
    """What happens to an identity of each existing account's name, without an admin group and with one.
    Empty where Navidrome can't be asked: `survey` says why."""
    api = build_api(settings)
    try:
        admin_access = await ensure_admin_access(api, own_account(settings))
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
    """What happens to an identity of this account's name on its first visit, in words."""
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
    ends = binding is not None  # nobody's since it was unlinked
    kept = "gets a new password" if ends else "keeps its password and its tokens"
    if user.is_admin and policy.admin(identity) is False:
        return f"linked to this account, {kept}, loses the admin right"
    return f"linked to this account, {kept}"


async def _bindings(settings: Settings) -> dict[str, Binding]:
    """The bindings by account, where there is a database that can be read as it is."""
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
        return False  # said of the store itself
    finally:
        await asyncio.to_thread(database.close)


async def _accounts(settings: Settings, api: Navidrome) -> Check:
    policy = account_policy(settings)
    admin_access = await ensure_admin_access(api, own_account(settings))
    if admin_access.users is None:
        # An empty server is no fault: starting is what helps.
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
    """The store, if it is there and its tables are up to date."""
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
