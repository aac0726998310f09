"""One Navidrome, two shims on one database, and actions of users, an administrator and an operator.

Each action uses real sockets, as in production: users send requests through the edge, old
credentials come from an untrusted peer, the administrator uses Navidrome's API through a shim. The
operator's commands and the reload of settings are calls in this process. `test_any_order` states
the invariants.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
from uvicorn.server import ServerState

from demo.navidrome import Fault
from shim.app.factories import build_limits, build_policy, build_upstream_address
from shim.provisioning.operations import OperationError, Operations, operations
from shim.proxy.client_connection import ClientConnection
from shim.proxy.counters import Counters
from shim.proxy.server import DataPlane
from shim.settings import load
from shim.trust.identity import Identity
from shim.trust.names import normalize_name
from tests.support.harness import OPERATOR, Harness
from tests.support.navidrome_servers import ADMIN as OWN_ACCOUNT
from tests.support.navidrome_servers import Server, StandInServer
from tests.support.running_proxy import EDGE, RecordingObserver

UNTRUSTED = "127.0.0.1"
SECRET = "proxy-secret-proxy-secret"
ADMINISTRATOR = "keeper"
PING = {"v": "1.16.1", "c": "model", "f": "json"}
LIBRARIES = ("Family", "Kids")
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Response:
    """The response to a request for the web app. `account_id`, `name` and `admin` are those of the account
    that Navidrome logged in, where the status is 200. `text`: the page of another status."""

    status: int
    account_id: str = ""
    name: str = ""
    admin: bool = False
    text: str = ""


@dataclass(slots=True)
class Credential:
    """A secret that Navidrome issued or accepted for an account: `kind` is `token`, `jellyfin` or
    `password`.

    name: the account's name when it was issued.
    revoked: an event after which it must not work; "" while there was none.
    must_work: it has to work as long as it is not revoked and the account keeps its name.
    """

    kind: str
    account_id: str
    name: str
    secret: str = field(repr=False)
    must_work: bool = False
    revoked: str = ""


@dataclass(slots=True)
class Stream:
    """An event stream that an identity opened. `closed`: the shim or Navidrome ended it."""

    account_id: str
    reader: asyncio.Task[None]
    revoked: str = ""

    @property
    def closed(self) -> bool:
        return self.reader.done()


class RunningShim:
    """Data plane and accounts of one shim, listening on TCP."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.url = ""
        self._plane: DataPlane
        self._listener: asyncio.Server

    async def listen(self) -> None:
        """Serve HTTP for the accounts that `harness` has started."""
        settings = load(self.harness.environment())
        loop = asyncio.get_running_loop()
        plane = DataPlane(
            build_policy(settings),
            build_limits(settings),
            Counters(),
            RecordingObserver(),
            build_upstream_address(settings, None),
            gate=self.harness.accounts.gate,
        )
        state = ServerState()

        def connection() -> ClientConnection:
            return ClientConnection(cast("Any", None), state, {"plane": plane}, loop)

        self._plane = plane
        self._listener = await loop.create_server(connection, UNTRUSTED, 0)
        self.url = "http://{}:{}".format(*self._listener.sockets[0].getsockname())
        plane.start(loop)

    def close(self) -> None:
        """Stop serving; the accounts keep running."""
        self._listener.close()
        for connection in list(self._plane.connections):
            cast("ClientConnection", connection).abort()
        self._plane.stop()

    async def restart(self) -> None:
        """Stop and start with the same settings."""
        self.close()
        await self.harness.restart()
        await self.listen()

    def reload(self, settings: Mapping[str, str]) -> None:
        """Apply these settings, as a reload does."""
        self.harness.use(**settings)
        loaded = load(self.harness.environment())
        self._plane.apply_policy(build_policy(loaded))
        self.harness.accounts.enforce(loaded)


