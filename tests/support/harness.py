"""A test harness: a Navidrome, a shim's accounts on it, and calls to both."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from shim.audit.events import Event, Operator
from shim.provisioning.admin import OwnAccountRecords
from shim.provisioning.factory import AccountParts, build_accounts
from shim.provisioning.service import STORE_STOP_SECONDS
from shim.proxy.gate import Account, AccountDenied, RequestInfo
from shim.settings import load
from shim.store.database import Database
from shim.trust.identity import Identity
from shim.trust.reasons import Reason
from tests.support.navidrome_servers import ADMIN, Server, StandInServer, build_client

E = TypeVar("E", bound=Event)
REQUEST_INFO = RequestInfo("192.0.2.9", "r-1")
OPERATOR = Operator("command:root", "command")
VERIFIED = RequestInfo("192.0.2.9", "r-1", verified=True)

# Time limits that a loaded machine does not reach, for tests with many requests.
LONG_TIMEOUTS = {"PROVISIONING_TIMEOUT": "3600", "NAVIDROME_TIMEOUT": "3600"}


def person(
    name: str,
    *groups: str,
    uid: str = "",
    display: str | None = None,
    email: str | None = None,
) -> Identity:
    """An identity as the provider gives it; its uid is derived from the name by default."""
    return Identity(name, display, email, groups, uid or f"uid-of-{name.lower()}")


@dataclass(frozen=True, slots=True)
class Token:
    """A token of Navidrome's own, and its claims `sub`, `uid` and `iat`."""

    text: str
    username: str
    user_id: str
    issued_at: int


