"""Parsing of requests: split anywhere, pipelined, in both HTTP versions, with every kind of body."""

from __future__ import annotations

import pytest

from shim.trust.reasons import Reason
from tests.support.http_client import build_request, get
from tests.support.raw_connection import two_piece_splits
from tests.support.running_proxy import EDGE, UNTRUSTED, RunningProxy
from tests.support.scripted_navidrome import OK, Navidrome

CREATED = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"


async def test_a_head_split_at_every_byte_is_parsed_as_in_one_piece(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    head = get("/api/song?_end=5", "Cookie: a=b", "Accept: */*").encode()
    await client.send(head)
    served, whole = await navidrome.requests()
    await served.send(OK)
    assert (await client.read_response()).body == b"ok"
    for pieces in two_piece_splits(head):
        await client.send(*pieces)
        assert await served.head() == whole
        await served.send(OK)
        assert (await client.read_response()).body == b"ok"
    await client.send_each_byte(head)
    assert await served.head() == whole
    assert navidrome.count == 1


@pytest.mark.parametrize(
    ("framing", "body", "sent_on"),
    [
        ("Content-Length: 11", b"hello world", b"hello world"),
        (
            "Transfer-Encoding: chunked",
            b"5;x=y\r\nhello\r\n006\r\n world\r\n0\r\nA: b\r\n\r\n",
            b"hello world",
        ),
    ],
    ids=["length", "chunked"],
)
async def test_a_body_split_at_every_byte_is_forwarded_completely(
    proxy: RunningProxy, navidrome: Navidrome, framing: str, body: bytes, sent_on: bytes
) -> None:
    client = await proxy.client()
    head = build_request("POST", "/api/playlist", framing).encode()
    served = None
    for pieces in two_piece_splits(head + body):
        await client.send(*pieces)
        served = served or await navidrome.accepted()
        got_head = await served.head()
        if framing.startswith("Transfer"):
            assert b"\r\nTransfer-Encoding: chunked\r\n" in got_head
            assert await served.chunks() == sent_on
        else:
            assert b"\r\nContent-Length: 11\r\n" in got_head
            assert await served.read_exactly(11) == sent_on
        await served.send(CREATED)
        assert (await client.read_response()).status == 201
    assert navidrome.count == 1


async def test_chunked_requests_are_framed_again_without_extensions_and_trailers(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    head = build_request("POST", "/api/x", "Transfer-Encoding: chunked", "Trailer: X-Sum")
    await client.send(
        head.encode()
        + b'4;name="a;b"\r\nwiki\r\n00A\r\n0123456789\r\n0\r\nX-authentik-username: admin\r\n\r\n'
    )
    served, got = await navidrome.requests()
    assert b"Trailer" not in got
    assert await served.read_until(b"0\r\n\r\n") == b"e\r\nwiki0123456789\r\n0\r\n\r\n"
    await served.send(OK)
    await client.read_response()
    assert b"authentik" not in served.received


async def test_pipelined_requests_are_answered_in_order_one_at_a_time(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    heads = [get(f"/{number}").encode() for number in range(3)]
    posts = build_request("POST", "/body", "Content-Length: 3").encode() + b"abc"
    await client.send(heads[0] + posts + heads[1] + heads[2])
    served, first = await navidrome.requests()
    assert first.startswith(b"GET /0 ")
    await proxy.wait_until_idle()
    assert bytes(served.received) == first, "the second request waits for the first one's response"
    await served.send(OK)
    assert (await served.head()).startswith(b"POST /body ")
    assert await served.read_exactly(3) == b"abc"
    await served.send(OK)
    for number in (1, 2):
        assert (await served.head()).startswith(b"GET /%d " % number)
        await served.send(OK)
    assert [(await client.read_response()).body for _ in range(4)] == [b"ok"] * 4
    assert navidrome.count == 1


@pytest.mark.parametrize("body", [b"\r\n", b"\r\n\r\n", b"x\r\n\r\n"])
async def test_line_ends_in_a_body_do_not_end_the_head(
    proxy: RunningProxy, navidrome: Navidrome, body: bytes
) -> None:
    client = await proxy.client()
    await client.send(build_request("POST", "/", f"Content-Length: {len(body)}").encode() + body)
    served, _ = await navidrome.requests()
    assert await served.read_exactly(len(body)) == body
    await served.send(OK)
    assert (await client.read_response()).status == 200


async def test_line_ends_after_a_head_without_fields_are_not_part_of_it(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(b"GET / HTTP/1.0\r\n\r\n\r\n")
    served, _ = await navidrome.requests()
    await served.send(OK)
    assert (await client.read_response()).status == 200


async def test_a_thousand_pipelined_requests_do_not_recurse(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 1000)
    served = await navidrome.accepted()
    for _ in range(1000):
        await served.head()
        await served.send(OK)
    for _ in range(1000):
        assert (await client.read_response()).body == b"ok"


async def test_invalid_data_after_a_request_is_rejected_once_and_not_forwarded(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(get().encode() + b"\r\n\r\n" * 1000)
    served, head = await navidrome.requests()
    await served.send(OK)
    assert (await client.read_response()).body == b"ok"
    assert (await client.read_response()).status == 400
    assert await client.read_to_end() == b""
    assert bytes(served.received) == head
    assert [reason for reason, _ in proxy.recorded.decided_as] == [Reason.MALFORMED_HEAD]


@pytest.mark.parametrize(
    ("version", "option", "keep_alive"),
    [
        ("1.1", "", True),
        ("1.1", "Connection: close", False),
        ("1.1", "Connection: Keep-Alive, CLOSE", False),
        ("1.0", "", False),
        ("1.0", "Connection: keep-alive", True),
        ("1.0", "Connection: keep-alive, close", False),
    ],
)
async def test_version_and_connection_options_decide_keep_alive(
    proxy: RunningProxy, navidrome: Navidrome, version: str, option: str, keep_alive: bool
) -> None:
    client = await proxy.client()
    head = f"GET / HTTP/{version}\r\nHost: h\r\n" + (f"{option}\r\n" if option else "") + "\r\n"
    await client.send(head.encode())
    served, got = await navidrome.requests()
    assert got.startswith(b"GET / HTTP/1.1\r\n"), "the shim always sends HTTP/1.1 to Navidrome"
    assert b"Connection" not in got
    await served.send(OK)
    response = await client.read_response()
    option_sent = {"1.0": "keep-alive", "1.1": None}[version] if keep_alive else "close"
    assert response.get("connection") == option_sent
    if keep_alive:
        await client.send(head.encode())
        await served.head()
        await served.send(OK)
        assert (await client.read_response()).body == b"ok"
    else:
        assert await client.read_to_end() == b""


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_these_methods_are_forwarded(
    proxy: RunningProxy, navidrome: Navidrome, method: str
) -> None:
    client = await proxy.client()
    await client.send(build_request(method, "/api/x").encode())
    served, head = await navidrome.requests()
    assert head.startswith(f"{method} /api/x HTTP/1.1\r\n".encode())
    await served.send(OK if method != "HEAD" else b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
    assert (await client.read_response(method)).status == 200


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "PROPFIND", "QUERY", "get", "BREW"])
async def test_other_methods_are_not_implemented(
    proxy: RunningProxy, navidrome: Navidrome, method: str
) -> None:
    assert (await proxy.request(build_request(method, "/"))).status == 501
    assert navidrome.count == 0


_BOTH = "Content-Length: 1\r\nTransfer-Encoding: chunked"


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 9223372036854775808",
        "Content-Length: 00000000000000000001",
        "Content-Length: +1",
        "Content-Length: 1, 1",
        "Content-Length: -1",
        "Content-Length: 0x1",
        "Content-Length:",
        "Content-Length: 1\r\nContent-Length: 1",
        _BOTH,
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: identity",
        "Transfer_Encoding: chunked",
        "Expect: 200-ok",
        "Host: other",
        "X\x01: y",
        "no colon",
        " folded: line",
    ],
)
async def test_an_ambiguous_request_is_rejected_and_closed(
    proxy: RunningProxy, navidrome: Navidrome, lines: str
) -> None:
    client = await proxy.client()
    response = await client.request(
        build_request("POST", "/api/x", *lines.split("\r\n")), b"1\r\n0\r\n\r\n", method="POST"
    )
    assert response.status == 400
    assert response.get("connection") == "close"
    assert await client.read_to_end() == b""
    assert navidrome.count == 0
    assert len(proxy.recorded.decided_as) == 1
    assert proxy.recorded.decided_as[0][1] == response.get("x-request-id")


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: h\r\n\r\n",
        "GET / HTTP/0.9\r\nHost: h\r\n\r\n",
        "GET /\r\nHost: h\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET http://other/ HTTP/1.1\r\nHost: h\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET / HTTP/1.1\nHost: h\n\n",
        "GET / HTTP/1.1\r\nHost: h\nX: y\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
    ],
)
async def test_a_malformed_head_is_rejected_at_once(
    proxy: RunningProxy, navidrome: Navidrome, head: str
) -> None:
    assert (await proxy.request(head)).status == 400
    assert navidrome.count == 0


