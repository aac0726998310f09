"""Incomplete responses are counted and logged, with the bytes that were sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shim.proxy.client_connection import ClientConnection
from tests.support.data_plane import Front, front_before
from tests.support.http_client import Client, get
from tests.support.limits import limits_with
from tests.support.scripted_navidrome import Navidrome, Served
from tests.support.slow_reader import send_response_partly_read
from tests.support.socket_ends import until

SIZE = 3_000_000


@pytest.fixture
async def front(navidrome: Navidrome) -> AsyncIterator[Front]:
    limits = limits_with(send_timeout=300)
    async with front_before(navidrome, limits=limits, logs_access=True, send_buffer=4096) as made:
        yield made


async def begun(front: Front, navidrome: Navidrome, kind: str) -> tuple[Client, Served]:
    """A client that has read the head of a response, and then stops reading."""
    client = await front.client(receive_buffer=4096)
    await client.send(get("/rest/stream").encode())
    served, _ = await navidrome.requests()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {SIZE}\r\n\r\n"
    await served.send(head.encode())
    await client.read_response_head()
    return client, served


@pytest.mark.parametrize("reset", [True, False])
async def test_a_client_disconnect_during_the_response_is_logged(
    front: Front, navidrome: Navidrome, reset: bool
) -> None:
    client, served = await begun(front, navidrome, "audio/mpeg")
    await served.send(bytes(1000))
    await client.read_exactly(1000)
    if reset:
        client.reset()
    else:
        client.close()
    await front.until_no_client()
    ((failure, status, sent),) = front.recorded.incomplete
    assert (failure, status) == ("client_left", 200)
    assert 1000 < sent < 1200
    assert front.failures == {"client_left": 1}


async def test_a_response_truncated_by_navidrome_is_logged(
    front: Front, navidrome: Navidrome
) -> None:
    client, served = await begun(front, navidrome, "audio/mpeg")
    served.close()
    await client.read_to_reset()
    assert [failure for failure, *_ in front.recorded.incomplete] == ["upstream_response_truncated"]
    assert front.failures == {"upstream_response_truncated": 1}


@pytest.mark.parametrize(
    ("kind", "seconds"), [("text/html", 300), ("audio/flac", 3600), ("Video/mp4", 3600)]
)
async def test_a_paused_stream_has_an_hour_and_any_other_response_five_minutes(
    front: Front, navidrome: Navidrome, kind: str, seconds: int
) -> None:
    _, served = await begun(front, navidrome, kind)
    sending = asyncio.create_task(served.send(bytes(SIZE)))
    await until(lambda: sending.done() or front.writing_paused)
    front.pass_time(seconds - 1)
    await asyncio.sleep(0)
    assert front.counters.client_connections == 1
    front.pass_time(2)
    await front.until_no_client()
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert [failure for failure, *_ in front.recorded.incomplete] == ["send_timeout"]


async def test_without_an_access_log_each_incomplete_response_still_has_a_line(
    navidrome: Navidrome,
) -> None:
    async with front_before(navidrome, send_buffer=4096) as front:
        client, served = await begun(front, navidrome, "audio/mpeg")
        await served.send(bytes(1000))
        await client.read_exactly(1000)
        client.close()
        await front.until_no_client()
        ((failure, status, sent),) = front.recorded.cut
        assert (failure, status) == ("client_left", 200)
        assert 1000 < sent < 1200
        assert not front.recorded.accesses


async def test_a_response_that_shutdown_ends_is_incomplete(
    front: Front, navidrome: Navidrome
) -> None:
    client, _ = await begun(front, navidrome, "audio/mpeg")
    (connection,) = front.plane.connections
    assert isinstance(connection, ClientConnection)
    connection.abort_at_shutdown()
    await client.read_to_reset()
    await front.until_no_client()
    assert [failure for failure, *_ in front.recorded.incomplete] == ["shutdown"]
    assert [failure for failure, *_ in front.recorded.cut] == ["shutdown"]


@pytest.mark.parametrize("close", [False, True])
async def test_a_client_that_does_not_read_the_end_of_a_response_is_logged(
    navidrome: Navidrome, close: bool
) -> None:
    """Navidrome has sent all of it, and the shim buffers the rest."""
    async with front_before(
        navidrome, limits=limits_with(send_timeout=30), send_buffer=4096
    ) as front:
        client = await front.client(receive_buffer=4096)
        line = "Connection: close" if close else "Accept: */*"
        await client.send(get("/rest/stream", line).encode())
        served, _ = await navidrome.requests()
        await send_response_partly_read(front, client, served)
        front.pass_time(31)
        await front.until_no_client()
        assert [(failure, status) for failure, status, _ in front.recorded.cut] == [
            ("send_timeout", 200)
        ]
        assert front.failures == {"send_timeout": 1}


async def test_a_client_that_resets_with_unread_response_data_is_logged(
    navidrome: Navidrome,
) -> None:
    async with front_before(navidrome, send_buffer=4096) as front:
        client = await front.client(receive_buffer=4096)
        await client.send(get("/rest/stream").encode())
        served, _ = await navidrome.requests()
        await send_response_partly_read(front, client, served)
        client.reset()
        await front.until_no_client()
        assert [failure for failure, *_ in front.recorded.cut] == ["client_left"]


async def test_a_client_that_read_the_complete_response_is_not_logged(
    front: Front, navidrome: Navidrome
) -> None:
    client, served = await begun(front, navidrome, "audio/mpeg")
    sending = asyncio.create_task(served.send(bytes(SIZE)))
    await client.read_exactly(SIZE)
    await sending
    client.close()
    await front.until_no_client()
    assert not front.recorded.cut
    assert len(front.recorded.accesses) == 1
