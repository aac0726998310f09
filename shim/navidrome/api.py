"""Navidrome's API for accounts, with one method per call.

A method returns the result or raises a `NavidromeError` with Navidrome's message. Only calls that are safe to
repeat are retried, and a write sets every column of the record.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from email.utils import parsedate_to_datetime
from enum import StrEnum
from urllib.parse import quote, urlencode

from shim.navidrome.errors import (
    ApiError,
    NameTaken,
    NotAuthenticated,
    PermissionDenied,
    ResponseTooLarge,
    Unavailable,
)
from shim.navidrome.models import (
    ExternalAuthentication,
    Library,
    NewUser,
    User,
    read_external_authentication,
    read_library,
    read_user,
)
from shim.navidrome.pages import UserPages
from shim.navidrome.session import HeaderSession, Session
from shim.navidrome.transport import Response, Transport, body_excerpt

# Prefix of a password that its owner did not choose: the web app lets the owner replace it without knowing
# it.
AUTOGEN = "__NAVIDROME_AUTOGEN__"
_READ_TRIES = 3
_LIST_TRIES = 2
_READ_PAUSE = 0.1
_READ_SECONDS = 1.0
_CLIENT = {"v": "1.16.1", "c": "navidrome-shim", "f": "json"}


class HeaderTrust(StrEnum):
    """Whether Navidrome trusts the user header when the shim sends it."""

    KNOWN = "known"
    UNKNOWN_USER = "unknown_user"
    UNTRUSTED = "untrusted"


def generated_password() -> str:
    """Return a random password of 256 bits, marked as not chosen by the owner, who may set another one
    without knowing it."""
    return AUTOGEN + locking_password()


def locking_password() -> str:
    """Return a random password that cannot be replaced without knowing it."""
    return secrets.token_urlsafe(32)


class Navidrome:
    """The API of one server, authenticated by `session`. `user_header` is Navidrome's setting."""

    def __init__(self, transport: Transport, session: Session, user_header: str) -> None:
        self._transport = transport
        self._session = session
        self._user_header = user_header
        # Number of records in the last list that were too large.
        self.unreadable = 0

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.close()

    async def users(self) -> tuple[User, ...]:
        """Return every user whose record can be read, in pages, and set `unreadable`.

        A user who is created or deleted meanwhile may be missing; all others are returned. Raises
        `Unavailable` if the pages are inconsistent twice.
        """
        for _ in range(_LIST_TRIES):
            pages = UserPages()
            while (page_range := pages.next_range()) is not None:
                query = {
                    "_sort": "id",
                    "_order": "ASC",
                    "_start": page_range[0],
                    "_end": page_range[1],
                }
                try:
                    response = await self._read(f"/api/user?{urlencode(query)}")
                except ResponseTooLarge:
                    pages.too_large()
                    continue
                total = response.headers.get("X-Total-Count", "")
                pages.read(response.data, int(total) if total.isdigit() else None)
            if pages.fault is None:
                self.unreadable = pages.unreadable
                return pages.users
        raise Unavailable(f"GET /api/user: {pages.fault}")

    async def user(self, user_id: str) -> User | None:
        """Return the user with this id, or None. Raises `ResponseTooLarge` if the record cannot be read."""
        try:
            response = await self._read(f"/api/user/{quote(user_id, safe='')}", missing=True)
        except ResponseTooLarge as error:
            raise ResponseTooLarge(
                f"{error}: the account's name, display name or e-mail is too long; shorten it in Navidrome, "
                "as an admin, or delete the account"
            ) from None
        return None if response.status == 404 else read_user(response.data)

    async def create(self, new: NewUser, password: str) -> str:
        """Create a user and return its id. Raises `NameTaken` if another user has the name."""
        response = await self._call(
            "POST",
            "/api/user",
            body={
                "id": new.id,
                "userName": new.user_name,
                "name": new.name,
                "email": new.email,
                "isAdmin": new.is_admin,
                "password": password,
            },
        )
        created = response.data
        created_id = created.get("id") if isinstance(created, dict) else None
        if not isinstance(created_id, str) or not created_id:
            raise Unavailable("POST /api/user: the response has no id")
        return created_id

    async def write(
        self, user: User, changes: Mapping[str, object], password: str | None = None
    ) -> User:
        """Write a user's record with these changes, and return it. Its `read_at` is the time of the write.

        Navidrome recreates a deleted record with an empty password, so the caller must check the result
        (`opens_without_password`). Raises `NameTaken` if another user has the new name.
        """
        body: dict[str, object] = {**user.record, **changes}
        if not body.get("userName"):
            raise ValueError("a user without a name is never written")
        if password is not None:
            body["password"] = password
        response = await self._call("PUT", f"/api/user/{quote(user.id, safe='')}", body=body)
        return replace(read_user(response.data), read_at=_date(response))

    async def delete(self, user_id: str) -> None:
        """Delete a user. A user that does not exist is not an error."""
        await self._call("DELETE", f"/api/user/{quote(user_id, safe='')}")

    async def libraries(self) -> tuple[Library, ...]:
        """Return every music library."""
        listed = (await self._read("/api/library")).data
        if not isinstance(listed, list):
            raise Unavailable("GET /api/library: the response is not a list")
        return tuple(read_library(each) for each in listed)

    async def set_libraries(self, user_id: str, libraries: Iterable[int]) -> None:
        """Set the libraries of a regular user, at least one."""
        await self._call(
            "PUT",
            f"/api/user/{quote(user_id, safe='')}/library",
            body={"libraryIds": sorted(libraries)},
        )

    async def create_admin(self, user_name: str, password: str) -> bool:
        """Create the first user, an admin. Return False if the server already has users."""
        response = await self._transport.send(
            "POST", "/auth/createAdmin", body={"username": user_name, "password": password}
        )
        if response.status == 403:
            return False
        if response.status != 200:
            raise _error_for("POST /auth/createAdmin", response)
        if not isinstance(response.data, dict):
            raise Unavailable("POST /auth/createAdmin: the response is not an account")
        self._session.account_created()
        return True

    def own_account_changed(self) -> None:
        """Report that the session's account was created or changed: a rejected login may succeed now."""
        self._session.account_created()

    async def opens_without_password(self, user_name: str) -> bool:
        """Return whether an empty password opens this account (a Subsonic ping without other credentials)."""
        salt = secrets.token_hex(8)
        token = hashlib.md5(salt.encode(), usedforsecurity=False).hexdigest()
        opened, _ = await _ping(self._transport, {"u": user_name, "t": token, "s": salt}, {})
        return opened

    async def header_trust(self, user_name: str) -> HeaderTrust:
        """Return whether Navidrome trusts the user header with this name."""
        opened, code = await _ping(self._transport, {}, {self._user_header: user_name.encode()})
        if opened:
            return HeaderTrust.KNOWN
        # 10: a parameter is missing, so the header was not read. 40: wrong user name.
        return HeaderTrust.UNTRUSTED if code == 10 else HeaderTrust.UNKNOWN_USER

    async def external_authentication(self) -> ExternalAuthentication | None:
        """Return Navidrome's settings for external authentication; None if it does not show its
        configuration (`DevUIShowConfig=false`)."""
        response = await self._call("GET", "/api/config/config", missing=True)
        if response.status == 404:
            return None
        by_header = isinstance(self._session, HeaderSession)
        return read_external_authentication(response.data, read_by_header=by_header)

    async def is_empty(self) -> bool | None:
        """Return whether the server has no users, as its web app shows; None if it does not show it."""
        return await is_empty(self._transport)

    async def _read(self, path: str, *, missing: bool = False) -> Response:
        """Send a GET, and retry if Navidrome is away for a moment and reports that at once."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _READ_SECONDS
        for number in range(1, _READ_TRIES + 1):
            try:
                return await self._call("GET", path, missing=missing)
            except Unavailable:
                last = number == _READ_TRIES or loop.time() > deadline
                if last or self._transport.breaker.is_open:
                    raise
                await asyncio.sleep(_READ_PAUSE * number)
        raise AssertionError("unreachable")

    async def _call(
        self, method: str, path: str, *, body: object = None, missing: bool = False
    ) -> Response:
        """Send an API call. With `missing`, 404 is a valid response. A 401 is retried once if the session has
        other credentials."""
        response = await self._send(method, path, body)
        if response.status == 401 and self._session.on_unauthorized():
            response = await self._send(method, path, body)
        if response.status == 200 or (missing and response.status == 404):
            return response
        raise _error_for(f"{method} {path}", response)

    async def _send(self, method: str, path: str, body: object) -> Response:
        headers = await self._session.headers()
        response = await self._transport.send(method, path, headers=headers, body=body)
        if response.status < 400:
            self._session.on_response(response)
        return response


def _date(response: Response) -> float:
    """Return the response's `Date` in seconds since the epoch, or this machine's time without one."""
    try:
        return parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return math.ceil(time.time())


def _error_for(call: str, response: Response) -> ApiError | Unavailable:
    """Return the exception for an unexpected response."""
    message = f"{call}: Navidrome returned {response.status}: {body_excerpt(response.body)}"
    match response.status:
        case 401:
            return NotAuthenticated(message, 401)
        case 403:
            return PermissionDenied(message, 403)
        case 400 if b"ra.validation.unique" in response.body:
            return NameTaken(message, 400)
        case 429:
            return Unavailable(message, retry_after=20.0, sent=False)
        case status if 400 <= status < 500:
            return ApiError(message, status)
    return Unavailable(message)


async def obeys(transport: Transport, *headers: str) -> bool:
    """Return whether Navidrome reads the user name from one of these headers when the shim sends it.

    Sends a Subsonic ping with a random user name in each of them. Error 40 (wrong user name) means that the
    name was read, error 10 (parameter `u` is missing) that it was not. No account is created. Raises
    `Unavailable` for any other response.
    """
    name = f"navidrome-shim-probe-{secrets.token_hex(8)}".encode()
    _, code = await _ping(transport, {}, dict.fromkeys(headers, name))
    if code not in (10, 40):
        raise Unavailable(
            f"GET /rest/ping: error {code} does not show whether Navidrome obeys the header"
        )
    return code == 40


async def is_empty(transport: Transport) -> bool | None:
    """Return whether the server has no users, as its web app shows; None if it does not show it."""
    response = await transport.send("GET", "/app/", page=True)
    if b"firstTime" not in response.body:
        return None
    plain = response.body.replace(b"\\", b"").replace(b" ", b"")
    return b'"firstTime":true' in plain


async def _ping(
    transport: Transport, query: Mapping[str, str], headers: Mapping[str, bytes]
) -> tuple[bool, int | None]:
    """Send a Subsonic ping; return whether it succeeded, and the error's code."""
    response = await transport.send(
        "GET", "/rest/ping", query={**_CLIENT, **query}, headers=headers
    )
    found = response.data
    inner = found.get("subsonic-response") if isinstance(found, dict) else None
    if not isinstance(inner, dict) or inner.get("status") not in ("ok", "failed"):
        raise Unavailable("GET /rest/ping: the response is not a Subsonic response")
    error = inner.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return inner["status"] == "ok", code if isinstance(code, int) else None
