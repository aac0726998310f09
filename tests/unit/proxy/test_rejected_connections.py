"""Keep-alive after a rejection: for a trusted peer, if the end of the request is known."""

from __future__ import annotations

import asyncio

import pytest

from shim.proxy.gate import AccountDenied
from shim.trust.reasons import Reason
from tests.support.http_client import Client, build_request, get
from tests.support.limits import limits_with
from tests.support.running_proxy import EDGE, UNTRUSTED, policy, start_proxy
from tests.support.scripted_navidrome import OK, Navidrome
from tests.support.slow_gate import SlowGate

ALICE = "X-authentik-username: alice"
SECRETS = policy(secrets=(b"s3cret",))
REFUSED = get("/app/", ALICE)
GOOD = get("/app/", ALICE, "X-Shim-Proxy-Secret: s3cret")


async def served(client: Client, navidrome: Navidrome) -> None:
    """Assert that another request on this connection is answered."""
    await client.send(GOOD.encode())
    end, head = await navidrome.requests()
    assert b"\r\nRemote-User: alice\r\n" in head
    await end.send(OK)
    assert (await client.read_response()).status == 200


@pytest.mark.parametrize(
    ("head", "method", "status"),
    [
        (REFUSED, "GET", 401),
        (build_request("HEAD", "/app/", ALICE), "HEAD", 401),
        (build_request("POST", "/api/song", ALICE, "Content-Length: 0"), "POST", 401),
        (get("/app/", ALICE, "Connection: keep-alive").replace("HTTP/1.1", "HTTP/1.0"), "GET", 401),
        (get("/_shim/", ALICE), "GET", 404),
    ],
    ids=["GET", "HEAD", "no body to come", "HTTP/1.0 that asks for it", "own pages"],
)  # fmt: skip
async def test_a_connection_is_kept_alive_after_a_rejection(
    navidrome: Navidrome, head: str, method: str, status: int
) -> None:
    async with start_proxy(navidrome, by=SECRETS) as proxy:
        client = await proxy.client(EDGE)
        for _ in range(3):
            response = await client.request(head, method=method)
            assert response.status == status
            assert response.get("connection") == "keep-alive"
        await served(client, navidrome)
        assert proxy.counters.client_connections == 1


@pytest.mark.parametrize(
    ("head", "source"),
    [
        (REFUSED.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"), EDGE),
        (REFUSED.replace("HTTP/1.1", "HTTP/1.0"), EDGE),
        (build_request("POST", "/api/song", ALICE, "Content-Length: 4"), EDGE),
        (build_request("POST", "/api/song", ALICE, "Transfer-Encoding: chunked"), EDGE),
        (get("/app/", ALICE, ALICE), EDGE),
        (get("/app/", "X_authentik_username: alice"), EDGE),
        (get("/app//x", ALICE), EDGE),
        (get("/app/", ALICE, "Connection: Upgrade", "Upgrade: websocket",
             "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13"), EDGE),
        (get("/_shim/"), UNTRUSTED),
    ],
    ids=["Connection: close", "HTTP/1.0", "a body to come", "chunks to come", "a header twice", "an alias",
         "an ambiguous target", "an upgrade", "a peer that is not listed"],
)  # fmt: skip
async def test_a_connection_is_closed_after_a_rejection(
    navidrome: Navidrome, head: str, source: str
) -> None:
    async with start_proxy(navidrome, by=SECRETS) as proxy:
        client = await proxy.client(source)
        await client.send((head + GOOD).encode())
        response = await client.read_response()
        assert 400 <= response.status < 500
        assert response.get("connection") == "close"
        assert await client.read_to_end() == b""
        assert navidrome.count == 0


async def test_pipelined_requests_after_a_rejection_are_answered_in_order(
    navidrome: Navidrome,
) -> None:
    async with start_proxy(navidrome, by=SECRETS) as proxy:
        client = await proxy.client(EDGE)
        await client.send((REFUSED + GOOD + REFUSED).encode())
        assert (await client.read_response()).status == 401
        end, _ = await navidrome.requests()
        await end.send(OK)
        assert (await client.read_response()).status == 200
        assert (await client.read_response()).status == 401
        assert (await client.request(REFUSED)).status == 401


async def test_a_thousand_pipelined_rejections_do_not_recurse(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, by=SECRETS) as proxy:
        client = await proxy.client(EDGE)
        sending = asyncio.create_task(client.send(REFUSED.encode() * 1000))
        for _ in range(1000):
            assert (await client.read_response()).status == 401
        await sending
        await served(client, navidrome)


async def test_requests_pipelined_behind_a_denied_account_are_served(
    navidrome: Navidrome,
) -> None:
    gate = SlowGate()
    async with start_proxy(navidrome, by=SECRETS, gate=gate) as proxy:
        client = await proxy.client(EDGE)
        await client.send((GOOD + GOOD).encode())
        first = await gate.next_request()
        first.set_result(AccountDenied(Reason.GROUP_NOT_ALLOWED, "no group of hers may in"))
        assert (await client.read_response()).status == 403
        gate.respond(await gate.next_request())
        end, _ = await navidrome.requests()
        await end.send(OK)
        assert (await client.read_response()).status == 200


async def test_an_idle_connection_after_a_rejection_is_closed(navidrome: Navidrome) -> None:
    limits = limits_with(idle_timeout=30.0)
    async with start_proxy(navidrome, by=SECRETS, limits=limits) as proxy:
        client = await proxy.client(EDGE)
        assert (await client.request(REFUSED)).status == 401
        proxy.pass_time(29)
        assert (await client.request(REFUSED)).status == 401
        proxy.pass_time(31)
        assert await client.read_to_end() == b""


async def test_a_shutdown_closes_the_connection_after_the_rejection(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, by=SECRETS) as proxy:
        client = await proxy.client(EDGE)
        await client.send(REFUSED[:10].encode())
        await proxy.wait_until_idle()
        for connection in list(proxy.state.connections):
            connection.shutdown()
        response = await client.request(REFUSED[10:])
        assert (response.status, response.get("connection")) == (401, "close")
        assert await client.read_to_end() == b""
