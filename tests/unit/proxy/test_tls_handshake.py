"""TLS on the listener: unfinished handshakes are counted, have a deadline, and block no other client."""

from __future__ import annotations

import asyncio
import socket

import pytest

from shim.proxy.server import Options
from tests.support.certificates import Certificates
from tests.support.http_client import Client, get
from tests.support.limits import limits_with
from tests.support.raw_connection import run_loop_turns, until
from tests.support.running_proxy import EDGE, UNTRUSTED, RunningProxy, start_proxy
from tests.support.scripted_navidrome import OK, Navidrome

PATIENT = limits_with(request_header_timeout=60.0)


async def wait_closed(client: Client) -> None:
    """Assert that the shim closes this connection, and sends no data but TLS."""
    try:
        left = await client.read_to_end()
    except ConnectionError:
        return
    assert left == b"" or left[:1] == b"\x15", left  # an alert at most (RFC 8446 §6)


async def counted(proxy: RunningProxy, number: int) -> None:
    await until(lambda: proxy.counters.client_connections == number)


async def test_an_unfinished_handshake_is_counted_and_times_out(
    navidrome: Navidrome, certificates: Certificates
) -> None:
    limits = limits_with(request_header_timeout=0.1)
    async with start_proxy(navidrome, tls=certificates.server(), limits=limits) as proxy:
        client = await proxy.client(EDGE)
        await wait_closed(client)
        await counted(proxy, 0)
        assert not proxy.state.connections


@pytest.mark.parametrize(
    "sent", [get().encode(), b"\x00" * 40, b"\x16\x03\x01\x00\x05hello"], ids=["HTTP", "zeros", "not quite"]
)  # fmt: skip
async def test_data_that_is_not_tls_gets_no_http_response(
    navidrome: Navidrome, certificates: Certificates, sent: bytes
) -> None:
    async with start_proxy(navidrome, tls=certificates.server(), limits=PATIENT) as proxy:
        client = await proxy.client(EDGE)
        await client.send(sent)
        await wait_closed(client)
        await counted(proxy, 0)
        assert navidrome.count == 0
        assert proxy.recorded.decided_as == []


async def test_a_client_that_disconnects_before_its_handshake_is_not_counted_any_more(
    navidrome: Navidrome, certificates: Certificates
) -> None:
    async with start_proxy(navidrome, tls=certificates.server(), limits=PATIENT) as proxy:
        clients = [await proxy.client(EDGE) for _ in range(5)]
        await counted(proxy, 5)
        for client in clients:
            client.close()
        await counted(proxy, 0)


async def test_unfinished_handshakes_of_untrusted_peers_leave_connections_for_the_edge(
    navidrome: Navidrome, certificates: Certificates
) -> None:
    limits = limits_with(request_header_timeout=60.0, max_connections=8)
    async with start_proxy(navidrome, tls=certificates.server(), limits=limits) as proxy:
        untrusted = [await proxy.client(UNTRUSTED) for _ in range(4)]
        await counted(proxy, 4)
        await wait_closed(await proxy.client(UNTRUSTED))
        assert proxy.counters.clients_rejected == 1
        await counted(proxy, 4)
        await _served(proxy, navidrome, certificates, EDGE)
        assert len(untrusted) == 4


async def test_a_connection_replaces_its_handshake_in_the_count(
    navidrome: Navidrome, certificates: Certificates
) -> None:
    limits = limits_with(request_header_timeout=60.0, max_connections=2)
    async with start_proxy(navidrome, tls=certificates.server(), limits=limits) as proxy:
        for source in (UNTRUSTED, EDGE):  # of two, an untrusted peer can have one
            await _served(proxy, navidrome, certificates, source)
            await counted(proxy, 0)
        handshake = await proxy.client(EDGE)
        await counted(proxy, 1)
        await _served(proxy, navidrome, certificates, EDGE)
        assert proxy.counters.clients_rejected == 0
        handshake.close()


@pytest.mark.parametrize("later", [0, 50])
async def test_a_shutdown_does_not_wait_for_handshakes(
    navidrome: Navidrome, certificates: Certificates, later: int
) -> None:
    async with start_proxy(navidrome, tls=certificates.server(), limits=PATIENT) as proxy:
        client = await proxy.client(EDGE)
        await counted(proxy, 1)
        await run_loop_turns(later)
        for connection in list(proxy.state.connections):
            connection.shutdown()
        await wait_closed(client)
        await counted(proxy, 0)


async def test_data_that_arrives_with_the_end_of_the_handshake_is_read(
    navidrome: Navidrome, certificates: Certificates
) -> None:
    async with start_proxy(navidrome, tls=certificates.server(), limits=PATIENT) as proxy:
        for _ in range(5):
            await _served(proxy, navidrome, certificates, EDGE)
        await counted(proxy, 0)


async def test_a_new_certificate_is_used_from_the_next_handshake_on(
    navidrome: Navidrome, certificates: Certificates
) -> None:
    async with start_proxy(navidrome, tls=certificates.server(), limits=PATIENT) as proxy:
        await _served(proxy, navidrome, certificates, EDGE)
        proxy.plane.apply_options(Options())
        await wait_closed(await proxy.client(EDGE))
        proxy.plane.apply_options(Options(tls=certificates.server()))
        await _served(proxy, navidrome, certificates, EDGE)


async def _served(
    proxy: RunningProxy, navidrome: Navidrome, certificates: Certificates, source: str
) -> None:
    """Assert that a client with TLS gets a response, and disconnect."""
    host, port = proxy.address
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((source, 0))
    await loop.sock_connect(sock, (host, port))
    reader, writer = await asyncio.open_connection(
        sock=sock, ssl=certificates.client(), server_hostname="127.0.0.1"
    )
    writer.write(get("/app/", "X-authentik-username: ada", "Connection: close").encode())
    served, head = await navidrome.requests()
    assert (b"\r\nRemote-User: ada\r\n" in head) is (source == EDGE)
    await served.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    served.close()
    assert (await reader.read()).endswith(b"ok")
    writer.close()
