"""The demo's edge behaves like the guide's, including its weakness."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from demo.edge import Edge
from demo.navidrome import StandIn, StandInOptions
from demo.outpost import COOKIE, Outpost, OutpostOptions, OutpostUser
from demo.scenario import identity_fields

USER = OutpostUser("alice", "Alice Ämmer", "alice@example.org", ("family", "listeners"))
ADDRESS = "127.0.0.2"
OPTIONS = StandInOptions(trusted_sources=f"{ADDRESS}/32", user_header="X-authentik-username")


class Parts:
    """An edge between an outpost and a stand-in."""

    def __init__(self, outpost: Outpost, navidrome: StandIn, edge: Edge) -> None:
        self.outpost = outpost
        self.navidrome = navidrome
        self.edge = edge

    def client(self, *, signed_in: bool = False) -> httpx.AsyncClient:
        cookies = {COOKIE: self.outpost.admit(USER)} if signed_in else {}
        transport = httpx.AsyncHTTPTransport(local_address="127.0.0.9")
        return httpx.AsyncClient(
            base_url=self.edge.url, transport=transport, cookies=cookies, trust_env=False
        )


@pytest.fixture
async def parts() -> AsyncIterator[Parts]:
    with Outpost(OutpostOptions(users=(USER,))) as outpost:
        async with (
            StandIn(OPTIONS) as navidrome,
            Edge(navidrome.url, outpost.url, address=ADDRESS) as edge,
        ):
            yield Parts(outpost, navidrome, edge)


async def test_a_session_adds_the_providers_headers_and_removes_the_clients(parts: Parts) -> None:
    claims = {
        "X-AUTHENTIK-Username": "admin",
        "X-authentik-invented": "x",
        "X-Forwarded-For": "::1",
    }
    async with parts.client(signed_in=True) as client:
        await client.get("/app/", headers=claims)
    [seen] = parts.navidrome.seen
    assert seen.peer == ADDRESS
    assert seen.values("X-authentik-username") == ["alice"]
    assert seen.values("X-authentik-name") == ["Alice Ämmer"]
    assert seen.values("X-authentik-groups") == ["family|listeners"]
    assert seen.values("X-authentik-invented") == []
    assert seen.values("X-Forwarded-For") == ["127.0.0.9"]


async def test_an_alias_is_forwarded_as_by_traefiks_default(parts: Parts) -> None:
    async with parts.client(signed_in=True) as client:
        await client.get("/app/", headers={"X_authentik_username": "admin"})
    [seen] = parts.navidrome.seen
    assert seen.values("X_authentik_username") == ["admin"]


@pytest.mark.parametrize("path", ["/rest/ping", "/share/x"])
async def test_a_claimed_identity_is_forwarded_on_an_open_route(parts: Parts, path: str) -> None:
    async with parts.client() as client:
        await client.get(path, headers={"X-authentik-username": "admin"})
    [seen] = parts.navidrome.seen
    assert identity_fields(seen.headers) == (("X-authentik-username", "admin"),)


async def test_a_client_without_a_session_is_redirected_to_sign_in(parts: Parts) -> None:
    async with parts.client() as client:
        response = await client.get("/api/user", headers={"X-authentik-username": "admin"})
    assert response.status_code == 302
    assert response.headers["Location"].startswith(
        f"{parts.edge.url}/outpost.goauthentik.io/start?"
    )
    assert not parts.navidrome.seen


async def test_naming_a_user_in_the_address_signs_in(parts: Parts) -> None:
    async with parts.client() as client:
        response = await client.get("/?user=alice", follow_redirects=True)
    assert (response.status_code, response.url.path) == (200, "/app/")
    assert parts.navidrome.seen[-1].values("X-authentik-username") == ["alice"]


async def test_bodies_are_forwarded_completely_in_both_directions(parts: Parts) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1000
        yield b'{"username": "nobody", "password": "none"}'

    async with parts.client(signed_in=True) as client:
        response = await client.post("/auth/login", content=pieces())
        cover = await client.get("/app/robots.txt")
    assert response.status_code == 401
    assert cover.text == "User-agent: *\nDisallow: /"


async def test_a_client_disconnect_ends_its_event_stream(parts: Parts) -> None:
    async with parts.client(signed_in=True) as client:
        await client.get("/app/")  # Navidrome creates the account
        async with client.stream("GET", "/api/events") as events:
            assert "serverStart" in await anext(events.aiter_text())
            assert parts.navidrome.event_streams == 1
    for _ in range(200):
        if parts.navidrome.event_streams == 0:
            return
        await asyncio.sleep(0.02)
    pytest.fail("the stream stays open")


async def test_it_responds_502_without_an_upstream(parts: Parts) -> None:
    await parts.navidrome.stop()
    async with parts.client() as client:
        assert (await client.get("/rest/ping")).status_code == 502


async def test_an_invalid_head_closes_the_connection(parts: Parts) -> None:
    port = int(parts.edge.url.rpartition(":")[2])
    for junk in (b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\nA: " + b"a" * 70_000):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(junk)
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            pass
        finally:
            writer.close()
    assert not parts.navidrome.seen