async def test_the_largest_content_length_is_accepted(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(
        build_request("PUT", "/api/x", "Content-Length: 9223372036854775807").encode()
    )
    _, head = await navidrome.requests()
    assert b"\r\nContent-Length: 9223372036854775807\r\n" in head


@pytest.mark.parametrize("framing", ["Content-Length: 4", "Transfer-Encoding: chunked"])
async def test_a_client_that_expects_100_continue_gets_it_from_the_shim(
    proxy: RunningProxy, navidrome: Navidrome, framing: str
) -> None:
    client = await proxy.client()
    body = b"body" if framing.startswith("C") else b"4\r\nbody\r\n0\r\n\r\n"
    await client.send(build_request("POST", "/api/x", framing, "Expect: 100-continue").encode())
    assert (await client.read_response_head())[0] == 100
    await client.send(body)
    served, head = await navidrome.requests()
    assert b"Expect" not in head, "the shim has responded"
    assert await served.read_exactly(len(body)) == body
    await served.send(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)
    assert (await client.read_response()).status == 200, "Navidrome's own 100 is not a second one"


async def test_no_100_continue_is_sent_if_the_body_has_arrived_or_is_absent(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    head = build_request("POST", "/api/x", "Content-Length: 4", "Expect: 100-continue").encode()
    await client.send(head + b"bo", b"dy")
    served, _ = await navidrome.requests()
    assert await served.read_exactly(4) == b"body"
    await served.send(OK)
    assert (await client.read_response()).status == 200
    await client.send(get("/", "Expect: 100-continue").encode())
    await served.head()
    await served.send(OK)
    assert (await client.read_response()).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"x\r\n",
        b"5 \r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"11111111111111111\r\n",
        b"8000000000000000\r\n",
        b"0\r\nno trailer\r\n\r\n",
        b"0\r\nA: b\n\r\n",
        b"1;" + b"x" * 5000,
        b"0\r\n" + b"A: " + b"b" * 5000,
        b"1;" + b"x" * 4000 + b"\r\nx\r\n" + (b"1;" + b"x" * 4000 + b"\r\nx\r\n") * 4,
        b"0\r\n" + (b"A: " + b"b" * 4000 + b"\r\n") * 5,
    ],
)
async def test_an_invalid_chunked_body_is_rejected_and_its_upstream_request_dropped(
    proxy: RunningProxy, navidrome: Navidrome, body: bytes
) -> None:
    client = await proxy.client()
    await client.send(build_request("POST", "/api/x", "Transfer-Encoding: chunked").encode())
    served, _ = await navidrome.requests()
    await client.send(body)
    assert (await client.read_response()).status == 400
    await served.wait_closed()
    assert b"0\r\n\r\n" not in bytes(served.received), "Navidrome never sees the body end"


