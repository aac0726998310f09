"""What `check` says of accounts and the store. Changes no account, and makes no file and no table; what it
finds out about empty passwords is remembered in a store that is there.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from shim.control.health import Check, State
from shim.navidrome.api import Navidrome
from shim.navidrome.errors import NavidromeError
from shim.navidrome.models import User
from shim.provisioning.building import build_api, own_account
from shim.provisioning.empty_passwords import EmptyPasswords
from shim.provisioning.footing import find_footing
from shim.provisioning.health import accounts_check, store_check
from shim.provisioning.policy import AccountPolicy, account_policy
from shim.settings import Settings
from shim.store.database import Database
from shim.store.errors import StoreError


async def survey(settings: Settings) -> tuple[Check, ...]:
    """How the store and the accounts stand."""
    api = build_api(settings)
    try:
        accounts = await _accounts(settings, api)
    except NavidromeError as error:
        accounts = Check("accounts", State.FAILING, str(error), "Look at Navidrome's log.")
    finally:
        await api.close()
    return (_store(settings), accounts)


async def _accounts(settings: Settings, api: Navidrome) -> Check:
    policy = account_policy(settings)
    footing = await find_footing(api, own_account(settings), creates=False)
    if footing.users is None:
        # An empty server is no fault: starting is what helps.
        state = State.FAILING if footing.peopled else State.WARNING
        return Check("accounts", state, footing.problem, footing.remedy)
    return accounts_check(
        len(footing.users),
        None,
        await _without_password(settings, api, footing.users),
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
        if file is not None and not file.exists():
            return _new_file(file, database.place)
        database.look()
    except StoreError as error:
        return store_check(database.place, str(error))
    finally:
        database.close()
    return store_check(database.place, None)


def _new_file(file: Path, place: str) -> Check:
    folder = file.absolute().parent
    if not folder.is_dir():
        return store_check(place, f"{place}: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        return store_check(place, f"{place}: the folder {folder} can't be written to")
    return store_check(place, None)
