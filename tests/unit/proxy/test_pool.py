"""The upstream pool: reuse of connections, their number, and retries."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shim.proxy.client_connection import ClientConnection
from shim.proxy.failures import Failure
from shim.proxy.keepalive import IDLE_SECONDS
from shim.proxy.pool import UpstreamPool
from shim.proxy.upstream import Upstream
from tests.support.http_client import build_request, get
from tests.support.limits import limits_with
from tests.support.raw_connection import until
from tests.support.running_proxy import RunningProxy, start_proxy
from tests.support.scripted_navidrome import OK, Navidrome, Served, navidrome_on_a_socket


async def one_response(proxy: RunningProxy, navidrome: Navidrome, response: bytes = OK) -> Served:
    """Return a connection that has carried one exchange."""
    client = await proxy.client()
    await client.send(get().encode())
    served, _ = await navidrome.requests()
    await served.send(response)
    await client.read_response()
    return served


async def test_a_connection_is_reused(proxy: RunningProxy, navidrome: Navidrome) -> None:
    served = await one_response(proxy, navidrome)
    assert (proxy.counters.upstream_connections, proxy.counters.upstream_idle) == (1, 1)
    for _ in range(3):
        client = await proxy.client()
        await client.send(get("/next").encode())
        assert (await served.head()).startswith(b"GET /next ")
        assert proxy.counters.upstream_idle == 0
        await served.send(OK)
        await client.read_response()
    assert navidrome.count == 1


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n!",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil",
    ],
)
async def test_a_connection_that_closes_or_has_extra_bytes_is_not_reused(
    proxy: RunningProxy, navidrome: Navidrome, response: bytes
) -> None:
    served = await one_response(proxy, navidrome, response)
    await served.wait_closed()
    assert proxy.counters.upstream_idle == 0
    client = await proxy.client()
    await client.send(get().encode())
    again, _ = await navidrome.requests()
    await again.send(OK)
    assert (await client.read_response()).body == b"ok"
    assert navidrome.count == 2


async def test_the_body_of_a_response_to_head_does_not_become_the_next_response(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(build_request("HEAD", "/").encode())
    served, _ = await navidrome.requests()
    await served.send(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n")
    await client.read_response("HEAD")
    await served.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    await served.wait_closed()
    assert proxy.counters.upstream_idle == 0


async def test_bytes_on_a_pooled_connection_close_it(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    served = await one_response(proxy, navidrome)
    await served.send(OK)
    await served.wait_closed()
    assert proxy.counters.upstream_connections == 0


async def test_a_pooled_connection_that_navidrome_closes_is_removed(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    served = await one_response(proxy, navidrome)
    served.finish()
    await served.wait_closed()
    client = await proxy.client()
    await client.send(build_request("POST", "/api/x", "Content-Length: 1").encode() + b"x")
    again, _ = await navidrome.requests()
    await again.send(OK)
    assert (await client.read_response()).status == 200


async def test_a_connection_that_was_idle_too_long_is_closed(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    served = await one_response(proxy, navidrome)
    proxy.pass_time(29)
    assert proxy.counters.upstream_idle == 1
    proxy.pass_time(2)
    await served.wait_closed()
    assert proxy.counters.upstream_idle == 0


async def test_an_early_response_closes_both_connections(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(build_request("POST", "/api/x", "Content-Length: 10").encode() + b"half")
    served, _ = await navidrome.requests()
    await served.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
    response = await client.read_response()
    assert (response.status, response.get("connection"), response.body) == (413, "close", b"no")
    await client.send(b" more!")
    assert await client.read_to_end() == b""
    await served.wait_closed()
    assert proxy.counters.upstream_idle == 0


async def test_a_request_that_is_still_buffered_is_not_sent_after_an_early_response(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(build_request("POST", "/api/x", "Transfer-Encoding: chunked").encode())
    served, _ = await navidrome.requests()
    # Navidrome reads nothing: the kernel buffers a part, the rest waits in the shim.
    while not proxy.held_for_navidrome:
        await client.send(b"1000\r\n" + bytes(4096) + b"\r\n")
    await client.send(b"0\r\n\r\n")
    await served.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
    assert (await client.read_response()).status == 413
    await served.wait_closed()
    assert proxy.counters.upstream_idle == 0


async def test_connections_are_limited_and_waiting_requests_are_served_in_order(
    navidrome: Navidrome,
) -> None:
    limits = limits_with(max_upstream_connections=2, max_pending_requests=2)
    async with start_proxy(navidrome, limits=limits) as proxy:
        clients = [await proxy.client() for _ in range(5)]
        for number, client in enumerate(clients):
            await client.send(get(f"/{number}").encode())
            await proxy.wait_until_idle()
        first, second = await navidrome.accepted(), await navidrome.accepted()
        assert (await first.head(), await second.head()) != (b"", b"")
        refused = await clients[4].read_response()
        assert (refused.status, refused.get("retry-after")) == (503, "5")
        assert proxy.counters.upstream_waiting == 2
        await second.send(OK)
        assert (await clients[1].read_response()).body == b"ok"
        assert (await second.head()).startswith(b"GET /2 ")
        await first.send(OK)
        assert (await first.head()).startswith(b"GET /3 ")
        assert navidrome.count == 2
        assert proxy.failures == {"pool_exhausted": 1}


async def test_a_waiting_request_gets_the_slot_of_a_closed_connection(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, limits=limits_with(max_upstream_connections=1)) as proxy:
        first, second = await proxy.client(), await proxy.client()
        await first.send(get("/1").encode())
        served, _ = await navidrome.requests()
        await second.send(get("/2").encode())
        await proxy.wait_until_idle()
        await served.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        _, head = await navidrome.requests()
        assert head.startswith(b"GET /2 ")


async def test_a_disconnected_client_does_not_wait_any_more(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, limits=limits_with(max_upstream_connections=1)) as proxy:
        first, second, third = [await proxy.client() for _ in range(3)]
        for number, client in enumerate((first, second, third)):
            await client.send(get(f"/{number}").encode())
            await proxy.wait_until_idle()
        served, _ = await navidrome.requests()
        second.close()
        await proxy.wait_until_idle()
        assert proxy.counters.upstream_waiting == 1
        await served.send(OK)
        assert (await served.head()).startswith(b"GET /2 ")


async def test_every_waiting_request_fails_when_navidrome_is_down(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, limits=limits_with(max_upstream_connections=1)) as proxy:
        await navidrome.stop_listening()
        clients = [await proxy.client() for _ in range(4)]
        for client in clients:
            await client.send(get().encode())
        for client in clients:
            assert (await client.read_response()).status == 502
        assert proxy.failures == {"connect_failed": 4}
        assert proxy.recorded.upstream == ["down"]


async def test_up_and_down_are_reported_once_per_change() -> None:
    async with navidrome_on_a_socket() as stopped:
        port = stopped.address.port
        async with start_proxy(stopped) as proxy:
            await stopped.stop_listening()
            for _ in range(3):
                response = await proxy.request(get())
                assert (response.status, response.get("retry-after")) == (502, "5")
            async with navidrome_on_a_socket(port=port) as back:
                first = await one_response(proxy, back)
                for _ in range(2):
                    client = await proxy.client()
                    await client.send(get().encode())
                    await first.head()
                    await first.send(OK)
                    assert (await client.read_response()).body == b"ok"
            assert proxy.recorded.upstream == ["down", "up"]


# (method, target, retried)
_REPEATED = [
    ("GET", "/", True),
    ("HEAD", "/", True),
    ("GET", "/api/song", True),
    ("GET", "/app/", True),
    ("GET", "/rest/getAlbumList2.view?c=x", True),
    ("GET", "/REST/getCoverArt", True),
    ("HEAD", "/rest/stream?id=1", True),
    ("GET", "/rest/download?id=1", True),
    ("GET", "/rest/ping", True),
    ("GET", "/rest/createPlaylist?name=x", False),
    ("GET", "/rest/scrobble?id=1", False),
    ("GET", "/rest/startScan", False),
    ("GET", "/rest/star?id=1", False),
    ("GET", "/REST/scrobble?id=1", False),
    ("GET", "/rest/deleteUser", False),
    ("GET", "/rest/", False),
    ("POST", "/api/x", False),
    ("PUT", "/api/x", False),
    ("PATCH", "/api/x", False),
    ("DELETE", "/api/x", False),
    ("OPTIONS", "/api/x", False),
]


@pytest.mark.parametrize(("method", "target", "repeated"), _REPEATED)
async def test_a_safe_request_on_a_stale_connection_is_retried_once(
    proxy: RunningProxy, navidrome: Navidrome, method: str, target: str, repeated: bool
) -> None:
    served = await one_response(proxy, navidrome)
    client = await proxy.client()
    await client.send(build_request(method, target).encode())
    head = await served.head()
    served.reset()
    if not repeated:
        assert (await client.read_response(method)).status == 502
        assert proxy.counters.retries == 0
        assert navidrome.count == 1
        return
    again, second = await navidrome.requests()
    assert second == head
    again.reset()
    assert (await client.read_response(method)).status == 502, "only once"
    assert proxy.counters.retries == 1
    assert navidrome.count == 2


@pytest.mark.parametrize("framing", ["Content-Length: 1", "Transfer-Encoding: chunked"])
async def test_a_get_with_a_body_is_not_retried(
    proxy: RunningProxy, navidrome: Navidrome, framing: str
) -> None:
    served = await one_response(proxy, navidrome)
    client = await proxy.client()
    await client.send(build_request("GET", "/", framing).encode())
    await served.head()
    served.reset()
    assert (await client.read_response()).status == 502
    assert navidrome.count == 1


async def test_no_request_is_retried_once_a_byte_of_the_response_was_received(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    served = await one_response(proxy, navidrome)
    client = await proxy.client()
    await client.send(get().encode())
    await served.head()
    await served.send(b"H")
    served.close()
    assert (await client.read_response()).status == 502
    assert navidrome.count == 1


async def test_no_request_is_retried_on_a_new_connection(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(get().encode())
    served, _ = await navidrome.requests()
    served.close()
    assert (await client.read_response()).status == 502
    assert navidrome.count == 1


async def test_a_retried_request_gets_its_complete_response(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    served = await one_response(proxy, navidrome)
    client = await proxy.client()
    await client.send(get("/1").encode() + get("/2").encode())
    await served.head()
    served.finish()
    again, head = await navidrome.requests()
    assert head.startswith(b"GET /1 ")
    await again.send(OK)
    assert (await again.head()).startswith(b"GET /2 ")
    await again.send(OK)
    assert [(await client.read_response()).body for _ in range(2)] == [b"ok"] * 2


async def test_a_pool_can_have_its_own_limit(proxy: RunningProxy, navidrome: Navidrome) -> None:
    pool = UpstreamPool(proxy.plane, navidrome.address, max_connections=1)
    first, second = Waiter(), Waiter()
    pool.acquire(first)
    pool.acquire(second)
    upstream = await first.ready
    await proxy.wait_until_idle()
    assert navidrome.count == 1
    assert not second.ready.done()
    pool.release(upstream)
    assert await second.ready is upstream
    pool.release(upstream)
    pool.close()


class Waiter:
    """Waits for a connection of a pool."""

    def __init__(self) -> None:
        self.ready: asyncio.Future[Upstream] = asyncio.get_running_loop().create_future()

    def connection_ready(self, upstream: Upstream) -> None:
        self.ready.set_result(upstream)

    def connection_failed(self, failure: Failure) -> None:
        raise AssertionError(failure)


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Prevent this process from opening more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 64, hard))
    try:
        while True:
            try:
                taken.append(os.dup(0))
            except OSError:
                break
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


async def test_a_lack_of_file_descriptors_is_not_reported_as_navidrome_down(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await until(lambda: proxy.counters.client_connections == 1)
    with no_descriptors_left():
        response = await client.request(get())
    assert (response.status, response.get("retry-after")) == (503, "5")
    assert proxy.failures == {"descriptors_exhausted": 1}
    assert proxy.recorded.upstream == []
    again = await proxy.client()
    await again.send(get().encode())
    served, _ = await navidrome.requests()
    await served.send(OK)
    assert (await again.read_response()).body == b"ok"


async def test_connections_to_navidrome_have_tcp_keepalive(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(get().encode())
    served, _ = await navidrome.requests()
    (connection,) = proxy.plane.connections
    assert isinstance(connection, ClientConnection) and connection.handler is not None
    upstream = connection.handler.upstream
    assert upstream is not None
    sock = upstream._transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == IDLE_SECONDS
    await served.send(OK)
    await client.read_response()
