"""Deadlines: each state has one; a client that misses it gets an error response or is disconnected."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from shim.trust.reasons import Reason
from tests.support.data_plane import EDGE, Front, front_before
from tests.support.http_client import build_request, get
from tests.support.limits import limits_with
from tests.support.scripted_navidrome import OK, Navidrome
from tests.support.slow_gate import SlowGate
from tests.support.slow_reader import send_response_partly_read
from tests.support.socket_ends import until

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
async def front(navidrome: Navidrome) -> AsyncIterator[Front]:
    async with front_before(navidrome, limits=LIMITS, logs_access=True) as made:
        yield made


async def test_a_head_that_takes_too_long_is_a_408(front: Front, navidrome: Navidrome) -> None:
    client = await front.client()
    await client.send(b"GET / HTTP/1.1\r\nHost")
    front.pass_time(9)
    await client.send(b": h\r\n")
    await front.wait_until_idle()
    front.pass_time(2)
    response = await client.read_response()
    assert (response.status, response.get("connection")) == (408, "close")
    assert front.recorded.decided_as == [(Reason.HEAD_TIMEOUT, response.get("x-request-id"))]
    assert navidrome.count == 0


async def test_a_second_head_that_takes_too_long_has_its_own_request_id(
    front: Front, navidrome: Navidrome
) -> None:
    client = await front.client()
    await client.send(get("/", "Remote-User: root").encode())
    served, _ = await navidrome.requests()
    await served.send(OK)
    await client.read_response()
    front.pass_time(39)
    await client.send(b"GET / HT")
    await front.wait_until_idle()
    front.pass_time(9)
    await client.send(b"TP/1.1\r\n")
    await front.wait_until_idle()
    front.pass_time(2)
    response = await client.read_response()
    assert response.status == 408
    (_, first), (_, second) = front.recorded.decided_as
    assert first != second == response.get("x-request-id")


async def test_a_connection_without_data_is_closed_without_a_response(
    front: Front, navidrome: Navidrome
) -> None:
    mute = await front.client()
    await front.wait_until_idle()
    front.pass_time(11)
    assert await mute.read_to_end() == b""
    client = await front.client()
    await client.send(get().encode())
    served, _ = await navidrome.requests()
    await served.send(OK)
    await client.read_response()
    front.pass_time(39)
    await client.send(get().encode())
    await served.head()
    await served.send(OK)
    await client.read_response()
    front.pass_time(41)
    assert await client.read_to_end() == b""
    assert front.recorded.decided_as == []


@pytest.mark.parametrize("framing", ["Content-Length: 10", "Transfer-Encoding: chunked"])
async def test_a_body_without_progress_is_a_408(
    front: Front, navidrome: Navidrome, framing: str
) -> None:
    client = await front.client()
    await client.send(build_request("POST", "/api/x", framing).encode())
    served, _ = await navidrome.requests()
    for piece in (b"1", b"\r\n"):
        front.pass_time(19)
        await client.send(piece)
        await front.wait_until_idle()
    front.pass_time(21)
    response = await client.read_response()
    assert response.status == 408
    await served.wait_closed()
    assert front.recorded.failures == [("body_timeout", 408, response.get("x-request-id"))]


async def test_a_response_that_does_not_start_in_time_is_a_504(
    front: Front, navidrome: Navidrome
) -> None:
    client = await front.client()
    await client.send(get("/api/song").encode())
    served, _ = await navidrome.requests()
    front.pass_time(49)
    assert front.recorded.failures == []
    front.pass_time(2)
    response = await client.read_response()
    assert (response.status, response.get("retry-after")) == (504, None)
    assert front.recorded.failures == [
        ("upstream_response_timeout", 504, response.get("x-request-id"))
    ]
    await served.wait_closed()


async def test_a_response_that_has_started_has_no_deadline(
    front: Front, navidrome: Navidrome
) -> None:
    client = await front.client()
    await client.send(get("/api/events").encode())
    served, _ = await navidrome.requests()
    await served.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    await client.read_response_head()
    assert await client.chunk() == b"a"
    front.pass_time(1_000_000)
    await served.send(b"1\r\nb\r\n")
    assert await client.chunk() == b"b"


async def test_a_client_that_does_not_read_the_response_is_disconnected(
    front: Front, navidrome: Navidrome
) -> None:
    client = await front.client(receive_buffer=4096)
    await client.send(get("/track").encode())
    served, _ = await navidrome.requests()
    await served.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
    sending = asyncio.create_task(served.send(bytes(50_000_000)))
    await until(lambda: front.writing_paused)
    front.pass_time(29)
    assert front.counters.client_connections == 1
    front.pass_time(2)
    await front.until_no_client()
    with pytest.raises(ConnectionError):
        await sending
    await client.read_to_reset()


async def test_the_end_of_a_response_has_a_longer_deadline_for_a_slow_reader(
    navidrome: Navidrome,
) -> None:
    async with front_before(navidrome, limits=LIMITS, send_buffer=4096) as front:
        client = await front.client(receive_buffer=4096)
        await client.send(b"GET /track HTTP/1.0\r\nHost: h\r\n\r\n")
        served, _ = await navidrome.requests()
        left = await send_response_partly_read(front, client, served)
        front.pass_time(3)
        assert len(await client.read_to_end()) == left


async def test_heads_queued_behind_unread_responses_do_not_time_out(
    navidrome: Navidrome,
) -> None:
    limits = replace(LIMITS, send_timeout=60)
    async with front_before(navidrome, limits=limits, send_buffer=4096) as front:
        client = await front.client(EDGE, receive_buffer=4096)
        refused = get(
            "/app/", "X-authentik-uid: 1"
        ).encode()  # a 403, and the connection is kept alive
        while not front.writing_paused:
            await client.send(refused)
        await client.send(*[refused] * 100)
        front.pass_time(41)
        with contextlib.suppress(ConnectionError, TimeoutError):
            await client.read_to_end()
        assert {reason for reason, _ in front.recorded.decided_as} == {Reason.IDENTITY_INCOMPLETE}


async def test_closing_a_connection_has_a_deadline(front: Front) -> None:
    client = await front.client()
    response = await client.request("BREW / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert response.status == 501
    assert await client.read_to_end() == b""
    assert front.counters.client_connections == 1, "it can read its response"
    front.pass_time(3)
    await front.until_no_client()


async def test_a_client_that_half_closes_and_does_not_read_is_disconnected(
    front: Front, navidrome: Navidrome
) -> None:
    client = await front.client(receive_buffer=4096)
    await client.send(get("/cover").encode())
    served, _ = await navidrome.requests()
    size = 3_000_000
    await served.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    sending = asyncio.create_task(served.send(bytes(size)))
    await until(lambda: sending.done() or front.writing_paused)
    client.finish()
    await front.wait_until_idle()
    front.pass_time(31)
    await front.until_no_client()
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


async def test_an_upstream_connection_that_takes_too_long_is_a_504(navidrome: Navidrome) -> None:
    limits = limits_with(
        upstream_connect_timeout=5, upstream_response_timeout=50, max_upstream_connections=1
    )
    async with front_before(navidrome, limits=limits) as front:
        first, second = await front.client(), await front.client()
        await first.send(get().encode())
        await navidrome.requests()
        await second.send(get().encode())
        await front.wait_until_idle()
        front.pass_time(6)
        assert (await second.read_response()).status == 504
        assert front.failures == {"connect_timeout": 1}


async def test_an_account_that_takes_too_long_is_a_503(navidrome: Navidrome) -> None:
    async with front_before(navidrome, limits=LIMITS, gate=SlowGate()) as front:
        client = await front.client(EDGE)
        await client.send(get("/", "X-authentik-username: alice").encode())
        await front.wait_until_idle()
        front.pass_time(51)
        response = await client.read_response()
        assert (response.status, response.get("retry-after")) == (503, "5")
        assert navidrome.count == 0


async def test_an_idle_connection_holds_no_decision(front: Front, navidrome: Navidrome) -> None:
    client = await front.client()
    await client.send(get("/1").encode())
    served, _ = await navidrome.requests()
    await served.send(OK)
    await client.read_response()
    assert front.connection_of(client).handler is not None
    front.pass_time(3)
    assert front.connection_of(client).handler is None
    await client.send(get("/2").encode())
    assert (await served.head()).startswith(b"GET /2 ")
    await served.send(OK)
    assert (await client.read_response()).body == b"ok"
    front.pass_time(3)
    front.pass_time(36)
    assert front.counters.client_connections == 1
    front.pass_time(2)
    assert await client.read_to_end() == b""
