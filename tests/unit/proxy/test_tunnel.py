"""WebSockets: no data passes before Navidrome has accepted, all data after."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from websockets.asyncio.client import unix_connect
from websockets.asyncio.server import ServerConnection, unix_serve

from shim.proxy.pool import UpstreamAddress
from shim.trust.reasons import Reason
from tests.support.http_client import Client, build_request, get
from tests.support.limits import limits_with
from tests.support.running_proxy import RunningProxy, start_proxy
from tests.support.scripted_navidrome import OK, Navidrome, Served, navidrome_on_a_socket

HANDSHAKE = (
    "Connection: keep-alive, Upgrade",
    "Upgrade: WebSocket",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)
SWITCHING_PROTOCOLS = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: x\r\n\r\n"
)


async def tunnel(proxy: RunningProxy, navidrome: Navidrome) -> tuple[Client, Served]:
    client = await proxy.client()
    await client.send(get("/socket", *HANDSHAKE).encode())
    served, _ = await navidrome.requests()
    await served.send(SWITCHING_PROTOCOLS)
    assert (await client.read_response()).status == 101
    return client, served


async def test_no_data_behind_the_head_is_forwarded_before_the_101(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(get("/socket", *HANDSHAKE).encode() + b"early")
    served, head = await navidrome.requests()
    assert b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" in head
    assert b"\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" in head
    await client.send(b" bird")
    await proxy.wait_until_idle()
    assert bytes(served.received) == head
    await served.send(SWITCHING_PROTOCOLS + b"hello")
    response = await client.read_response()
    assert (response.get("connection"), response.get("upgrade")) == ("Upgrade", "websocket")
    assert response.get("sec-websocket-accept") == "x"
    assert await served.read_exactly(10) == b"early bird"
    assert await client.read_exactly(5) == b"hello"
    assert proxy.counters.tunnels_open == 1
    await client.send(b"\x00\xff" * 50_000)
    assert await served.read_exactly(100_000) == b"\x00\xff" * 50_000
    await served.send(b"\r\n\r\n" * 50_000)
    assert await client.read_exactly(200_000) == b"\r\n\r\n" * 50_000
    client.close()
    await served.wait_closed()
    await proxy.until_no_client()
    assert proxy.counters.tunnels_open == 0


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (OK, 200),
        (
            b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nno",
            426,
        ),
        (b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n", 403),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", 502),
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n", 502),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket, h2c\r\n\r\n", 502),
        (SWITCHING_PROTOCOLS.replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\n\r\n"), 502),
        (SWITCHING_PROTOCOLS.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"), 502),
    ],
)
async def test_any_other_response_closes_both_connections_and_drops_buffered_data(
    proxy: RunningProxy, navidrome: Navidrome, response: bytes, status: int
) -> None:
    client = await proxy.client()
    smuggled = get("/api/user", "Remote-User: admin").encode()
    await client.send(get("/socket", *HANDSHAKE).encode() + smuggled)
    served, head = await navidrome.requests()
    await served.send(response)
    got = await client.read_response()
    assert (got.status, got.get("connection")) == (status, "close")
    await client.send(smuggled)
    assert await client.read_to_end() == b""
    await served.wait_closed()
    assert bytes(served.received) == head
    assert navidrome.count == 1


@pytest.mark.parametrize(
    ("method", "lines"),
    [
        ("GET", ("Connection: Upgrade", *HANDSHAKE[1:3])),
        ("GET", ("Connection: Upgrade", *HANDSHAKE[1:3], "Sec-WebSocket-Version: 8")),
        ("GET", ("Connection: Upgrade", HANDSHAKE[1], HANDSHAKE[3])),
        ("GET", ("Connection: Upgrade", *HANDSHAKE[1:], "Content-Length: 1")),
        ("GET", ("Connection: Upgrade", *HANDSHAKE[1:], "Transfer-Encoding: chunked")),
        ("POST", HANDSHAKE),
    ],
)
async def test_an_incomplete_handshake_is_rejected_and_closed(
    proxy: RunningProxy, navidrome: Navidrome, method: str, lines: tuple[str, ...]
) -> None:
    client = await proxy.client()
    response = await client.request(build_request(method, "/socket", *lines))
    assert (response.status, response.get("connection")) == (400, "close")
    assert await client.read_to_end() == b""
    assert navidrome.count == 0
    assert [reason for reason, _ in proxy.recorded.decided_as] == [Reason.UPGRADE_REJECTED]


async def test_upgrade_without_the_connection_option_is_ignored(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(get("/", "Upgrade: h2c").encode())
    served, head = await navidrome.requests()
    assert b"pgrade" not in head
    await served.send(OK)
    assert (await client.read_response()).status == 200


async def test_data_sent_before_the_disconnect_is_forwarded(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client, served = await tunnel(proxy, navidrome)
    # More than the kernel buffers for a reader that sleeps: the rest is in the shim when the FIN
    # arrives.
    sent = 0
    while not proxy.held_for_navidrome:
        await client.send(bytes(1 << 12))
        sent += 1 << 12
    assert not proxy.reading_paused
    client.finish()
    await proxy.wait_until_idle()
    assert len(await served.read_to_end()) == sent


async def test_a_tunnel_closed_by_navidrome_is_closed_for_the_client(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client, served = await tunnel(proxy, navidrome)
    await served.send(b"bye")
    served.finish()
    assert await client.read_to_end() == b"bye"


async def test_a_tunnel_has_no_deadline_but_that_of_a_stalled_reader(
    navidrome: Navidrome,
) -> None:
    async with start_proxy(navidrome, limits=limits_with(send_timeout=20)) as proxy:
        client, served = await tunnel(proxy, navidrome)
        proxy.pass_time(100_000)
        await _fill(proxy, client)
        await served.read_exactly(1 << 16)
        while proxy.reading_paused:
            await served.read_some()
        proxy.pass_time(100_000)
        await client.send(b"more")
        await served.read_until(b"more")
        await _fill(proxy, client)
        proxy.pass_time(21)
        await served.wait_closed()
        await proxy.until_no_client()


async def _fill(proxy: RunningProxy, client: Client) -> None:
    """Send until the shim stops reading."""
    for _ in range(4096):
        if proxy.reading_paused:
            return
        await client.send(bytes(1 << 16))
    raise AssertionError("the shim continues to read, though its data is not read")


async def test_buffered_data_does_not_resume_a_paused_tunnel(tmp_path: Path) -> None:
    # A Unix socket buffers little for a reader that sleeps, so the buffered data is too much for
    # it.
    async with (
        navidrome_on_a_socket(tmp_path / "navidrome.sock") as navidrome,
        start_proxy(navidrome, limits=limits_with(max_buffered_bytes=1 << 20)) as proxy,
    ):
        client = await proxy.client()
        await client.send(get("/socket", *HANDSHAKE).encode())
        served, _ = await navidrome.requests()
        await client.send(*(bytes(50_000) for _ in range(12)))
        await proxy.wait_until_idle()
        await served.send(SWITCHING_PROTOCOLS)
        assert (await client.read_response()).status == 101
        await _fill(proxy, client)


async def test_the_websockets_library_works_on_both_sides(tmp_path: Path) -> None:
    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    there, here = tmp_path / "navidrome.sock", tmp_path / "shim.sock"
    async with unix_serve(echo, str(there), max_size=None):
        navidrome = Navidrome(UpstreamAddress(path=str(there)))
        async with (
            start_proxy(navidrome, path=here),
            asyncio.timeout(5),
            unix_connect(str(here), uri="ws://music.test/socket", max_size=None) as socket,
        ):
            for message in ("héllo", b"\x00" * 300_000, "", "x" * 70_000):
                await socket.send(message)
                assert await socket.recv() == message
            await socket.close(1000, "done")
            assert socket.close_code == 1000
