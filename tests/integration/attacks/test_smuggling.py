"""Request smuggling: one request for the shim that would be two for Navidrome.

In each of them the body, or the data after it, is another request that names the admin.
"""

from __future__ import annotations

import pytest

from tests.support.recorder import Recorder
from tests.support.shim_process import (
    HOST,
    Shim,
    assert_no_identity,
    assert_rejected,
    build_request,
    edge_address,
    untrusted_address,
)

SECOND = (
    b"GET /rest/getUsers?v=1&c=smuggled HTTP/1.1\r\n"
    b"Host: music.example.com\r\nRemote-User: admin\r\n\r\n"
)
N = len(SECOND)
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (N, SECOND)
POST = "POST /rest/ping?v=1&c=first HTTP/1.1"

AMBIGUOUS = {
    "two lengths": ("Content-Length: 0", f"Content-Length: {N}"),
    "two lengths alike": (f"Content-Length: {N}", f"Content-Length: {N}"),
    "a list of lengths": (f"Content-Length: {N}, {N}",),
    "a length and a list": (f"Content-Length: 0, {N}",),
    "a signed length": ("Content-Length: +0",),
    "a negative length": ("Content-Length: -1",),
    "a length in hexadecimal": ("Content-Length: 0x0",),
    "a length beyond 2^63": ("Content-Length: 9223372036854775808",),
    "a length beyond 2^64": ("Content-Length: 18446744073709551616",),
    "an empty length": ("Content-Length:",),
    "length, then chunked": ("Content-Length: 4", "Transfer-Encoding: chunked"),
    "chunked, then length": ("Transfer-Encoding: chunked", "Content-Length: 4"),
    "chunked twice": ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "chunked and identity": ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
    "identity": ("Transfer-Encoding: identity",),
    "gzip": ("Transfer-Encoding: gzip",),
    "gzip, chunked": ("Transfer-Encoding: gzip, chunked",),
    "chunked, gzip": ("Transfer-Encoding: chunked, gzip",),
    "chunked, identity": ("Transfer-Encoding: chunked, identity",),
    ",chunked": ("Transfer-Encoding: ,chunked",),
    "xchunked": ("Transfer-Encoding: xchunked",),
    "chunked with a parameter": ("Transfer-Encoding: chunked;x=1",),
    "chunked in quotes": ('Transfer-Encoding: "chunked"',),
    "an unknown expectation": ("Expect: 100-continue, x", f"Content-Length: {N}"),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
@pytest.mark.parametrize("body", [SECOND, CHUNKED], ids=["as a request", "as chunks"])
def test_ambiguous_framing_is_rejected(
    shim: Shim, upstream: Recorder, case: str, body: bytes
) -> None:
    edge = edge_address()
    response = shim.request(build_request(POST, *AMBIGUOUS[case], body=body), edge)
    assert_rejected(shim, upstream, response, edge, 400, "ambiguous_framing")


MALFORMED: dict[str, bytes] = {
    "a bare LF in the head": b"X: y\nTransfer-Encoding: chunked",
    "a bare LF for every line": b"X: y\nContent-Length: 4\nZ: z",
    "a bare CR": b"X: y\rTransfer-Encoding: chunked",
    "obs-fold": b"X: y\r\n Transfer-Encoding: chunked",
    "obs-fold with a tab": b"Transfer-Encoding:\r\n\tchunked",
    "a blank before the colon": b"Transfer-Encoding : chunked",
    "a tab before the colon": b"Transfer-Encoding\t: chunked",
    "a blank before the name": b" Transfer-Encoding: chunked",
    "a control before the name": b"\x0bTransfer-Encoding: chunked",
    "a control in the value": b"Transfer-Encoding: \x0bchunked",
    "a NUL in the value": b"Transfer-Encoding: chunked\x00",
    "a NUL in the name": b"Transfer-Encoding\x00: chunked",
    "a line without a colon": b"Transfer-Encoding chunked",
    "a line without a name": b": chunked",
    "a name beyond ASCII": b"Transfer\xadEncoding: chunked",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_ambiguous_header_lines_are_rejected(shim: Shim, upstream: Recorder, case: str) -> None:
    edge = edge_address()
    response = shim.request(build_request(POST, MALFORMED[case], body=CHUNKED), edge)
    assert_rejected(shim, upstream, response, edge, 400, "malformed_head")


@pytest.mark.parametrize(
    "line",
    [
        "POST /rest/ping HTTP/1.1\n",
        "POST /rest/ping HTTP/1.1\r",
        "POST  /rest/ping HTTP/1.1",
        "POST\t/rest/ping HTTP/1.1",
        "POST /rest/ping HTTP/1.1 ",
        "POST /rest/ping x HTTP/1.1",
        "POST /rest/ping",
        "POST /rest/ping HTTP/0.9",
        "POST /rest/ping HTTP/1.2",
        "POST /rest/ping HTTP/2.0",
        "POST /rest/ping RTSP/1.0",
        "PRI * HTTP/2.0",
        "\r\n\r\nPOST /rest/ping HTTP/1.1",
    ],
)
def test_ambiguous_request_lines_are_rejected(shim: Shim, upstream: Recorder, line: str) -> None:
    edge = edge_address()
    response = shim.request(build_request(line, f"Content-Length: {N}", body=SECOND), edge)
    assert_rejected(shim, upstream, response, edge, 400, "malformed_head")


@pytest.mark.parametrize(
    "name",
    [
        "Content_Length",
        "Content.Length",
        "Transfer_Encoding",
        "Transfer~Encoding",
        "content+length",
    ],
)
@pytest.mark.parametrize("listed", [True, False], ids=["the edge", "anyone"])
def test_an_alias_of_content_length_is_rejected(
    shim: Shim, upstream: Recorder, name: str, listed: bool
) -> None:
    peer = edge_address() if listed else untrusted_address()
    value = str(N) if "ength" in name else "chunked"
    response = shim.request(build_request(POST, f"{name}: {value}", body=SECOND), peer)
    assert_rejected(shim, upstream, response, peer, 400, "framing_alias")


def test_chunked_coding_in_http_1_0_is_rejected(shim: Shim, upstream: Recorder) -> None:
    edge = edge_address()
    line = "POST /rest/ping HTTP/1.0"
    response = shim.request(build_request(line, "Transfer-Encoding: chunked", body=CHUNKED), edge)
    assert_rejected(shim, upstream, response, edge, 400, "ambiguous_framing")


BAD_CHUNKS = {
    "a bare LF after the size": b"5\nhello\r\n0\r\n\r\n",
    "a bare CR after the size": b"5\rhello\r\n0\r\n\r\n",
    "a bare LF after the data": b"5\r\nhello\n0\r\n\r\n",
    "a bare LF in an extension": b"5;x\ny\r\nhello\r\n0\r\n\r\n",
    "a bare LF for the end": b"5\r\nhello\r\n0\n\n",
    "a blank after the size": b"5 \r\nhello\r\n0\r\n\r\n",
    "a blank before the size": b" 5\r\nhello\r\n0\r\n\r\n",
    "a size in another notation": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a signed size": b"+5\r\nhello\r\n0\r\n\r\n",
    "an underscore in the size": b"0_5\r\nhello\r\n0\r\n\r\n",
    "a size that overflows": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "a size beyond 2^63": b"8000000000000005\r\nhello\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "more data than the size": b"5\r\nhelloX\r\n0\r\n\r\n",
    "other bytes than CRLF after the data": b"5\r\nhelloXX0\r\n\r\n",
    "a control in an extension": b"5;\x00\r\nhello\r\n0\r\n\r\n",
    "a trailer with a blank before its colon": b"0\r\nX : y\r\n\r\n",
    "a folded trailer": b"0\r\nX: y\r\n z\r\n\r\n",
    "too many extensions": b"1;" + b"x" * 5000 + b"\r\na\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("case", BAD_CHUNKS)
def test_ambiguous_chunks_are_rejected(shim: Shim, upstream: Recorder, case: str) -> None:
    edge = edge_address()
    text = build_request(POST, "Transfer-Encoding: chunked", body=BAD_CHUNKS[case] + SECOND)
    response = shim.request(text, edge)
    assert response.statuses == [400], response.raw
    assert response.closed
    (line,) = shim.decided(edge, upstream)
    assert (line["verdict"], line["reason"]) == ("rejected", "ambiguous_framing")
    # The first request may have begun upstream. It never ends there, and no second one begins.
    assert upstream.requested == []
    for begun in upstream.incomplete:
        assert begun.count(b" HTTP/1.1\r\n") == 1
        assert b"smuggled" not in begun


def test_chunked_bodies_are_framed_again_without_extensions_and_trailers(
    shim: Shim, upstream: Recorder
) -> None:
    chunks = b"5;name=value\r\nhello\r\n0;last\r\nRemote-User: admin\r\nX-authentik-uid: 1\r\n\r\n"
    response = shim.request(
        build_request(POST, "Transfer-Encoding: chunked", body=chunks), edge_address()
    )
    assert response.statuses == [200]
    (received,) = upstream.requested
    assert received.body == b"hello"
    assert_no_identity(received)
    assert upstream.incomplete == []


@pytest.mark.parametrize(
    ("fields", "body"),
    [((f"Content-Length: {N}",), SECOND), (("Transfer-Encoding: chunked",), CHUNKED)],
    ids=["with a length", "in chunks"],
)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_request_in_a_body_stays_in_the_body(
    shim: Shim, upstream: Recorder, fields: tuple[str, ...], body: bytes, method: str
) -> None:
    response = shim.request(
        build_request(f"{method} /rest/ping HTTP/1.1", *fields, body=body), edge_address()
    )
    assert response.statuses == [200]
    (received,) = upstream.requested
    assert received.body == SECOND
    assert upstream.incomplete == []


def test_a_pipelined_request_gets_its_own_decision(shim: Shim, upstream: Recorder) -> None:
    untrusted_peer = untrusted_address()
    first = f"GET /rest/ping?first HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    last = f"GET /app/last HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
    response = shim.request(first + SECOND + last, untrusted_peer)
    assert response.statuses == [200, 200, 200]
    for received in upstream.requested:
        assert_no_identity(received)
        assert received.values("X-Real-IP") == [untrusted_peer]
    assert [line["reason"] for line in shim.decided(untrusted_peer, upstream)] == ["untrusted_peer"]


def test_data_after_connection_close_is_dropped(shim: Shim, upstream: Recorder) -> None:
    response = shim.request(build_request("GET /rest/ping HTTP/1.1") + SECOND, edge_address())
    assert response.statuses == [200]
    (received,) = upstream.requested
    assert received.target == "/rest/ping"
    assert upstream.incomplete == []


def test_data_after_a_rejected_request_is_dropped(shim: Shim, upstream: Recorder) -> None:
    edge = edge_address()
    response = shim.request(f"GET //x HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode() + SECOND, edge)
    assert_rejected(shim, upstream, response, edge, 400, "ambiguous_target")


def test_a_length_that_ends_inside_the_second_request_creates_no_third(
    shim: Shim, upstream: Recorder
) -> None:
    edge = edge_address()
    text = f"{POST}\r\nHost: {HOST}\r\nContent-Length: 5\r\n\r\n".encode() + b"hello" + SECOND[5:]
    response = shim.request(text, edge)
    assert response.statuses == [200, 400]  # the rest of "GET /rest…" is not a request line
    (received,) = upstream.requested
    assert received.body == b"hello"
