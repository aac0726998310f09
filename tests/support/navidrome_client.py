"""A client of a Navidrome, real or stand-in, that separates users by their source address."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

EDGE = "127.0.0.2"
UNTRUSTED = "127.0.0.1"
ADMIN = "navidrome-shim"
ADMIN_PASSWORD = "s3cret-one"


@dataclass(frozen=True, slots=True)
class Reply:
    """A response, its header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class NavidromeClient:
    """Sends requests to one server on 127.0.0.1, as the edge does: from a trusted address, with the
    user header.
    """

    port: int
    _names: count[int] = field(default_factory=count)

    def request(
        self,
        method: str,
        target: str,
        user: str | None = ADMIN,
        *,
        headers: Mapping[str, str] | None = None,
        body: object = None,
        source: str = EDGE,
    ) -> Reply:
        """Send one request; a body that is not a string is sent as JSON."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=10, source_address=(source, 0)
        )
        sent = dict(headers or {})
        if user is not None:
            sent["Remote-User"] = user
        content = body if isinstance(body, str | None) else json.dumps(body)
        try:
            connection.request(method, target, content, sent)
            response = connection.getresponse()
            named = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, named, response.read())
        finally:
            connection.close()

    def new_name(self) -> str:
        """A name that no account has."""
        return f"user{next(self._names)}"

    def create(self, user_name: str, /, **fields: object) -> str:
        """Create an account with the password `pw`; returns its id."""
        created = self.request(
            "POST",
            "/api/user",
            body={"userName": user_name, "name": user_name, "password": "pw", **fields},
        )
        assert created.status == 200, created.body
        account_id: str = created.json()["id"]
        return account_id

    def read(self, account_id: str) -> Any:
        return self.request("GET", f"/api/user/{account_id}").json()

    def token(self, name: str, password: str = "pw") -> str:
        """Log in, from an address that no other login uses."""
        claimed = f"10.1.{next(self._names) % 250}.7"
        reply = self.request(
            "POST",
            "/auth/login",
            None,
            headers={"X-Real-IP": claimed},
            body={"username": name, "password": password},
        )
        assert reply.status == 200, reply.body
        token: str = reply.json()["token"]
        return token

    def subsonic_opens(self, name: str, password: str) -> bool:
        """Return whether a Subsonic token of that password is accepted."""
        digest = hashlib.md5(f"{password}abc".encode()).hexdigest()
        reply = self.request("GET", f"/rest/ping?v=1&c=x&f=json&u={name}&t={digest}&s=abc", None)
        return bool(reply.json()["subsonic-response"]["status"] == "ok")
