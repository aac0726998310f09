"""Navidrome's responses at the client: framed by method, status and fields (RFC 9112 §6.3)."""

from __future__ import annotations

import pytest

from tests.support.http_client import Client, build_request, get
from tests.support.raw_connection import two_piece_splits
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_navidrome import OK, Navidrome, Served

HTTP10_GET = "GET / HTTP/1.0\r\nHost: h\r\n\r\n"


async def start_request(
    proxy: RunningProxy, navidrome: Navidrome, head: str = ""
) -> tuple[Client, Served]:
    client = await proxy.client()
    await client.send((head or get()).encode())
    served, _ = await navidrome.requests()
    return client, served


RESPONSES = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\nhello",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\nA: b\r\n\r\n",
    "interim": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("kind", RESPONSES)
async def test_a_response_split_at_every_byte_is_forwarded_completely(
    proxy: RunningProxy, navidrome: Navidrome, kind: str
) -> None:
    client, served = await start_request(proxy, navidrome)
    for number, pieces in enumerate(two_piece_splits(RESPONSES[kind])):
        if number:
            await client.send(get().encode())
            await served.head()
        await served.send(*pieces)
        if kind == "interim":
            hint = await client.read_response()
            assert (hint.status, hint.get("link")) == (103, "</a>")
        response = await client.read_response()
        assert (response.status, response.body) == (200, b"hello")
    assert navidrome.count == 1


@pytest.mark.parametrize(
    ("method", "response", "framing"),
    [
        ("HEAD", b"200 OK\r\nContent-Length: 5", {"content-length": "5"}),
        ("HEAD", b"200 OK\r\nTransfer-Encoding: chunked", {"transfer-encoding": "chunked"}),
        ("HEAD", b"200 OK", {}),
        ("GET", b"204 No Content", {}),
        ("GET", b"204 No Content\r\nContent-Length: 5", {}),
        ("GET", b"204 No Content\r\nTransfer-Encoding: chunked", {}),
        ("GET", b"304 Not Modified", {}),
        ("GET", b"304 Not Modified\r\nContent-Length: 5", {"content-length": "5"}),
        ("GET", b"304 Not Modified\r\nTransfer-Encoding: chunked", {}),
    ],
)
async def test_these_responses_have_no_body_and_both_connections_are_kept_alive(
    proxy: RunningProxy, navidrome: Navidrome, method: str, response: bytes, framing: dict[str, str]
) -> None:
    client, served = await start_request(proxy, navidrome, build_request(method, "/"))
    await served.send(b"HTTP/1.1 " + response + b"\r\n\r\n")
    got = await client.read_response(method)
    names = ("content-length", "transfer-encoding", "connection")
    assert {name: value for name, value in got.fields if name in names} == framing
    await client.send(get().encode())
    await served.head()
    await served.send(OK)
    assert (await client.read_response()).body == b"ok"
    assert navidrome.count == 1


async def test_a_body_until_close_is_chunked_for_an_http_1_1_client(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client, served = await start_request(proxy, navidrome)
    await served.send(b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo")
    served.finish()
    response = await client.read_response()
    assert (response.body, response.get("transfer-encoding")) == (b"hello", "chunked")
    assert response.get("connection") is None
    await client.send(get().encode())
    again, _ = await navidrome.requests()
    await again.send(OK)
    assert (await client.read_response()).body == b"ok"


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ],
)
async def test_an_http_1_0_client_gets_no_chunks_and_a_close_at_the_end(
    proxy: RunningProxy, navidrome: Navidrome, response: bytes
) -> None:
    head = HTTP10_GET.replace("\r\n\r\n", "\r\nConnection: keep-alive\r\n\r\n")
    client, served = await start_request(proxy, navidrome, head)
    await served.send(response)
    served.finish()
    got = await client.read_response()
    assert (got.body, got.get("connection")) == (b"hello", "close")
    assert got.get("transfer-encoding") is None


async def test_interim_responses_are_not_forwarded_to_an_http_1_0_client(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client, served = await start_request(proxy, navidrome, HTTP10_GET)
    await served.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)
    assert (await client.read_response()).status == 200


