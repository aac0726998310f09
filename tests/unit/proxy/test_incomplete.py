"""Incomplete responses are counted and logged, with the bytes that were sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shim.proxy.client_connection import ClientConnection
from tests.support.http_client import Client, get
from tests.support.limits import limits_with
from tests.support.raw_connection import until
from tests.support.running_proxy import RunningProxy, start_proxy
from tests.support.scripted_navidrome import Navidrome, Served
from tests.support.slow_reader import send_response_partly_read

SIZE = 3_000_000


@pytest.fixture
async def proxy(navidrome: Navidrome) -> AsyncIterator[RunningProxy]:
    limits = limits_with(send_timeout=300)
    async with start_proxy(navidrome, limits=limits, logs_access=True, send_buffer=4096) as made:
        yield made


async def begun(proxy: RunningProxy, navidrome: Navidrome, kind: str) -> tuple[Client, Served]:
    """A client that has read the head of a response, and then stops reading."""
    client = await proxy.client(receive_buffer=4096)
    await client.send(get("/rest/stream").encode())
    served, _ = await navidrome.requests()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {SIZE}\r\n\r\n"
    await served.send(head.encode())
    await client.read_response_head()
    return client, served


@pytest.mark.parametrize("reset", [True, False])
async def test_a_client_disconnect_during_the_response_is_logged(
    proxy: RunningProxy, navidrome: Navidrome, reset: bool
) -> None:
    client, served = await begun(proxy, navidrome, "audio/mpeg")
    await served.send(bytes(1000))
    await client.read_exactly(1000)
    if reset:
        client.reset()
    else:
        client.close()
    await proxy.until_no_client()
    ((failure, status, sent),) = proxy.recorded.incomplete
    assert (failure, status) == ("client_left", 200)
    assert 1000 < sent < 1200
    assert proxy.failures == {"client_left": 1}


async def test_a_response_truncated_by_navidrome_is_logged(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client, served = await begun(proxy, navidrome, "audio/mpeg")
    served.close()
    await client.read_to_reset()
    assert [failure for failure, *_ in proxy.recorded.incomplete] == ["upstream_response_truncated"]
    assert proxy.failures == {"upstream_response_truncated": 1}


@pytest.mark.parametrize(
    ("kind", "seconds"), [("text/html", 300), ("audio/flac", 3600), ("Video/mp4", 3600)]
)
async def test_a_paused_stream_has_an_hour_and_any_other_response_five_minutes(
    proxy: RunningProxy, navidrome: Navidrome, kind: str, seconds: int
) -> None:
    _, served = await begun(proxy, navidrome, kind)
    sending = asyncio.create_task(served.send(bytes(SIZE)))
    await until(lambda: sending.done() or proxy.writing_paused)
    proxy.pass_time(seconds - 1)
    await asyncio.sleep(0)
    assert proxy.counters.client_connections == 1
    proxy.pass_time(2)
    await proxy.until_no_client()
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert [failure for failure, *_ in proxy.recorded.incomplete] == ["send_timeout"]


async def test_without_an_access_log_each_incomplete_response_still_has_a_line(
    navidrome: Navidrome,
) -> None:
    async with start_proxy(navidrome, send_buffer=4096) as proxy:
        client, served = await begun(proxy, navidrome, "audio/mpeg")
        await served.send(bytes(1000))
        await client.read_exactly(1000)
        client.close()
        await proxy.until_no_client()
        ((failure, status, sent),) = proxy.recorded.cut
        assert (failure, status) == ("client_left", 200)
        assert 1000 < sent < 1200
        assert not proxy.recorded.accesses


async def test_a_response_that_shutdown_ends_is_incomplete(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client, _ = await begun(proxy, navidrome, "audio/mpeg")
    (connection,) = proxy.plane.connections
    assert isinstance(connection, ClientConnection)
    connection.abort_at_shutdown()
    await client.read_to_reset()
    await proxy.until_no_client()
    assert [failure for failure, *_ in proxy.recorded.incomplete] == ["shutdown"]
    assert [failure for failure, *_ in proxy.recorded.cut] == ["shutdown"]


@pytest.mark.parametrize("close", [False, True])
async def test_a_client_that_does_not_read_the_end_of_a_response_is_logged(
    navidrome: Navidrome, close: bool
) -> None:
    """Navidrome has sent all of it, and the shim buffers the rest."""
    async with start_proxy(
        navidrome, limits=limits_with(send_timeout=30), send_buffer=4096
    ) as proxy:
        client = await proxy.client(receive_buffer=4096)
        line = "Connection: close" if close else "Accept: */*"
        await client.send(get("/rest/stream", line).encode())
        served, _ = await navidrome.requests()
        await send_response_partly_read(proxy, client, served)
        proxy.pass_time(31)
        await proxy.until_no_client()
        assert [(failure, status) for failure, status, _ in proxy.recorded.cut] == [
            ("send_timeout", 200)
        ]
        assert proxy.failures == {"send_timeout": 1}


async def test_a_client_that_resets_with_unread_response_data_is_logged(
    navidrome: Navidrome,
) -> None:
    async with start_proxy(navidrome, send_buffer=4096) as proxy:
        client = await proxy.client(receive_buffer=4096)
        await client.send(get("/rest/stream").encode())
        served, _ = await navidrome.requests()
        await send_response_partly_read(proxy, client, served)
        client.reset()
        await proxy.until_no_client()
        assert [failure for failure, *_ in proxy.recorded.cut] == ["client_left"]


async def test_a_client_that_read_the_complete_response_is_not_logged(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client, served = await begun(proxy, navidrome, "audio/mpeg")
    sending = asyncio.create_task(served.send(bytes(SIZE)))
    await client.read_exactly(SIZE)
    await sending
    client.close()
    await proxy.until_no_client()
    assert not proxy.recorded.cut
    assert len(proxy.recorded.accesses) == 1
