"""Where the shim stands with Navidrome: whether it may look after accounts, and what to do where not.

An empty server gets its first admin here, the shim's own, so that no visitor becomes it by chance. Nothing
is remembered: who asks keeps the answer as long as it holds.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from shim.navidrome.api import Navidrome, Standing, generated_password
from shim.navidrome.errors import NotAuthenticated, PermissionDenied
from shim.navidrome.models import NewUser, User
from shim.provisioning.writer import new_id
from shim.reserved import OWN_NAME
from shim.trust.names import fold_name

_EXAMPLE = "172.20.0.5/32; @ on a Unix socket"


@dataclass(frozen=True, slots=True)
class Footing:
    """`users`: every user of the server, None where they can't be had. `peopled`: the server is known to
    have users, so no visitor becomes its first admin. Where `users` is None, `problem` says why and
    `remedy` what to do. `made`: accounts that were made for the shim just now."""

    users: tuple[User, ...] | None
    peopled: bool
    problem: str = ""
    remedy: str = ""
    made: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OwnAccount:
    """The account that the shim acts as. `password` is None where it acts by `user_header`."""

    user_name: str
    user_header: str
    password: Callable[[], str] | None = None


async def find_footing(api: Navidrome, own: OwnAccount, *, creates: bool = True) -> Footing:
    """Find out, and make the shim's account where the server is empty; with `creates` false nothing is
    made. Raises `Unavailable` where Navidrome can't be asked."""
    try:
        return await _own_account_beside(api, own, await api.users(), creates=creates)
    except NotAuthenticated as error:
        said = str(error)
    except PermissionDenied:
        return _no_admin(own)
    if not creates:
        empty = await api.is_empty()
        if empty:
            return Footing(
                None,
                False,
                "Navidrome has no users yet",
                f"Start the shim: it makes the first admin, {own.user_name}, by itself.",
            )
        return await _unknown(api, own, said)
    # Without a password of its own it gets one that is kept nowhere.
    password = own.password() if own.password is not None else secrets.token_urlsafe(32)
    if await api.create_admin(own.user_name, password):
        return await _first(api, own)
    return await _unknown(api, own, said)


async def _first(api: Navidrome, own: OwnAccount) -> Footing:
    """The server was empty, and has the shim's account now."""
    try:
        users = await api.users()
    except (NotAuthenticated, PermissionDenied):
        problem, remedy = _untrusted(own)
        return Footing(None, True, problem, remedy, (own.user_name,))
    return Footing(users, True, made=(own.user_name,))


async def _own_account_beside(
    api: Navidrome, own: OwnAccount, users: tuple[User, ...], *, creates: bool
) -> Footing:
    """With the password of another admin the shim makes an account of its own beside it."""
    names = {fold_name(user.user_name) for user in users}
    if not creates or own.password is None or OWN_NAME in names:
        return Footing(users, True)
    new = NewUser(new_id(), OWN_NAME, "navidrome-shim", "", is_admin=True)
    await api.create(new, generated_password())
    return Footing(await api.users(), True, made=(OWN_NAME,))


async def _unknown(api: Navidrome, own: OwnAccount, said: str) -> Footing:
    """The server has users, and does not take the shim for one of them."""
    if own.password is not None:
        return Footing(
            None,
            True,
            said,
            "Set SHIM_NAVIDROME_ADMIN_USERNAME and SHIM_NAVIDROME_ADMIN_PASSWORD to those of a Navidrome "
            "admin.",
        )
    if await api.standing(own.user_name) is Standing.UNTRUSTED:
        problem, remedy = _untrusted(own)
        return Footing(None, True, problem, remedy)
    return Footing(
        None,
        True,
        f"Navidrome has users, and none of them is {own.user_name}",
        f"In Navidrome, as an admin, open Settings → Users → Create, make the user {own.user_name} with "
        "any long password and Is Admin on; or set SHIM_NAVIDROME_ADMIN_USERNAME and "
        "SHIM_NAVIDROME_ADMIN_PASSWORD to those of an admin that exists, once.",
    )


def _no_admin(own: OwnAccount) -> Footing:
    return Footing(
        None,
        True,
        f"{own.user_name} is no admin in Navidrome",
        f"In Navidrome, as an admin, open Settings → Users → {own.user_name} and switch Is Admin on.",
    )


def _untrusted(own: OwnAccount) -> tuple[str, str]:
    remedy = (
        f"Set Navidrome's ND_EXTAUTH_TRUSTEDSOURCES to the shim's address as a CIDR ({_EXAMPLE}), and "
        f"ND_EXTAUTH_USERHEADER to {own.user_header}; then start Navidrome again."
    )
    return f"Navidrome does not take {own.user_header} from the shim", remedy
