"""Ensure that the shim may administer Navidrome's accounts; if not, report what to do.

On an empty server the shim creates the first admin, its own account, so that no visitor becomes admin by
chance. On a server with users, the bootstrap admin of the settings creates that account or gives it the admin
right. `OwnAccountRecords` stores which accounts this database created or adopted for the shim; the caller
keeps the result of `ensure_admin_access` as long as it is valid.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select

from shim.navidrome.api import HeaderTrust, Navidrome
from shim.navidrome.errors import NotAuthenticated, PermissionDenied
from shim.navidrome.models import NewUser, User
from shim.provisioning.account_writer import new_id
from shim.provisioning.binding_store import increment_version, put_token_rule
from shim.provisioning.models import TokenRule
from shim.settings.model import DEFAULT_ADMIN_USERNAME
from shim.store.database import Database
from shim.store.schema import BINDINGS, CHANGE_COUNTERS
from shim.trust.names import normalize_name

_IN_USE = "database_in_use"
_ACCOUNT = "own_account "


class OwnAccountRecords:
    """Reads and writes these records. Every method raises `StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def is_in_use(self) -> bool:
        """Return whether this database has been used with a Navidrome before, or was confirmed as a new
        one."""
        return await self._database.read_async(_is_in_use)

    async def confirm(self) -> None:
        """Record that this database is in use, so that it no longer counts as the replacement of a lost
        one."""
        await self._database.write_async(lambda connection: _put(connection, _IN_USE, 1))

    async def knows(self, navidrome_id: str) -> bool:
        """Return whether this database created or adopted the account with this id."""
        name = _ACCOUNT + navidrome_id
        return (
            await self._database.read_async(lambda connection: _value(connection, name)) is not None
        )

    async def adopt(self, navidrome_id: str) -> None:
        """Record the account as the shim's own; every token issued until now is void."""
        now = int(time.time()) + 1

        def work(connection: Connection) -> None:
            _put(connection, _IN_USE, 1)
            _put(connection, _ACCOUNT + navidrome_id, now)
            put_token_rule(connection, TokenRule(navidrome_id, void_before=float(now)))
            increment_version(connection)

        await self._database.write_async(work)


def _is_in_use(connection: Connection) -> bool:
    if _value(connection, _IN_USE) is not None:
        return True
    return connection.execute(select(func.count()).select_from(BINDINGS)).scalar_one() > 0


def _value(connection: Connection, name: str) -> int | None:
    found = connection.execute(
        select(CHANGE_COUNTERS.c.value).where(CHANGE_COUNTERS.c.name == name)
    ).scalar()
    return None if found is None else int(found)


def _put(connection: Connection, name: str, value: int) -> None:
    connection.execute(delete(CHANGE_COUNTERS).where(CHANGE_COUNTERS.c.name == name))
    connection.execute(insert(CHANGE_COUNTERS).values(name=name, value=value))


_EXAMPLE = "172.20.0.5/32; @ on a Unix socket"
LOST_DATABASE_REMEDY = (
    "Restore the database that SHIM_DATABASE_URL named before (in a container: mount the volume that holds "
    "it). If there is no other one, run `navidrome-shim database confirm-new`: the "
    "account then gets a new password, and identities are linked to accounts by name again."
)


@dataclass(frozen=True, slots=True)
class AdminAccess:
    """The result of `ensure_admin_access`.

    `users`: every user of the server, None if they can't be listed. `has_users`: the server is known to have
    users, so no visitor becomes its first admin. If `users` is None, `error` is the reason and `remedy` what
    to do. `created`: accounts that were just created for the shim; `by_admin`: by an existing admin, and not
    as the first. `secured`: an existing account with the shim's name got a new password. `lost_database`: the
    database does not belong to this Navidrome.
    """

    users: tuple[User, ...] | None
    has_users: bool
    error: str = ""
    remedy: str = ""
    created: tuple[str, ...] = ()
    secured: bool = False
    by_admin: bool = False
    lost_database: bool = False


@dataclass(frozen=True, slots=True)
class BootstrapAdmin:
    """An existing Navidrome admin, used only while the shim's own account is missing or is no admin.
    `connect` returns the API as this admin; the caller closes it."""

    user_name: str
    connect: Callable[[], Navidrome]


@dataclass(frozen=True, slots=True)
class OwnAccount:
    """The account that the shim uses. `password` is None if it authenticates by `user_header`; `act_as`
    returns the API as another user by that header; the caller closes it."""

    user_name: str
    user_header: str
    password: Callable[[], str] | None = None
    bootstrap: BootstrapAdmin | None = None
    act_as: Callable[[str], Navidrome] | None = None

    def new_password(self) -> str:
        """Return the configured password, or a random one that is stored nowhere. It lacks Navidrome's prefix
        for generated passwords: without the prefix it can't be replaced without knowing it."""
        return self.password() if self.password is not None else secrets.token_urlsafe(32)


async def ensure_admin_access(
    api: Navidrome, own_account: OwnAccount, records: OwnAccountRecords | None = None
) -> AdminAccess:
    """Check the shim's access and, with `records`, create, secure or promote its own account if needed;
    without them nothing is changed. Raises `Unavailable` if Navidrome can't be reached, `StoreError` if the
    database can't be read or written."""
    try:
        users = await api.users()
    except NotAuthenticated as error:
        error_text, promote = str(error), None
    except PermissionDenied:
        error_text, promote = "", _no_admin(own_account)
    else:
        return await _as_own_account(api, own_account, users, records)
    if own_account.bootstrap is not None:
        try:
            return await _as_bootstrap_admin(api, own_account, own_account.bootstrap, records)
        except NotAuthenticated as error:
            error_text = str(error)
    if promote is not None:
        return promote
    if records is None:
        empty = await api.is_empty()
        if empty:
            return AdminAccess(
                None,
                False,
                "Navidrome has no users yet",
                f"Start the shim: it creates the first admin, {own_account.user_name}.",
            )
        return await _unknown(api, own_account, error_text)
    if await _create_first(api, own_account, records):
        return await _first(api, own_account, records)
    return await _unknown(api, own_account, error_text)


def own_account_of(users: tuple[User, ...], user_name: str) -> User | None:
    """Return the user with this name, compared as Navidrome compares names."""
    normalized = normalize_name(user_name)
    return next((user for user in users if normalize_name(user.user_name) == normalized), None)


async def is_lost_database(users: tuple[User, ...], records: OwnAccountRecords | None) -> bool:
    """Return whether Navidrome has the account `navidrome-shim` but the database does not know it: another
    database holds the bindings. `records` is None for a database that does not exist."""
    if own_account_of(users, DEFAULT_ADMIN_USERNAME) is None:
        return False
    return records is None or not await records.is_in_use()


def lost_database() -> AdminAccess:
    """Return the result for a lost database: no identity is accepted."""
    error = (
        f"Navidrome has the account {DEFAULT_ADMIN_USERNAME}, but this database does not know "
        f"it: the database is "
        "new or was lost. No identity is accepted"
    )
    return AdminAccess(None, True, error, LOST_DATABASE_REMEDY, lost_database=True)


async def _as_own_account(
    api: Navidrome,
    own_account: OwnAccount,
    users: tuple[User, ...],
    records: OwnAccountRecords | None,
) -> AdminAccess:
    """Return the result if the shim is already an admin."""
    if records is None:
        return AdminAccess(users, True)
    if await is_lost_database(users, records):
        return lost_database()
    account = own_account_of(users, DEFAULT_ADMIN_USERNAME)
    if account is None:
        if own_account.password is None:
            return AdminAccess(users, True)
        # The configured password belongs to another admin, with which the shim creates its own account.
        await records.confirm()
        await _create(api, DEFAULT_ADMIN_USERNAME, secrets.token_urlsafe(32), records)
        return AdminAccess(
            await api.users(), True, created=(DEFAULT_ADMIN_USERNAME,), by_admin=True
        )
    if await records.knows(account.id):
        return AdminAccess(users, True)
    if normalize_name(own_account.user_name) != normalize_name(DEFAULT_ADMIN_USERNAME):
        await _secure(api, account, secrets.token_urlsafe(32), records)
    elif own_account.password is not None:
        # The login with the operator's password worked: only the tokens must still be voided.
        await records.adopt(account.id)
    else:
        await _secure_own_access(api, own_account, account, records)
    return AdminAccess(await api.users(), True, secured=True)


async def _as_bootstrap_admin(
    api: Navidrome,
    own_account: OwnAccount,
    bootstrap: BootstrapAdmin,
    records: OwnAccountRecords | None,
) -> AdminAccess:
    """Return the result of using the bootstrap admin of the settings. Raises `NotAuthenticated` if Navidrome
    does not accept the shim as this admin; the server may be empty."""
    admin = bootstrap.connect()
    try:
        try:
            users = await admin.users()
        except PermissionDenied:
            return AdminAccess(
                None,
                True,
                f"SHIM_BOOTSTRAP_ADMIN names {bootstrap.user_name}, who is not an admin in Navidrome",
                "Set it to the name of an admin: in Navidrome, Settings → Users shows the admins.",
            )
        if records is None:
            return AdminAccess(users, True)
        return await _bootstrap(admin, api, own_account, users, records)
    finally:
        await admin.close()


async def _no_bootstrap_user(
    api: Navidrome, own_account: OwnAccount, bootstrap: BootstrapAdmin, error_text: str
) -> AdminAccess:
    trust = await api.header_trust(bootstrap.user_name)
    if trust is HeaderTrust.UNTRUSTED and own_account.password is None:
        error, remedy = _untrusted(own_account)
        return AdminAccess(None, True, error, remedy)
    if trust is HeaderTrust.KNOWN:  # the password is wrong
        error = (
            f"Navidrome does not accept SHIM_BOOTSTRAP_ADMIN {bootstrap.user_name}: {error_text}"
        )
        remedy = "Correct SHIM_BOOTSTRAP_ADMIN_PASSWORD, or remove it: the user header is enough."
        return AdminAccess(None, True, error, remedy)
    return AdminAccess(
        None,
        True,
        f"SHIM_BOOTSTRAP_ADMIN names {bootstrap.user_name}, and Navidrome has no such user",
        "Set it to the name of an existing admin: in Navidrome, Settings → Users shows the admins.",
    )


async def _bootstrap(
    admin: Navidrome,
    api: Navidrome,
    own_account: OwnAccount,
    users: tuple[User, ...],
    records: OwnAccountRecords,
) -> AdminAccess:
    """Create the shim's own account as the bootstrap admin, or secure it and give it the admin right."""
    if await is_lost_database(users, records):
        return lost_database()
    account = own_account_of(users, own_account.user_name)
    created: tuple[str, ...] = ()
    secured = False
    if account is None:
        await records.confirm()
        await _create(admin, own_account.user_name, own_account.new_password(), records)
        created = (own_account.user_name,)
    elif not account.is_admin:
        # The creator of the account may know its password and hold its tokens.
        await _secure(admin, account, own_account.new_password(), records)
        fresh = await admin.user(account.id)
        if fresh is not None:
            await admin.write(fresh, {"isAdmin": True})
        secured = True
    api.own_account_changed()
    try:
        return AdminAccess(await api.users(), True, created=created, secured=secured, by_admin=True)
    except (NotAuthenticated, PermissionDenied) as error:
        if own_account.password is None:
            problem, remedy = _untrusted(own_account)
        else:
            problem = str(error)
            remedy = (
                f"Set SHIM_NAVIDROME_ADMIN_PASSWORD to the password of {own_account.user_name}."
            )
        return AdminAccess(None, True, problem, remedy, created, secured, by_admin=True)


async def _create(
    api: Navidrome, user_name: str, password: str, records: OwnAccountRecords
) -> None:
    new = NewUser(new_id(), user_name, "navidrome-shim", "", is_admin=True)
    await records.adopt(await api.create(new, password))


async def _secure(api: Navidrome, account: User, password: str, records: OwnAccountRecords) -> None:
    """Give an account that this database did not create a new password, and void its tokens."""
    await api.write(account, {}, password)
    await records.adopt(account.id)


async def _secure_own_access(
    api: Navidrome, own_account: OwnAccount, account: User, records: OwnAccountRecords
) -> None:
    """Do the same as `_secure` for the account that the shim uses. Navidrome requires the current password
    from users who change their own, so a second admin, with a random name, does it and is deleted."""
    assert own_account.act_as is not None
    name = f"{DEFAULT_ADMIN_USERNAME}-{secrets.token_hex(8)}"
    helper = NewUser(new_id(), name, DEFAULT_ADMIN_USERNAME, "", is_admin=True)
    helper_id = await api.create(helper, secrets.token_urlsafe(32))
    other = own_account.act_as(name)
    try:
        await _secure(other, account, own_account.new_password(), records)
    finally:
        await other.close()
        await api.delete(helper_id)


async def _create_first(
    api: Navidrome, own_account: OwnAccount, records: OwnAccountRecords
) -> bool:
    # Before the call: a shim that is killed after it must not treat its own database as a lost one.
    empty = await api.is_empty()
    if empty:
        await records.confirm()
    return await api.create_admin(own_account.user_name, own_account.new_password())


async def _first(
    api: Navidrome, own_account: OwnAccount, records: OwnAccountRecords
) -> AdminAccess:
    """Return the result for a server that was empty and now has the shim's account."""
    try:
        users = await api.users()
    except (NotAuthenticated, PermissionDenied):
        await records.confirm()
        error, remedy = _untrusted(own_account)
        return AdminAccess(None, True, error, remedy, (own_account.user_name,))
    account = own_account_of(users, own_account.user_name)
    if account is not None:
        await records.adopt(account.id)
    return AdminAccess(users, True, created=(own_account.user_name,))


async def _unknown(api: Navidrome, own_account: OwnAccount, error_text: str) -> AdminAccess:
    """Return the result for a server that has users but does not accept the shim's credentials."""
    if own_account.bootstrap is not None:
        return await _no_bootstrap_user(api, own_account, own_account.bootstrap, error_text)
    if own_account.password is not None:
        return AdminAccess(
            None,
            True,
            error_text,
            "Set SHIM_NAVIDROME_ADMIN_USERNAME and SHIM_NAVIDROME_ADMIN_PASSWORD to those of a Navidrome "
            "admin.",
        )
    if await api.header_trust(own_account.user_name) is HeaderTrust.UNTRUSTED:
        error, remedy = _untrusted(own_account)
        return AdminAccess(None, True, error, remedy)
    return AdminAccess(
        None,
        True,
        f"Navidrome has users, and none of them is {own_account.user_name}",
        "Set SHIM_BOOTSTRAP_ADMIN to the name of an existing Navidrome admin and start the shim again: it "
        f"creates {own_account.user_name} as that admin, once. No password is needed.",
    )


def _no_admin(own_account: OwnAccount) -> AdminAccess:
    return AdminAccess(
        None,
        True,
        f"{own_account.user_name} is not an admin in Navidrome",
        "Set SHIM_BOOTSTRAP_ADMIN to the name of an existing Navidrome admin and start the shim again; or "
        f"in Navidrome, as an admin, open Settings → Users → {own_account.user_name} and switch Is Admin on.",
    )


def _untrusted(own_account: OwnAccount) -> tuple[str, str]:
    remedy = (
        f"Set Navidrome's ND_EXTAUTH_TRUSTEDSOURCES to the shim's address as a CIDR ({_EXAMPLE}), and "
        f"ND_EXTAUTH_USERHEADER to {own_account.user_header}; then restart Navidrome."
    )
    return f"Navidrome does not accept {own_account.user_header} from the shim", remedy
