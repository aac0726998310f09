"""Responses of each kind of Navidrome, directly and through the shim with a device password: the same."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.integration.devices.conftest import RunningShim, envelope, token

pytestmark = pytest.mark.asyncio(loop_scope="module")
QUERY = "v=1.16.1&c=x&f=json"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
_CHANGES = {"date", "x-request-id", "set-cookie"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secret(songs: RunningShim) -> str:
    return (await songs.add("uid-alice")).secret


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def song(songs: RunningShim, secret: str) -> str:
    found = await songs.rest("search3", query="Long", u="alice", p=secret)
    song_id: str = envelope(found)["searchResult3"]["song"][0]["id"]
    return song_id


def _shown(response: httpx.Response) -> dict[str, Any]:
    headers = {
        name: response.headers.get_list(name)
        for name in response.headers
        if name.lower() not in _HOP_BY_HOP | _CHANGES
    }
    cookies = [each.partition("=")[0] for each in response.headers.get_list("set-cookie")]
    length = response.headers.get("content-length") if response.request.method == "HEAD" else None
    content = response.content
    _, _, boundary = response.headers.get("content-type", "").partition("boundary=")
    if boundary:  # it is random
        headers["content-type"] = ["multipart/byteranges"]
        content = content.replace(boundary.encode(), b"boundary")
    return {
        "status": response.status_code,
        "headers": headers,
        "cookies": cookies,
        "length": length,
        "content": content,
    }


@pytest.mark.parametrize(
    ("method", "call", "headers"),
    [
        ("GET", "ping", {}),
        ("GET", "ping", {"Accept-Encoding": "gzip"}),
        ("GET", "ping", {"Accept-Encoding": "deflate"}),
        ("HEAD", "ping", {"Accept-Encoding": "identity"}),
        ("GET", "ping?f=xml", {}),
        ("GET", "ping?f=jsonp&callback=cb", {"Accept-Encoding": "gzip"}),
        ("GET", "ping?f=jsonp&callback=1a", {}),
        ("GET", "ping?a=%zz", {}),
        ("GET", "nonsense", {}),
        ("GET", "createUser", {}),
        ("GET", "search", {}),
        ("GET", "getSong?id=none", {}),
        ("GET", "stream", {}),
        ("GET", "stream?id={song}", {}),
        ("HEAD", "stream?id={song}", {}),
        ("GET", "stream?id={song}", {"Range": "bytes=0-99"}),
        ("HEAD", "stream?id={song}", {"Range": "bytes=0-99"}),
        ("GET", "stream?id={song}", {"Range": "bytes=-5"}),
        ("GET", "stream?id={song}", {"Range": "bytes=0-3,8-11"}),
        ("GET", "stream?id={song}", {"Range": "bytes=99999999-"}),
        ("GET", "stream?id={song}", {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"}),
        ("GET", "stream?id={song}", {"If-Unmodified-Since": "Fri, 01 Jan 2010 00:00:00 GMT"}),
        ("GET", "download?id={song}", {"Accept-Encoding": "gzip"}),
        ("GET", "getCoverArt?id={song}&size=64", {}),
        ("GET", "getCoverArt?id={song}&size=64", {"If-None-Match": "*"}),
        ("GET", "getCoverArt?id=none", {}),
        ("GET", "getCoverArt", {}),
        ("GET", "scrobble?id={song}", {}),
        ("GET", "ping", {"Origin": "https://app.example"}),
        ("DELETE", "ping", {}),
    ],
)
async def test_a_query(
    songs: RunningShim, secret: str, song: str, method: str, call: str, headers: dict[str, str]
) -> None:
    path, _, more = call.format(song=song).partition("?")
    own = f"{QUERY}&{more}" if "f=" not in more else f"v=1&c=x&{more}"
    direct, shown = await _both(songs, method, path, own, token(secret, "s"), headers, b"")
    assert shown == direct


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize("call", ["ping", "getUser?username=alice", "scrobble", "nonsense"])
async def test_a_form(songs: RunningShim, secret: str, method: str, call: str) -> None:
    path, _, more = call.partition("?")
    credentials = httpx.QueryParams({"u": "alice", **token(secret, "form")})
    body = f"{QUERY}&{more}&".encode()
    direct = await _direct(songs, method, f"/rest/{path}", FORM, body)
    through = await songs.client.request(
        method, f"/rest/{path}", headers=FORM, content=body + str(credentials).encode()
    )
    assert _shown(through) == _shown(direct)


async def _both(
    songs: RunningShim,
    method: str,
    path: str,
    query: str,
    credentials: dict[str, str],
    headers: dict[str, str],
    body: bytes,
) -> tuple[dict[str, Any], dict[str, Any]]:
    direct = await _direct(songs, method, f"/rest/{path}?{query}", headers, body)
    added = httpx.QueryParams({"u": "alice", **credentials})
    through = await songs.client.request(
        method, f"/rest/{path}?{query}&{added}", headers=headers, content=body
    )
    return _shown(direct), _shown(through)


async def _direct(
    songs: RunningShim, method: str, target: str, headers: dict[str, str], body: bytes
) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        url = songs.harness.server.upstream + target
        return await client.request(
            method, url, headers={"Remote-User": "alice", **headers}, content=body
        )


def _exchange(port: int, *pieces: bytes) -> bytes:
    """Send each piece, the later ones after the first bytes of a response; returns all until the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        received = b""
        for number, piece in enumerate(pieces):
            if number:
                received += connection.recv(65536)
            connection.sendall(piece)
        while more := connection.recv(65536):
            received += more
        return received