class Simulation:
    """The servers and the actions. `shims`: two shims on one database."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.harness: Harness
        self.shims: tuple[RunningShim, ...] = ()
        self.settings: dict[str, str] = {}
        self._edge = _client(EDGE)
        self._untrusted = _client(UNTRUSTED)
        self._exits = AsyncExitStack()
        self._administrator_token = ""
        self._streams: list[Stream] = []

    # lifecycle

    async def start(self, settings: Mapping[str, str], *, administrator: bool) -> None:
        """Start Navidrome and both shims. With `administrator`, Navidrome has an admin of that role, who
        uses it through the shims; without, its accounts are changed past the shims, which reconcile."""
        await self.server.start()
        self._exits.push_async_callback(self.server.stop)
        self.harness = Harness(self.server, self.folder)
        self.settings = {
            "REVERSE_PROXY_WHITELIST": EDGE,
            "PROXY_SECRET": SECRET,
            "NAVIDROME_TIMEOUT": "5",
            "RECONCILE_SECONDS": "3600",
            **settings,
        }
        await self.harness.start(**self.settings)
        self._exits.push_async_callback(self.harness.disconnect)
        other = await self._exits.enter_async_context(self.harness.replica())
        self.shims = (RunningShim(self.harness), RunningShim(other))
        for shim in self.shims:
            await shim.listen()
        if administrator:
            await self.harness.create(ADMINISTRATOR, "keeper's password", isAdmin=True)
            self._administrator_token = (
                await self._log_in(ADMINISTRATOR, "keeper's password")
            ) or ""
        await self.reconcile()

    async def close(self) -> None:
        for stream in self._streams:
            stream.reader.cancel()
        await asyncio.gather(*(s.reader for s in self._streams), return_exceptions=True)
        await self._edge.aclose()
        await self._untrusted.aclose()
        for shim in self.shims:
            shim.close()
        await self._exits.aclose()

    async def sync_processes(self) -> None:
        """Let the time pass after which a shim has read what another process wrote to the database."""
        for shim in self.shims:
            await shim.harness.accounts.service.announced()
        for shim in self.shims:
            await shim.harness.accounts.service.refresh()

    def break_the_api(self, fault: Fault | None) -> None:
        """Inject a fault from now on, or none; a real Navidrome has no faults."""
        if isinstance(self.server, StandInServer):
            self.server.breaks(fault)

    @contextmanager
    def _without_faults(self) -> Iterator[None]:
        """Faults never affect what the model itself reads from Navidrome."""
        if not isinstance(self.server, StandInServer):
            yield
            return
        fault = self.server.stand_in.fault
        self.server.breaks(None)
        try:
            yield
        finally:
            self.server.breaks(fault)

    async def reconcile(self, shims: Iterable[RunningShim] = ()) -> None:
        """End the fault, and reconcile on these shims, on all where none is named."""
        self.break_the_api(None)
        for shim in shims or self.shims:
            account_service = shim.harness.accounts.service
            account_service.api._transport.breaker.succeeded()
            async with asyncio.timeout(20):
                while await account_service.ensure_ready() is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                await account_service.reconcile()

    async def restart(self) -> None:
        for shim in self.shims:
            await shim.restart()

    async def reload(self, settings: Mapping[str, str]) -> None:
        self.settings |= settings
        for shim in self.shims:
            shim.reload(self.settings)

    # users

    async def visit(self, identity: Identity, shim: int = 0) -> Response:
        """Open the web app with this identity."""
        response = await self._edge.get(
            f"{self.shims[shim].url}/app/", headers=_identity_headers(identity)
        )
        if response.status_code != 200:
            text = re.sub(r"<(title|style).*?</|<[^>]*>", " ", response.text, flags=re.DOTALL)
            return Response(response.status_code, text=" ".join(text.split()))
        if not response.text:  # a Navidrome that was built without its web app
            return await self._account_by_playlist(identity, shim)
        account = _logged_in(response.text)
        return Response(200, account["id"], account["username"], account["isAdmin"])

    async def _account_by_playlist(self, identity: Identity, shim: int) -> Response:
        """Identify the account by a playlist that it creates."""
        url, headers = f"{self.shims[shim].url}/api/playlist", _identity_headers(identity)
        created = await self._edge.post(url, headers=headers, json={"name": f"p{next(_numbers)}"})
        if created.status_code != 200:
            return Response(created.status_code, text=created.text)
        playlist = await _call(self._edge, "GET", f"{url}/{created.json()['id']}", headers)
        account = None if playlist is None else (await self.accounts()).get(playlist["ownerId"])
        if account is None:
            return Response(503, text="the account was changed at the same time")
        return Response(200, account["id"], account["userName"], account["isAdmin"])

    async def set_password(self, identity: Identity, account_id: str, shim: int) -> str | None:
        """Set the user's own password, as the web app does.

        Returns the password, None where it was rejected.
        """
        password = f"own-{next(_numbers)}"
        url = f"{self.shims[shim].url}/api/user/{account_id}"
        headers = _identity_headers(identity)
        record = await _call(self._edge, "GET", url, headers)
        if record is None:
            return None
        changed = await _call(self._edge, "PUT", url, headers, {**record, "password": password})
        return None if changed is None else password

    async def use_huge_name(self, identity: Identity, account_id: str, shim: int) -> None:
        """Set a display name that makes the list of accounts larger than a client can read."""
        body = {"id": account_id, "userName": identity.username, "name": "<" * 11_300_000}
        url = f"{self.shims[shim].url}/api/user/{account_id}"
        # A response before the end of the body may close the connection.
        with contextlib.suppress(httpx.TransportError):
            await self._edge.put(url, headers=_identity_headers(identity), json=body)

    async def open_stream(self, identity: Identity, account_id: str, shim: int) -> Stream | None:
        """Open an event stream; None where it was rejected."""
        opened: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def read() -> None:
            url = f"{self.shims[shim].url}/api/events"
            try:
                async with self._edge.stream(
                    "GET", url, headers=_identity_headers(identity)
                ) as response:
                    opened.set_result(response.status_code)
                    async for _ in response.aiter_bytes():
                        pass
            except httpx.TransportError:
                if not opened.done():
                    opened.set_result(0)

        stream = Stream(account_id, asyncio.ensure_future(read()))
        self._streams.append(stream)
        return stream if await opened == 200 else None

    async def read_account(self, identity: Identity, token: str, account_id: str, shim: int) -> int:
        """Read an account's record with an identity and another account's token in one request: the
        status.
        """
        url = f"{self.shims[shim].url}/api/user/{account_id}"
        headers = {**_identity_headers(identity), "X-ND-Authorization": f"Bearer {token}"}
        return (await self._edge.get(url, headers=headers)).status_code

    # credentials

    async def log_in(self, account_id: str, name: str, password: str) -> list[Credential]:
        """Log in at Navidrome itself by each of its ways."""
        credentials = [Credential("password", account_id, name, password)]
        token = await self._log_in(name, password)
        if token is not None:
            credentials.append(Credential("token", account_id, name, token))
        response = await self._untrusted.post(
            f"{self._navidrome}/jellyfin/Users/AuthenticateByName",
            json={"Username": name, "Pw": password},
            headers=_other_address(),
        )
        if response.status_code == 200:
            token = response.json()["AccessToken"]
            credentials.append(Credential("jellyfin", account_id, name, token))
        return credentials

    async def uses(self, credential: Credential, name: str, shim: int) -> tuple[str, ...]:
        """The ways in which the credential is accepted through this shim, by an account of this name,
        from an untrusted peer and from the edge.
        """
        accepted_by = []
        for client, where in ((self._untrusted, "untrusted peer"), (self._edge, "edge")):
            accepted_by += [
                f"{way} from the {where}"
                for way in await self._uses(client, credential, name, shim)
            ]
        return tuple(accepted_by)

    async def change_password_with(self, credential: Credential, shim: int) -> str | None:
        """Set a password with a token alone. The password, None where it was rejected."""
        password = f"stolen-{next(_numbers)}"
        url = f"{self.shims[shim].url}/api/user/{credential.account_id}"
        headers = {"X-ND-Authorization": f"Bearer {credential.secret}"}
        body = {"userName": credential.name, "name": credential.name, "password": password}
        changed = await _call(self._untrusted, "PUT", url, headers, body)
        return None if changed is None else password

    async def _uses(
        self, client: httpx.AsyncClient, credential: Credential, name: str, shim: int
    ) -> list[str]:
        url, secret = self.shims[shim].url, credential.secret
        parameter = "p" if credential.kind == "password" else "jwt"
        query = {**PING, "u": name, parameter: secret}
        ping = await client.get(f"{url}/rest/ping", params=query)
        accepted_by = ["Subsonic"] if _succeeded(ping) else []
        if credential.kind == "password":
            return accepted_by
        bearer = {"X-ND-Authorization": f"Bearer {secret}"}
        alive = await client.get(f"{url}/api/keepalive/keepalive", headers=bearer)
        if alive.status_code == 200:
            accepted_by.append("native API")
        me = await client.get(f"{url}/jellyfin/Users/Me", headers={"X-Emby-Token": secret})
        if me.status_code == 200:
            accepted_by.append("Jellyfin")
        return accepted_by

    async def _log_in(self, name: str, password: str) -> str | None:
        response = await self._untrusted.post(
            f"{self._navidrome}/auth/login",
            json={"username": name, "password": password},
            headers=_other_address(),
        )
        return str(response.json()["token"]) if response.status_code == 200 else None

    @property
    def _navidrome(self) -> str:
        return self.server.upstream

    # the administrator, in Navidrome's web app behind a shim

    async def administer(
        self, method: str, path: str, body: Mapping[str, object] | None = None, shim: int = 0
    ) -> Any:
        """A call of the administrator's; None where it failed."""
        if self._administrator_token:
            url = self.shims[shim].url
            headers = {"X-ND-Authorization": f"Bearer {self._administrator_token}"}
        else:
            url, headers = self._navidrome, {"Remote-User": OWN_ACCOUNT}
            self.break_the_api(None)
        data = await _call(self._untrusted, method, f"{url}{path}", headers, body)
        if method != "GET" and self._administrator_token:
            await self.sync_processes()
        elif method != "GET":
            await self.reconcile()  # no shim learns of it before
        return data

    async def accounts(self) -> dict[str, dict[str, Any]]:
        """Every account but the shim's and the administrator's, by id, as Navidrome lists it."""
        with self._without_faults():
            users = await self.harness.users()
        return {user["id"]: user for user in users.values() if user["userName"] != ADMINISTRATOR}

    async def find(self, name: str) -> dict[str, Any] | None:
        """The account that has this name."""
        wanted = normalize_name(name)
        found = (
            u for u in (await self.accounts()).values() if normalize_name(u["userName"]) == wanted
        )
        return next(found, None)

    async def rename(self, account_id: str, name: str, shim: int) -> bool:
        record = await self.administer("GET", f"/api/user/{account_id}", shim=shim)
        if record is None:
            return False
        body = {**record, "userName": name}
        return await self.administer("PUT", f"/api/user/{account_id}", body, shim) is not None

    async def delete(self, account_id: str, shim: int) -> None:
        await self.administer("DELETE", f"/api/user/{account_id}", shim=shim)

    async def create(self, name: str, password: str, *, admin: bool, shim: int) -> str | None:
        body = {"userName": name, "name": name, "password": password, "isAdmin": admin}
        created = await self.administer("POST", "/api/user", body, shim)
        return None if created is None else str(created["id"])

    # the operator, in another process

    async def unlink(self, name: str) -> bool:
        """Run `users unlink`; returns whether it was done."""
        async with self._operations() as commands:
            try:
                await commands.unlink(name)
            except OperationError:
                return False
            return True

    async def lock(self, name: str) -> bool:
        """Run `users lock`; returns whether it was done."""
        async with self._operations() as commands:
            try:
                await commands.lock(name)
            except OperationError:
                return False
            return True

    @asynccontextmanager
    async def _operations(self) -> AsyncIterator[Operations]:
        settings = load(self.harness.environment())
        async with operations(settings, self.harness.events.append, OPERATOR) as commands:
            yield commands