class Harness:
    """One server, one store, and the gates that were started over them, one after the other."""

    def __init__(self, server: Server, folder: Path, database_url: str = "") -> None:
        """Without `database_url` the store is a file in the folder."""
        self.server = server
        self.database_url = database_url or f"sqlite:///{folder}/shim.db"
        self.events: list[Event] = []
        self.accounts: AccountParts
        self.folder = folder
        self._client = build_client(server.upstream)
        self._running: AccountParts | None = None
        self._database: Database
        self._settings: dict[str, str] = {}
        self._owner = ""

    # the shim

    async def start(self, **settings: str) -> AccountParts:
        """Start the shim's accounts, with these settings, their prefix left out."""
        self.use(**settings)
        loaded = load(self.environment())
        self._database = Database(self.database_url)
        self.accounts = self._running = build_accounts(loaded, self.events.append, self._database)
        bindings = self.accounts.service.bindings
        bindings.owner = self._owner or bindings.owner
        await self.accounts.gate.start()
        return self.accounts

    def use(self, **settings: str) -> None:
        """Use these settings from now on, if there are any."""
        self._settings = settings or self._settings

    def environment(self) -> dict[str, str]:
        """The shim's settings as environment variables."""
        settings = {
            "UPSTREAM": self.server.upstream,
            "DATABASE_URL": self.database_url,
            "REVERSE_PROXY_WHITELIST": "127.0.0.1",
            "PROVISIONING_TIMEOUT": "20",
            **self._settings,
        }
        return {f"SHIM_{name}": value for name, value in settings.items()}

    async def stop(self) -> None:
        """Stop it; the store and the server stay as they are."""
        running, self._running = self._running, None
        if running is not None:
            await running.gate.stop()
            await asyncio.to_thread(self._database.close, STORE_STOP_SECONDS)

    async def restart(self, **settings: str) -> AccountParts:
        await self.stop()
        return await self.start(**settings)

    @asynccontextmanager
    async def replica(self) -> AsyncIterator[Harness]:
        """Another shim with the same server and store, as if on another machine."""
        other = Harness(self.server, self.folder, self.database_url)
        other._owner = "elsewhere/1/replica"
        other.use(**self._settings)
        try:
            await other.start()
            yield other
        finally:
            await other.disconnect()

    async def disconnect(self) -> None:
        """Stop it, and close the client of the server, which keeps running."""
        await self.stop()
        await self._client.aclose()

    async def close(self) -> None:
        await self.disconnect()
        await self.server.stop()

    async def confirm_new(self) -> None:
        """Do what `database confirm-new` does."""
        database = Database(self.database_url)
        await database.open_async()
        await OwnAccountRecords(database).confirm()
        database.close()

    # requests

    async def request(
        self, identity: Identity, request_info: RequestInfo = REQUEST_INFO
    ) -> str | AccountDenied:
        """The result of a request of this identity: the account's name, or the refusal."""
        gate = self.accounts.gate
        response = gate.known(identity) or await gate.ensure(identity, request_info)
        return response.user_name.decode() if isinstance(response, Account) else response

    async def reason(
        self, identity: Identity, request_info: RequestInfo = REQUEST_INFO
    ) -> Reason | str:
        """The reason of the refusal, or the account's name."""
        response = await self.request(identity, request_info)
        return response.reason if isinstance(response, AccountDenied) else response

    def recorded(self, kind: type[E]) -> list[E]:
        """The events of one kind, so far."""
        return [event for event in self.events if isinstance(event, kind)]

    # the server

    async def users(self) -> dict[str, dict[str, Any]]:
        """Every user of the server except the shim's, by name."""
        response = await self.call("GET", "/api/user")
        return {user["userName"]: user for user in response if user["userName"] != ADMIN}

    async def users_as(self, admin: str) -> dict[str, dict[str, Any]]:
        """Every user of the server, as this admin sees them."""
        response = await self.call("GET", "/api/user", user=admin)
        return {user["userName"]: user for user in response}

    async def create_first(self, name: str = ADMIN, password: str = "pw") -> None:
        """Make the first admin of an empty server."""
        first = {"username": name, "password": password}
        response = await self._client.post("/auth/createAdmin", json=first)
        assert response.status_code == 200, response.text

    async def user(self, name: str) -> dict[str, Any]:
        return (await self.users())[name]

    async def create(self, name: str, password: str = "pw", /, **fields: object) -> str:
        """Make a user by hand."""
        body = {"userName": name, "name": name, "password": password, **fields}
        created: dict[str, str] = await self.call("POST", "/api/user", body)
        return created["id"]

    async def change(self, name: str, /, **fields: object) -> None:
        """Change a user by hand."""
        user = await self.user(name)
        await self.call("PUT", f"/api/user/{user['id']}", {**user, **fields})

    async def delete(self, name: str) -> None:
        """Delete a user by hand."""
        await self.call("DELETE", f"/api/user/{(await self.user(name))['id']}")

    async def call(self, method: str, path: str, body: object = None, user: str = ADMIN) -> Any:
        """An API call, by header."""
        response = await self._client.request(
            method, path, json=body, headers={"Remote-User": user}
        )
        assert response.status_code == 200, (response.status_code, response.text)
        return response.json()

    async def accepts_password(self, name: str, password: str) -> bool:
        """Whether a Subsonic token of that password is accepted."""
        digest = hashlib.md5(f"{password}salt".encode()).hexdigest()
        query: Mapping[str, str] = {
            "v": "1.16.1",
            "c": "x",
            "f": "json",
            "u": name,
            "t": digest,
            "s": "salt",
        }
        response = await self._client.get("/rest/ping", params=query)
        return bool(response.json()["subsonic-response"]["status"] == "ok")

    async def login(self, name: str, password: str) -> Token:
        """A token of Navidrome's own, for its user's password."""
        body = {"username": name, "password": password}
        response = await self._client.post("/auth/login", json=body)
        assert response.status_code == 200, response.text
        text = response.json()["token"]
        claims = json.loads(base64.urlsafe_b64decode(text.split(".")[1] + "=="))
        return Token(text, claims["sub"], claims["uid"], claims["iat"])

    async def call_with(self, token: Token, method: str, path: str, body: object = None) -> int:
        """The status of a call with a token of Navidrome's own and no user header."""
        headers = {"X-ND-Authorization": f"Bearer {token.text}"}
        response = await self._client.request(method, path, json=body, headers=headers)
        return response.status_code

    def accepts_token(self, token: Token) -> bool:
        """Whether the shim lets this token through."""
        gate = self.accounts.gate
        return gate.navidrome_token_valid(token.username, token.user_id, token.issued_at)

    async def page(self, user: str | None) -> str:
        """The web app's page, which logs its user in."""
        headers = {} if user is None else {"Remote-User": user}
        return (await self._client.get("/app/", headers=headers)).text

    @property
    def stand_in(self) -> StandInServer:
        assert isinstance(self.server, StandInServer)
        return self.server


async def until(holds: Callable[[], bool], within: float = 10.0) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(within):
        while not holds():  # noqa: ASYNC110 - the condition is arbitrary
            await asyncio.sleep(0.01)