async def test_one_connection_carries_errors_forms_and_streams(
    songs: RunningShim, secret: str, song: str
) -> None:
    credentials = f"u=alice&p={secret}&{QUERY}".encode()
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(credentials), credentials)
    form = b"Host: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    received = await asyncio.to_thread(
        _exchange,
        songs.port,
        b"GET /rest/ping?%b HTTP/1.1\r\nHost: x\r\n\r\n" % credentials
        + b"GET /rest/nonsense?%b HTTP/1.1\r\nHost: x\r\n\r\n" % credentials
        + b"POST /rest/ping HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n%b" % (form, chunks)
        + b"GET /rest/stream?%b&id=%b HTTP/1.1\r\nHost: x\r\nRange: bytes=0-3\r\n\r\n"
        % (credentials, song.encode())
        + b"GET /rest/ping?u=alice&p=wrong&%b HTTP/1.1\r\nHost: x\r\n\r\n" % QUERY.encode()
        + b"HEAD /rest/ping?%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % credentials,
    )
    statuses = [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 404, 200, 206, 200, 200]
    assert received.count(b'"status":"ok"') == 2
    assert received.count(b'"code":40') == 1
    assert b"\r\n\r\nRIFF" in received


async def test_a_form_that_waits_for_100_continue(songs: RunningShim, secret: str) -> None:
    body = f"u=alice&p={secret}&{QUERY}".encode()
    head = (
        b"POST /rest/ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n"
        b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    received = await asyncio.to_thread(_exchange, songs.port, head, body)
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert b'"status":"ok"' in received


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("size", [1000, 300_000, 8_000_000])
async def test_a_response_before_the_end_of_an_upload_reaches_the_client(
    songs: RunningShim, size: int, chunked: bool
) -> None:
    """Navidrome responds without the body, and closes the connection if the body is long."""
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    head = f"POST /api/share HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{framing}\r\n\r\n"
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size) if chunked else b"x" * size
    received = await asyncio.to_thread(_exchange, songs.port, head.encode() + body)
    assert received.startswith(b"HTTP/1.1 401 ")
    assert received.endswith(b'{"error":"Not authenticated"}')
    assert (await songs.client.get("/ping")).status_code == 200
