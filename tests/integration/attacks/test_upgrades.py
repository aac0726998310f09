"""Data after a handshake, and upgrades to other protocols."""

from __future__ import annotations

import pytest

from tests.support.recorder import Recorder
from tests.support.shim_process import (
    HOST,
    Shim,
    assert_no_identity,
    assert_rejected,
    edge_address,
    read_to_the_end,
    untrusted_address,
)

HANDSHAKE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
SECOND = (
    b"GET /rest/getUsers?v=1&c=smuggled HTTP/1.1\r\n"
    b"Host: music.example.com\r\nRemote-User: navidrome-shim\r\n\r\n"
)


def handshake(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{HANDSHAKE}".encode()


@pytest.mark.parametrize("path", ["/api/translation", "/jellyfin/Users", "/rest/ping"])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "before the answer"])
def test_data_after_a_handshake_that_navidrome_rejects_is_dropped(
    shim: Shim, upstream: Recorder, path: str, at_once: bool
) -> None:
    untrusted_peer = untrusted_address()
    with shim.connect(untrusted_peer) as client:
        if at_once:
            client.sendall(handshake(path) + SECOND)
        else:
            client.sendall(handshake(path))
            upstream.wait_for(path)
            client.sendall(SECOND)
        response = read_to_the_end(client)
    assert response.statuses == [200]
    assert response.closed
    shim.decided(untrusted_peer, upstream)
    (received,) = upstream.requested
    assert received.target == path
    assert upstream.incomplete == []


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "before the answer"])
def test_no_data_is_sent_upstream_before_navidromes_101(
    shim: Shim, upstream: Recorder, at_once: bool
) -> None:
    with shim.connect(untrusted_address()) as client:
        if at_once:
            client.sendall(handshake("/jellyfin/socket") + b"early")
        else:
            client.sendall(handshake("/jellyfin/socket"))
            upstream.wait_for("/jellyfin/socket")
            client.sendall(b"early")
        response = b""
        while b"\r\n\r\n" not in response:
            response += client.recv(65536)
        assert response.startswith(b"HTTP/1.1 101 ")
        # The upstream waited before it switched protocols, and nothing had arrived.
        assert upstream.incomplete == []
        while b"echo early" not in response:
            response += client.recv(65536)
        client.sendall(b"late")
        while b"echo late" not in response:
            response += client.recv(65536)
    (received,) = upstream.requested
    assert_no_identity(received)


@pytest.mark.parametrize(
    "fields",
    [
        "Connection: Upgrade\r\nUpgrade: h2c, websocket",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c",
        "Connection: Upgrade\r\nUpgrade: websocket",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x",
    ],
)
@pytest.mark.parametrize("listed", [True, False], ids=["the edge", "anyone"])
def test_an_incomplete_handshake_is_rejected(
    shim: Shim, upstream: Recorder, fields: str, listed: bool
) -> None:
    peer = edge_address() if listed else untrusted_address()
    text = f"GET /app/ HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n\r\n".encode()
    response = shim.request(text + SECOND, peer)
    assert_rejected(shim, upstream, response, peer, 400, "upgrade_rejected")


@pytest.mark.parametrize(
    "fields",
    [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ",
        "Connection: upgrade\r\nUpgrade: h2c",
        "Connection: Upgrade\r\nUpgrade:",
        "Connection: Upgrade\r\nUpgrade: TLS/1.0",
    ],
)
@pytest.mark.parametrize("listed", [True, False], ids=["the edge", "anyone"])
def test_an_upgrade_to_h2c_or_another_protocol_is_ignored_and_the_rest_is_a_request(
    shim: Shim, upstream: Recorder, fields: str, listed: bool
) -> None:
    peer = edge_address() if listed else untrusted_address()
    text = f"GET /app/ HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n\r\n".encode()
    last = SECOND.replace(b"Host", b"Connection: close\r\nHost")
    assert shim.request(text + last, peer).statuses == [200, 200]
    shim.decided(peer, upstream)
    assert [received.target for received in upstream.requested] == [
        "/app/",
        "/rest/getUsers?v=1&c=smuggled",
    ]
    for received in upstream.requested:
        assert_no_identity(received)
        for name in ("Upgrade", "HTTP2-Settings", "Connection"):
            assert received.values(name) == []


def test_a_handshake_with_a_body_is_rejected(shim: Shim, upstream: Recorder) -> None:
    for framing in (f"Content-Length: {len(SECOND)}", "Transfer-Encoding: chunked"):
        edge = edge_address()
        text = handshake("/jellyfin/socket").replace(b"\r\n\r\n", f"\r\n{framing}\r\n\r\n".encode())
        response = shim.request(text + SECOND, edge)
        assert_rejected(shim, upstream, response, edge, 400, "upgrade_rejected")


def test_an_upgrade_without_the_connection_option_is_dropped(
    shim: Shim, upstream: Recorder
) -> None:
    text = f"GET /app/ HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: h2c\r\nConnection: close\r\n\r\n"
    assert shim.request(text.encode(), edge_address()).statuses == [200]
    (received,) = upstream.requested
    assert received.values("Upgrade") == received.values("Connection") == []
