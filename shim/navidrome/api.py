"""Navidrome's API as far as accounts need it: one method for each call.

A method gives what was asked for or raises a `NavidromeError` that says what Navidrome said. Only what
can be repeated without harm is tried again, and a write says every column of the record.
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
from urllib.parse import quote

from shim.navidrome.errors import (
    NameTaken,
    NotAuthenticated,
    PermissionDenied,
    Refused,
    Unavailable,
)
from shim.navidrome.models import Library, NewUser, User, read_library, read_user
from shim.navidrome.session import Session
from shim.navidrome.transport import Answer, Transport, said

# Begins a password that its owner never chose: the web app lets him set one without knowing it.
AUTOGEN = "__NAVIDROME_AUTOGEN__"
_READ_TRIES = 3
_READ_PAUSE = 0.1
_READ_SECONDS = 1.0
_CLIENT = {"v": "1.16.1", "c": "navidrome-shim", "f": "json"}


class Standing(StrEnum):
    """What the user header is worth at Navidrome when the shim sends it."""

    KNOWN = "known"
    UNKNOWN_USER = "unknown_user"
    UNTRUSTED = "untrusted"


def generated_password() -> str:
    """A password that nobody knows: 256 random bits, marked as not chosen by the owner, who may set another
    one without knowing it."""
    return AUTOGEN + locking_password()


def locking_password() -> str:
    """Return a password that nobody knows, and that can't be replaced without knowing it."""
    return secrets.token_urlsafe(32)