@pytest.mark.parametrize(("count", "status"), [(16, 200), (17, 502)])
@pytest.mark.parametrize("interim", [b"HTTP/1.1 100 \r\n\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
@pytest.mark.parametrize("in_one_piece", [True, False])
async def test_more_than_16_interim_responses_are_a_502(
    proxy: RunningProxy,
    navidrome: Navidrome,
    count: int,
    status: int,
    interim: bytes,
    in_one_piece: bool,
) -> None:
    client, served = await start_request(proxy, navidrome)
    pieces = [*[interim] * count, OK]
    await served.send(*([b"".join(pieces)] if in_one_piece else pieces))
    if b"103" in interim:
        for _ in range(16):
            assert (await client.read_response()).status == 103
    assert (await client.read_response()).status == status


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n",
        b"HTTP/1.1 099 Odd\r\n\r\n",
        b"HTTP/1.1 600 Odd\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 O\x01K\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70000,
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70000 + b"\r\n\r\n",
    ],
    ids=range(20),
)
async def test_an_invalid_response_becomes_a_502_and_its_connection_is_closed(
    proxy: RunningProxy, navidrome: Navidrome, response: bytes
) -> None:
    client, served = await start_request(proxy, navidrome)
    await served.send(response)
    got = await client.read_response()
    assert (got.status, got.get("retry-after")) == (502, "5")
    await served.wait_closed()
    assert [(failure, status) for failure, status, _ in proxy.recorded.failures] == [
        ("upstream_response_malformed", 502)
    ]
    assert proxy.recorded.failures[0][2] == got.get("x-request-id")


CUT = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
    "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nhello",
    "last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX",
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", CUT)
async def test_a_truncated_body_never_ends_cleanly(
    proxy: RunningProxy, navidrome: Navidrome, kind: str, old: bool
) -> None:
    client, served = await start_request(proxy, navidrome, HTTP10_GET if old else "")
    await served.send(CUT[kind])
    await client.read_response_head()
    if kind != "bad chunk":
        served.close()
    if kind == "length" or not old:
        # The framing shows that data is missing, whether or not the reset arrives.
        try:
            rest = await client.read_to_end()
        except ConnectionError:
            rest = bytes(client.received).partition(b"\r\n\r\n")[2]
        assert b"0\r\n\r\n" not in rest
    else:
        # Here only the reset distinguishes a truncated body from a complete one.
        await client.read_to_reset()
    assert proxy.failures == {"upstream_response_truncated": 1}
    assert proxy.counters.streams_open == 0


@pytest.mark.parametrize("old", [False, True])
async def test_a_body_until_close_that_is_reset_is_reset_for_the_client(
    proxy: RunningProxy, navidrome: Navidrome, old: bool
) -> None:
    client, served = await start_request(proxy, navidrome, HTTP10_GET if old else "")
    await served.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
    await client.read_response_head()
    served.reset()
    if old:
        await client.read_to_reset()
    else:
        with pytest.raises((EOFError, ConnectionError)):
            await client.chunks()


async def test_a_response_truncated_in_its_head_is_a_502(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client, served = await start_request(proxy, navidrome)
    await served.send(b"HTTP/1.1 200 OK\r\nA: b")
    served.close()
    assert (await client.read_response()).status == 502
    assert proxy.failures == {"upstream_response_truncated": 1}


async def test_end_to_end_fields_are_forwarded_unchanged_and_in_order(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    fields = (
        b"Set-Cookie: a=1; Path=/\r\nVary: Accept\r\nset-cookie: b=2\r\nX-Odd:  spaced \r\n"
        b"Set-Cookie: c=\xfc\r\nAccept-Ranges: bytes\r\nContent-Range: bytes 0-1/10\r\n"
    )
    client, served = await start_request(proxy, navidrome, get("/", "Range: bytes=0-1"))
    assert b"\r\nRange: bytes=0-1\r\n" in bytes(served.received)
    hop = b"Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\nTrailer: T\r\n"
    await served.send(b"HTTP/1.1 206 Partial\r\n" + fields + hop + b"Content-Length: 2\r\n\r\nok")
    response = await client.read_response()
    assert response.head == b"HTTP/1.1 206 Partial\r\n" + fields + b"Content-Length: 2\r\n\r\n"


async def test_server_sent_events_are_forwarded_as_they_arrive(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client, served = await start_request(proxy, navidrome, get("/api/events"))
    await served.send(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    await client.read_response_head()
    for number in range(5):
        event = b"data: %d\n\n" % number
        await served.send(b"%x\r\n%b\r\n" % (len(event), event))
        assert await client.chunk() == event
    assert proxy.counters.streams_open == 1
    client.close()
    await served.wait_closed()
    await proxy.until_no_client()
    assert proxy.counters.streams_open == 0


async def test_the_client_gets_its_own_http_version(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client, served = await start_request(proxy, navidrome)
    await served.send(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok")
    assert (await client.read_response()).head == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    await client.send(get().encode())
    await served.head()


@pytest.mark.parametrize(
    "pieces", [(b"HTTP/1.1 200 OK\nA: b\n\n",), (b"HTTP/1.1 200 OK\r\nA: b", b"\n")]
)
async def test_a_response_head_with_a_bare_lf_is_a_502_at_once(
    proxy: RunningProxy, navidrome: Navidrome, pieces: tuple[bytes, ...]
) -> None:
    client, served = await start_request(proxy, navidrome)
    await served.send(*pieces)
    assert (await client.read_response()).status == 502
