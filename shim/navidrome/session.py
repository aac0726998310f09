"""Authenticate the shim's calls: with the user header, or with the token of a login.

Each response renews the token. A rejected token is replaced by one new login. Logins run one at a time, and
after a rejected one the next waits, because Navidrome limits them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from shim.navidrome.errors import NotAuthenticated, Unavailable
from shim.navidrome.transport import Response, Transport, body_excerpt

TOKEN_HEADER = "X-ND-Authorization"
# Navidrome's AuthWindowLength.
_LOGIN_PAUSE = 20.0


class Session(Protocol):
    """How calls are authenticated."""

    async def headers(self) -> Mapping[str, str | bytes]:
        """Return the headers of the next call. Raises `NavidromeError` if there are none."""

    def on_response(self, response: Response) -> None:
        """Report the response of a call."""

    def on_unauthorized(self) -> bool:
        """Report a 401. Return whether a retry makes sense."""

    def account_created(self) -> None:
        """Report that the account was just created, so that a rejected login may succeed now."""


class HeaderSession:
    """Authenticates as `user_name` with the user header. Navidrome must trust the shim's address."""

    def __init__(self, header: str, user_name: str) -> None:
        self._headers = {header: user_name.encode()}

    async def headers(self) -> Mapping[str, str | bytes]:
        return self._headers

    def on_response(self, response: Response) -> None:
        """Do nothing."""

    def on_unauthorized(self) -> bool:
        return False

    def account_created(self) -> None:
        """Do nothing."""


class LoginSession:
    """Logs in as `user_name`. Reads the password when it is needed."""

    def __init__(self, transport: Transport, user_name: str, password: Callable[[], str]) -> None:
        self._transport = transport
        self._user_name = user_name
        self._password = password
        self._token: str | None = None
        self._login = asyncio.Lock()
        self._not_before = 0.0
        self._login_error = ""

    async def headers(self) -> Mapping[str, str | bytes]:
        async with self._login:
            token = self._token
            if token is None:
                token = self._token = await self._log_in()
        return {TOKEN_HEADER: f"Bearer {token}"}

    def on_response(self, response: Response) -> None:
        renewed = response.headers.get(TOKEN_HEADER)
        if renewed and self._token is not None:
            self._token = renewed

    def on_unauthorized(self) -> bool:
        self._token = None
        return True

    def account_created(self) -> None:
        self._not_before = 0.0

    async def _log_in(self) -> str:
        now = asyncio.get_running_loop().time()
        if now < self._not_before:
            raise Unavailable(self._login_error, retry_after=self._not_before - now, sent=False)
        response = await self._transport.send(
            "POST",
            "/auth/login",
            body={"username": self._user_name, "password": self._password()},
        )
        if response.status == 200:
            return read_token(response)
        self._not_before = now + _pause(response)
        if response.status == 429:
            self._login_error = "Navidrome accepts no more logins for now (its AuthRequestLimit)"
            raise Unavailable(self._login_error, retry_after=_pause(response), sent=False)
        self._login_error = f"the login as {self._user_name} failed: {body_excerpt(response.body)}"
        raise NotAuthenticated(self._login_error, response.status)


def read_token(response: Response) -> str:
    """Return the token in a login response. Raises `Unavailable` without one."""
    found = response.data
    token = found.get("token") if isinstance(found, dict) else None
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
        raise Unavailable("the response to the login has no token")
    return token


def _pause(response: Response) -> float:
    retry_after = response.headers.get("Retry-After", "")
    return float(retry_after) if retry_after.isdigit() and len(retry_after) < 5 else _LOGIN_PAUSE