def _client(source: str) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(local_address=source)
    return httpx.AsyncClient(transport=transport, timeout=20, trust_env=False)


async def _call(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: Mapping[str, object] | None = None,
) -> Any:
    """The JSON of a response with status 200; None where there is none."""
    try:
        response = await client.request(method, url, headers=headers, json=body)
        return response.json() if response.status_code == 200 else None
    except (httpx.TransportError, ValueError):
        return None


def _identity_headers(identity: Identity) -> dict[str, str]:
    headers = {
        "X-authentik-username": identity.username,
        "X-authentik-uid": identity.uid or "",
        "X-authentik-groups": "|".join(identity.groups or ()),
        "X-Shim-Proxy-Secret": SECRET,
    }
    return headers if identity.name is None else {**headers, "X-authentik-name": identity.name}


def _other_address() -> dict[str, str]:
    """Navidrome limits the logins of one address."""
    return {"X-Real-IP": f"192.0.2.{next(_numbers) % 250}"}


def _logged_in(page: str) -> dict[str, Any]:
    text = page.partition("__APP_CONFIG__")[2].partition("=")[2]
    config = json.loads(json.JSONDecoder().raw_decode(text.strip())[0])
    account: dict[str, Any] = config["auth"]
    return account


def _succeeded(response: httpx.Response) -> bool:
    if response.status_code != 200:
        return False
    return bool(response.json()["subsonic-response"]["status"] == "ok")
