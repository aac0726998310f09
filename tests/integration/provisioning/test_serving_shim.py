"""The complete shim with a Navidrome over HTTP: first requests, and changes of Navidrome."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from demo.navidrome import Fault, FaultKind
from tests.support.harness import Harness
from tests.support.ports import free_port

ROOT = Path(__file__).parents[3]


@dataclass(slots=True)
class ServingShim:
    """A shim that serves, in its own process."""

    port: int
    control: int
    client: httpx.AsyncClient

    async def visit(
        self, name: str, path: str = "/app/", *, uid: str = "", groups: str = "music", **more: str
    ) -> httpx.Response:
        headers: Mapping[str, str] = {
            "X-authentik-username": name,
            "X-authentik-uid": uid or f"uid-{name}",
            "X-authentik-groups": groups,
            **more,
        }
        return await self.client.get(f"http://127.0.0.1:{self.port}{path}", headers=headers)

    async def ready(self) -> Any:
        response = await self.client.get(f"http://127.0.0.1:{self.control}/readyz")
        return response.json()


@asynccontextmanager
async def serve_shim(harness: Harness, **settings: str) -> AsyncIterator[ServingShim]:
    port, control = free_port(), free_port()
    harness.use(
        LISTEN=f"127.0.0.1:{port}",
        CONTROL_LISTEN=f"127.0.0.1:{control}",
        LOG_LEVEL="info",
        **settings,
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "shim",
        "serve",
        env=harness.environment(),
        cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        async with httpx.AsyncClient(timeout=20, trust_env=False) as client:
            shim = ServingShim(port, control, client)
            async with asyncio.timeout(20):
                while not await _listens(shim):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            yield shim
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_first_request_gets_the_web_apps_page_for_the_right_account(
    tcp_harness: Harness,
) -> None:
    async with serve_shim(
        tcp_harness,
        ADMIN_GROUPS="admins",
        ALLOWED_GROUPS="music,admins",
        SUPPORT_CONTACT="ask@example.org",
    ) as shim:
        page = await shim.visit("alice", **{"X-authentik-name": "Alice A."})
        assert page.status_code == 200 and _auth(page) == ("alice", "Alice A.", False)
        assert _auth(await shim.visit("boss", groups="admins"))[2] is True
        refused = await shim.visit("eve", groups="other")
        assert refused.status_code == 403 and "not in a group" in refused.text
        assert "ask@example.org" in refused.text
        assert (await shim.visit("Alice", uid="other")).status_code == 403
        assert (await shim.visit("NAVIDROME-shim")).status_code == 403
        assert sorted(await tcp_harness.users()) == ["alice", "boss"]
        checks = (await shim.ready())["checks"]
        assert checks["accounts"]["state"] == checks["store"]["state"] == "ok"


async def test_two_hundred_concurrent_first_requests_create_one_account(
    tcp_harness: Harness,
) -> None:
    async with serve_shim(tcp_harness) as shim:
        responses = await asyncio.gather(*(shim.visit("alice", "/api/song") for _ in range(200)))
        assert {response.status_code for response in responses} == {200}
        assert list(await tcp_harness.users()) == ["alice"]


async def test_a_known_user_is_served_while_others_wait_for_their_account(
    stand_in_harness: Harness,
) -> None:
    harness = stand_in_harness
    async with serve_shim(harness) as shim:
        await shim.visit("alice", "/api/song")
        harness.stand_in.breaks(Fault(FaultKind.HANG, ("/api/user",)))
        others = [asyncio.create_task(shim.visit(f"new{n}")) for n in range(20)]
        await asyncio.sleep(0.1)
        for _ in range(20):
            assert (await shim.visit("alice", "/api/song")).status_code == 200
        assert not any(other.done() for other in others)
        harness.stand_in.breaks(None)
        assert {response.status_code for response in await asyncio.gather(*others)} <= {200, 503}


async def test_public_paths_and_untrusted_peers_create_no_account(tcp_harness: Harness) -> None:
    async with serve_shim(tcp_harness) as shim:
        await shim.visit("alice", "/rest/ping?v=1&c=x&f=json")
        await shim.visit("alice", "/share/abc")
        await shim.client.get(f"http://127.0.0.1:{shim.port}/app/")
        assert not await tcp_harness.users()


async def test_a_proof_on_a_public_path_provisions_the_account(
    tcp_harness: Harness,
) -> None:
    secret = "s3cret-s3cret-s3cret"
    ping = "/rest/ping?v=1.16.1&c=x&f=json"
    async with serve_shim(
        tcp_harness,
        PROXY_SECRET=secret,
        PUBLIC_PATH_PROOF="secret",
        ALLOWED_GROUPS="music",
    ) as shim:
        proof = {"X-Shim-Proxy-Secret": secret}
        for headers in ({}, {"X-Shim-Proxy-Secret": "another"}):
            response = await shim.visit("alice", ping, **headers)
            assert response.json()["subsonic-response"]["status"] == "failed"
        refused = await shim.visit("eve", ping, groups="other", **proof)
        assert refused.status_code == 403
        assert refused.json()["subsonic-response"]["error"]["code"] == 50
        await shim.visit("alice", "/share/abc", **proof)
        assert not await tcp_harness.users()
        response = await shim.visit("alice", ping, **proof)
        assert response.json()["subsonic-response"]["status"] == "ok"
        assert list(await tcp_harness.users()) == ["alice"]


async def test_no_user_becomes_the_admin_of_a_navidrome_that_restarted_empty(
    tcp_harness: Harness,
) -> None:
    harness = tcp_harness
    async with serve_shim(harness) as shim:
        assert (await shim.visit("alice")).status_code == 200
        await harness.server.stop()
        await harness.server.empty()
        early = [asyncio.create_task(_repeat_until_served(shim, name)) for name in ("alice", "bob")]
        await asyncio.sleep(0.2)
        await harness.server.start()
        async with asyncio.timeout(30):
            pages = await asyncio.gather(*early)
        assert [_auth(page)[2] for page in pages] == [False, False]
        assert {user["isAdmin"] for user in (await harness.users()).values()} == {False}


async def test_an_account_deleted_in_navidrome_is_noticed_at_its_next_api_request(
    tcp_harness: Harness,
) -> None:
    async with serve_shim(tcp_harness) as shim:
        await shim.visit("alice")
        await tcp_harness.delete("alice")
        assert (await shim.visit("alice", "/api/song")).status_code == 401
        assert (await shim.visit("alice", "/api/song")).status_code == 200
        assert list(await tcp_harness.users()) == ["alice"]


async def test_without_provisioning_a_reserved_name_is_rejected_too(tcp_harness: Harness) -> None:
    await tcp_harness.create_first()
    async with serve_shim(tcp_harness, PROVISIONING="false", PROTECTED_USERS="boss") as shim:
        assert (await shim.visit("Boss")).status_code == 403
        assert (await shim.visit("navidrome-shim", "/api/user")).status_code == 403
        assert not (tcp_harness.folder / "shim.db").exists()


async def _repeat_until_served(shim: ServingShim, name: str) -> httpx.Response:
    """Retry, as a user would."""
    while True:
        response = await shim.visit(name)
        if response.status_code == 200:
            return response
        assert response.status_code in (502, 503, 504), response.text
        await asyncio.sleep(0.02)


async def _listens(shim: ServingShim) -> bool:
    try:
        return "checks" in await shim.ready()
    except httpx.TransportError:
        return False


def _auth(page: httpx.Response) -> tuple[str, str, bool]:
    """The signed-in user of the page: name, display name, whether an admin."""
    text = page.text.partition("__APP_CONFIG__")[2].partition("=")[2]
    config = json.loads(json.JSONDecoder().raw_decode(text.strip())[0])
    auth = config["auth"]
    return auth["username"], auth["name"], auth["isAdmin"]