@pytest.mark.parametrize("slices", [(b"\r\n", b""), (b"\r", b"\n"), (b"", b"\r\n")])
async def test_one_empty_line_before_a_request_line_is_ignored(
    proxy: RunningProxy, navidrome: Navidrome, slices: tuple[bytes, bytes]
) -> None:
    client = await proxy.client()
    first, second = slices
    await client.send(*filter(None, (first, second + get("/1").encode())))
    served, sent = await navidrome.requests()
    assert sent.startswith(b"GET /1 ")
    await served.send(OK)
    await client.read_response()
    await client.send(b"\r\n" + get("/2").encode())
    assert (await served.head()).startswith(b"GET /2 ")
    await served.send(OK)
    await client.read_response()


async def test_two_empty_lines_before_a_request_line_are_rejected(proxy: RunningProxy) -> None:
    client = await proxy.client()
    await client.send(b"\r\n", b"\r\n", get("/1").encode())
    assert (await client.read_response()).status == 400


async def test_a_tls_handshake_on_the_plain_port_is_closed_and_logged(proxy: RunningProxy) -> None:
    client = await proxy.client()
    await client.send(bytes.fromhex("1603010200010001fc0303") + bytes(500))
    assert await client.read_to_end() == b""
    assert [reason for reason, _ in proxy.recorded.decided_as] == [Reason.MALFORMED_HEAD]


async def test_tls_handshakes_on_the_plain_port_are_logged_once_a_minute_for_each_peer(
    proxy: RunningProxy,
) -> None:
    async def tls_handshake(source: str) -> int:
        client = await proxy.client(source)
        await client.send(bytes.fromhex("1603010200010001fc0303") + bytes(500))
        assert await client.read_to_end() == b""
        return len(proxy.recorded.decided_as)

    assert [await tls_handshake(UNTRUSTED) for _ in range(3)] == [1, 1, 1]
    assert await tls_handshake(EDGE) == 2
    proxy.pass_time(59)
    assert await tls_handshake(UNTRUSTED) == 2
    proxy.pass_time(2)
    assert await tls_handshake(UNTRUSTED) == 3
    assert sum(proxy.counters.requests) == 6
