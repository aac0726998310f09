"""Deadlines: each state has one; a client that misses it gets an error response or is disconnected."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from shim.trust.reasons import Reason
from tests.support.http_client import build_request, get
from tests.support.limits import limits_with
from tests.support.raw_connection import until
from tests.support.running_proxy import EDGE, RunningProxy, start_proxy
from tests.support.scripted_navidrome import OK, Navidrome
from tests.support.slow_gate import SlowGate
from tests.support.slow_reader import send_response_partly_read

LIMITS = limits_with(
    request_header_timeout=10,
    request_body_timeout=20,
    send_timeout=30,
    idle_timeout=40,
    upstream_connect_timeout=5,
    upstream_response_timeout=50,
    upstream_idle_timeout=1000,
    linger_timeout=2,
)


@pytest.fixture
async def proxy(navidrome: Navidrome) -> AsyncIterator[RunningProxy]:
    async with start_proxy(navidrome, limits=LIMITS, logs_access=True) as made:
        yield made


async def test_a_head_that_takes_too_long_is_a_408(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(b"GET / HTTP/1.1\r\nHost")
    proxy.pass_time(9)
    await client.send(b": h\r\n")
    await proxy.wait_until_idle()
    proxy.pass_time(2)
    response = await client.read_response()
    assert (response.status, response.get("connection")) == (408, "close")
    assert proxy.recorded.decided_as == [(Reason.HEAD_TIMEOUT, response.get("x-request-id"))]
    assert navidrome.count == 0


async def test_a_second_head_that_takes_too_long_has_its_own_request_id(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(get("/", "Remote-User: root").encode())
    served, _ = await navidrome.requests()
    await served.send(OK)
    await client.read_response()
    proxy.pass_time(39)
    await client.send(b"GET / HT")
    await proxy.wait_until_idle()
    proxy.pass_time(9)
    await client.send(b"TP/1.1\r\n")
    await proxy.wait_until_idle()
    proxy.pass_time(2)
    response = await client.read_response()
    assert response.status == 408
    (_, first), (_, second) = proxy.recorded.decided_as
    assert first != second == response.get("x-request-id")


async def test_a_connection_without_data_is_closed_without_a_response(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    silent_client = await proxy.client()
    await proxy.wait_until_idle()
    proxy.pass_time(11)
    assert await silent_client.read_to_end() == b""
    client = await proxy.client()
    await client.send(get().encode())
    served, _ = await navidrome.requests()
    await served.send(OK)
    await client.read_response()
    proxy.pass_time(39)
    await client.send(get().encode())
    await served.head()
    await served.send(OK)
    await client.read_response()
    proxy.pass_time(41)
    assert await client.read_to_end() == b""
    assert proxy.recorded.decided_as == []


@pytest.mark.parametrize("framing", ["Content-Length: 10", "Transfer-Encoding: chunked"])
async def test_a_body_without_progress_is_a_408(
    proxy: RunningProxy, navidrome: Navidrome, framing: str
) -> None:
    client = await proxy.client()
    await client.send(build_request("POST", "/api/x", framing).encode())
    served, _ = await navidrome.requests()
    for piece in (b"1", b"\r\n"):
        proxy.pass_time(19)
        await client.send(piece)
        await proxy.wait_until_idle()
    proxy.pass_time(21)
    response = await client.read_response()
    assert response.status == 408
    await served.wait_closed()
    assert proxy.recorded.failures == [("body_timeout", 408, response.get("x-request-id"))]


async def test_a_response_that_does_not_start_in_time_is_a_504(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(get("/api/song").encode())
    served, _ = await navidrome.requests()
    proxy.pass_time(49)
    assert proxy.recorded.failures == []
    proxy.pass_time(2)
    response = await client.read_response()
    assert (response.status, response.get("retry-after")) == (504, None)
    assert proxy.recorded.failures == [
        ("upstream_response_timeout", 504, response.get("x-request-id"))
    ]
    await served.wait_closed()


async def test_a_response_that_has_started_has_no_deadline(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(get("/api/events").encode())
    served, _ = await navidrome.requests()
    await served.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    await client.read_response_head()
    assert await client.chunk() == b"a"
    proxy.pass_time(1_000_000)
    await served.send(b"1\r\nb\r\n")
    assert await client.chunk() == b"b"


async def test_a_client_that_does_not_read_the_response_is_disconnected(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client(receive_buffer=4096)
    await client.send(get("/track").encode())
    served, _ = await navidrome.requests()
    await served.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
    sending = asyncio.create_task(served.send(bytes(50_000_000)))
    await until(lambda: proxy.writing_paused)
    proxy.pass_time(29)
    assert proxy.counters.client_connections == 1
    proxy.pass_time(2)
    await proxy.until_no_client()
    with pytest.raises(ConnectionError):
        await sending
    await client.read_to_reset()


async def test_the_end_of_a_response_has_a_longer_deadline_for_a_slow_reader(
    navidrome: Navidrome,
) -> None:
    async with start_proxy(navidrome, limits=LIMITS, send_buffer=4096) as proxy:
        client = await proxy.client(receive_buffer=4096)
        await client.send(b"GET /track HTTP/1.0\r\nHost: h\r\n\r\n")
        served, _ = await navidrome.requests()
        left = await send_response_partly_read(proxy, client, served)
        proxy.pass_time(3)
        assert len(await client.read_to_end()) == left


async def test_heads_queued_behind_unread_responses_do_not_time_out(
    navidrome: Navidrome,
) -> None:
    limits = replace(LIMITS, send_timeout=60)
    async with start_proxy(navidrome, limits=limits, send_buffer=4096) as proxy:
        client = await proxy.client(EDGE, receive_buffer=4096)
        refused = get(
            "/app/", "X-authentik-uid: 1"
        ).encode()  # a 403, and the connection is kept alive
        while not proxy.writing_paused:
            await client.send(refused)
        await client.send(*[refused] * 100)
        proxy.pass_time(41)
        with contextlib.suppress(ConnectionError, TimeoutError):
            await client.read_to_end()
        assert {reason for reason, _ in proxy.recorded.decided_as} == {Reason.IDENTITY_INCOMPLETE}


async def test_closing_a_connection_has_a_deadline(proxy: RunningProxy) -> None:
    client = await proxy.client()
    response = await client.request("BREW / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert response.status == 501
    assert await client.read_to_end() == b""
    assert proxy.counters.client_connections == 1, "it can read its response"
    proxy.pass_time(3)
    await proxy.until_no_client()


async def test_a_client_that_half_closes_and_does_not_read_is_disconnected(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client(receive_buffer=4096)
    await client.send(get("/cover").encode())
    served, _ = await navidrome.requests()
    size = 3_000_000
    await served.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    sending = asyncio.create_task(served.send(bytes(size)))
    await until(lambda: sending.done() or proxy.writing_paused)
    client.finish()
    await proxy.wait_until_idle()
    proxy.pass_time(31)
    await proxy.until_no_client()
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


async def test_an_upstream_connection_that_takes_too_long_is_a_504(navidrome: Navidrome) -> None:
    limits = limits_with(
        upstream_connect_timeout=5, upstream_response_timeout=50, max_upstream_connections=1
    )
    async with start_proxy(navidrome, limits=limits) as proxy:
        first, second = await proxy.client(), await proxy.client()
        await first.send(get().encode())
        await navidrome.requests()
        await second.send(get().encode())
        await proxy.wait_until_idle()
        proxy.pass_time(6)
        assert (await second.read_response()).status == 504
        assert proxy.failures == {"connect_timeout": 1}


async def test_an_account_that_takes_too_long_is_a_503(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, limits=LIMITS, gate=SlowGate()) as proxy:
        client = await proxy.client(EDGE)
        await client.send(get("/", "X-authentik-username: alice").encode())
        await proxy.wait_until_idle()
        proxy.pass_time(51)
        response = await client.read_response()
        assert (response.status, response.get("retry-after")) == (503, "5")
        assert navidrome.count == 0


async def test_an_idle_connection_holds_no_decision(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(get("/1").encode())
    served, _ = await navidrome.requests()
    await served.send(OK)
    await client.read_response()
    assert proxy.connection_of(client).handler is not None
    proxy.pass_time(3)
    assert proxy.connection_of(client).handler is None
    await client.send(get("/2").encode())
    assert (await served.head()).startswith(b"GET /2 ")
    await served.send(OK)
    assert (await client.read_response()).body == b"ok"
    proxy.pass_time(3)
    proxy.pass_time(36)
    assert proxy.counters.client_connections == 1
    proxy.pass_time(2)
    assert await client.read_to_end() == b""