class Navidrome:
    """The API of one server, spoken to as `session` says. `user_header` is Navidrome's setting."""

    def __init__(self, transport: Transport, session: Session, user_header: str) -> None:
        self._transport = transport
        self._session = session
        self._user_header = user_header

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.close()

    async def users(self) -> tuple[User, ...]:
        """Every user. Raises `Unavailable` where the list is not whole."""
        answer = await self._read("/api/user")
        listed = answer.data
        if not isinstance(listed, list):
            raise Unavailable("GET /api/user: Navidrome answered with something that is no list")
        total = answer.headers.get("X-Total-Count")
        if total is not None and total != str(len(listed)):
            raise Unavailable(f"GET /api/user: {len(listed)} users of {total} came back")
        return tuple(read_user(each) for each in listed)

    async def user(self, user_id: str) -> User | None:
        """The user with this id, None where there is none."""
        answer = await self._read(f"/api/user/{quote(user_id, safe='')}", missing=True)
        return None if answer.status == 404 else read_user(answer.data)

    async def create(self, new: NewUser, password: str) -> str:
        """Make a user, and give its id. Raises `NameTaken` where another one has the name."""
        answer = await self._call(
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
        made = answer.data
        made_id = made.get("id") if isinstance(made, dict) else None
        if not isinstance(made_id, str) or not made_id:
            raise Unavailable("POST /api/user: Navidrome answered without an id")
        return made_id

    async def write(
        self, user: User, changes: Mapping[str, object], password: str | None = None
    ) -> User:
        """Write a user's record back with these changes, and give it as it is now: its `read_at` is when it
        was written.

        A record that is gone would be made anew, with an empty password: whoever calls this has to see
        to it (`opens_without_password`). Raises `NameTaken` where another user has the new name.
        """
        body: dict[str, object] = {**user.record, **changes}
        if not body.get("userName"):
            raise ValueError("a user without a name is never written")
        if password is not None:
            body["password"] = password
        answer = await self._call("PUT", f"/api/user/{quote(user.id, safe='')}", body=body)
        return replace(read_user(answer.data), read_at=_date(answer))

    async def delete(self, user_id: str) -> None:
        """Delete a user; one who is gone is no error."""
        await self._call("DELETE", f"/api/user/{quote(user_id, safe='')}")

    async def libraries(self) -> tuple[Library, ...]:
        """Every music library."""
        listed = (await self._read("/api/library")).data
        if not isinstance(listed, list):
            raise Unavailable("GET /api/library: Navidrome answered with something that is no list")
        return tuple(read_library(each) for each in listed)

    async def set_libraries(self, user_id: str, libraries: Iterable[int]) -> None:
        """Give a regular user these libraries, at least one, and no other."""
        await self._call(
            "PUT",
            f"/api/user/{quote(user_id, safe='')}/library",
            body={"libraryIds": sorted(libraries)},
        )

    async def create_admin(self, user_name: str, password: str) -> bool:
        """Make the first user, an admin. False where the server has users already."""
        answer = await self._transport.send(
            "POST", "/auth/createAdmin", body={"username": user_name, "password": password}
        )
        if answer.status == 403:
            return False
        if answer.status != 200:
            raise _refusal("POST /auth/createAdmin", answer)
        if not isinstance(answer.data, dict):
            raise Unavailable("POST /auth/createAdmin: the answer is no account")
        self._session.made()
        return True

    async def opens_without_password(self, user_name: str) -> bool:
        """Whether an empty password opens this account (a Subsonic ping, with no other credentials)."""
        salt = secrets.token_hex(8)
        token = hashlib.md5(salt.encode(), usedforsecurity=False).hexdigest()
        opened, _ = await self._ping({"u": user_name, "t": token, "s": salt}, {})
        return opened

    async def standing(self, user_name: str) -> Standing:
        """What the user header is worth with this name in it."""
        opened, code = await self._ping({}, {self._user_header: user_name.encode()})
        if opened:
            return Standing.KNOWN
        # 10: a parameter is missing, so the header was not looked at. 40: wrong user name.
        return Standing.UNTRUSTED if code == 10 else Standing.UNKNOWN_USER

    async def is_empty(self) -> bool | None:
        """Whether the server has no users yet, as its web app is told; None where it doesn't say."""
        return await is_empty(self._transport)

    async def _ping(
        self, query: Mapping[str, str], headers: Mapping[str, bytes]
    ) -> tuple[bool, int | None]:
        answer = await self._transport.send(
            "GET", "/rest/ping", query={**_CLIENT, **query}, headers=headers
        )
        found = answer.data
        inner = found.get("subsonic-response") if isinstance(found, dict) else None
        if not isinstance(inner, dict) or inner.get("status") not in ("ok", "failed"):
            raise Unavailable("GET /rest/ping: the answer is no Subsonic answer")
        error = inner.get("error")
        code = error.get("code") if isinstance(error, dict) else None
        return inner["status"] == "ok", code if isinstance(code, int) else None

    async def _read(self, path: str, *, missing: bool = False) -> Answer:
        """GET, tried again where Navidrome is not there for a moment, and says so at once."""
        loop = asyncio.get_running_loop()
        latest = loop.time() + _READ_SECONDS
        for number in range(1, _READ_TRIES + 1):
            try:
                return await self._call("GET", path, missing=missing)
            except Unavailable:
                last = number == _READ_TRIES or loop.time() > latest
                if last or self._transport.breaker.is_open:
                    raise
                await asyncio.sleep(_READ_PAUSE * number)
        raise AssertionError("unreachable")

    async def _call(
        self, method: str, path: str, *, body: object = None, missing: bool = False
    ) -> Answer:
        """An API call; 404 is an answer where `missing` says so. A 401 is tried once more where the
        session has another way."""
        answer = await self._send(method, path, body)
        if answer.status == 401 and self._session.refused():
            answer = await self._send(method, path, body)
        if answer.status == 200 or (missing and answer.status == 404):
            return answer
        raise _refusal(f"{method} {path}", answer)

    async def _send(self, method: str, path: str, body: object) -> Answer:
        headers = await self._session.headers()
        answer = await self._transport.send(method, path, headers=headers, body=body)
        if answer.status < 400:
            self._session.answered(answer)
        return answer


def _date(answer: Answer) -> float:
    """Return the response's `Date` in seconds since the epoch; this machine's time where there is none."""
    try:
        return parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return math.ceil(time.time())


def _refusal(asked: str, answer: Answer) -> Refused | Unavailable:
    """What an answer that is none of the expected comes to."""
    message = f"{asked}: Navidrome answered {answer.status}: {said(answer.body)}"
    match answer.status:
        case 401:
            return NotAuthenticated(message, 401)
        case 403:
            return PermissionDenied(message, 403)
        case 400 if b"ra.validation.unique" in answer.body:
            return NameTaken(message, 400)
        case 429:
            return Unavailable(message, retry_after=20.0, sent=False)
        case status if 400 <= status < 500:
            return Refused(message, status)
    return Unavailable(message)


async def is_empty(transport: Transport) -> bool | None:
    """Whether the server has no users yet, as its web app is told; None where it doesn't say. Raises
    `Unavailable`."""
    answer = await transport.send("GET", "/app/", page=True)
    if b"firstTime" not in answer.body:
        return None
    plain = answer.body.replace(b"\\", b"").replace(b" ", b"")
    return b'"firstTime":true' in plain
