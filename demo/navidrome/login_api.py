"""`/auth/login` and `/auth/createAdmin`, and the login data that pages carry too."""

from __future__ import annotations

import hashlib
import secrets

from demo.navidrome.accounts import Account, AccountFields
from demo.navidrome.goform import Json, read_json, time_text
from demo.navidrome.login_limit import claimed_address
from demo.navidrome.request import Request
from demo.navidrome.responses import Response, json_error, json_response, text_error
from demo.navidrome.state import State


async def login(state: State, request: Request) -> Response:
    """`POST /auth/login`, limited by the client's claimed address."""
    verdict = state.logins.count(claimed_address(request))
    if not verdict.allowed:
        return text_error(429, "Too Many Requests").adding(*verdict.headers)
    credentials = await _credentials(request)
    if credentials is None:
        return json_error(422, "invalid request payload").adding(*verdict.headers)
    return _log_in(state, *credentials).adding(*verdict.headers)


async def create_admin(state: State, request: Request) -> Response:
    """`POST /auth/createAdmin`: works while no account exists, and logs in."""
    credentials = await _credentials(request)
    if credentials is None:
        return json_error(422, "invalid request payload")
    if state.accounts.by_id:
        return json_error(403, "Cannot create another first admin")
    user_name, password = credentials
    state.accounts.put(
        AccountFields(
            user_name=user_name,
            name=user_name.title(),
            is_admin=True,
            last_login_at=time_text(state.clock()),
            password=password,
        )
    )
    return _log_in(state, user_name, password)


def login_data(account: Account) -> dict[str, Json]:
    """The user who was logged in, with a Subsonic token that is valid until the password changes."""
    salt = secrets.token_hex(3)
    return {
        "id": account.id,
        "isAdmin": account.is_admin,
        "name": account.name,
        "subsonicSalt": salt,
        "subsonicToken": subsonic_token(account.password, salt),
        "username": account.user_name,
    }


def subsonic_token(password: str, salt: str) -> str:
    """Subsonic's `t`: the MD5 of password and salt in hexadecimal digits."""
    return hashlib.md5((password + salt).encode(), usedforsecurity=False).hexdigest()


def _log_in(state: State, user_name: str, password: str) -> Response:
    account = state.accounts.find(user_name)
    if account is None or account.password != password:
        return json_error(401, "Invalid username or password")
    state.accounts.log_in(account)
    data = login_data(account)
    data["token"] = state.tokens.issue(account)
    return json_response(data)


async def _credentials(request: Request) -> tuple[str, str] | None:
    # Go decodes into a map of strings: any other type of value fails the whole body.
    try:
        body = read_json(await request.body.read())
    except ValueError:
        return None
    if body is None:
        return "", ""
    if not isinstance(body, dict) or not all(isinstance(v, str | None) for v in body.values()):
        return None
    return body.get("username") or "", body.get("password") or ""
