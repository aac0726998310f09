"""Response heads: body framing, forwarded fields, and invalid responses."""

from __future__ import annotations

import contextlib

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shim.http1.framing import CHUNKED, UNTIL_CLOSE
from shim.http1.response_head import InvalidResponse, parse_response_head

FRAMED: list[tuple[str, int, bool]] = [
    # (lines after "HTTP/1.1 200 OK", length, persistent)
    ("", UNTIL_CLOSE, True),
    ("Content-Length: 0", 0, True),
    ("content-length:7", 7, True),
    ("CONTENT-LENGTH: \t 7 \t", 7, True),
    ("Content-Length: 0000000000000000007", 7, True),
    ("Content-Length: 9223372036854775807", 2**63 - 1, True),
    ("Transfer-Encoding: chunked", CHUNKED, True),
    ("transfer-encoding: Chunked", CHUNKED, True),
    ("Content-Length: 1\r\nConnection: close", 1, False),
    ("Content-Length: 1\r\nConnection: x\r\nConnection: y, CLOSE", 1, False),
    ("Content-Length: 1\r\nConnection: keep-alive", 1, True),
]
BAD = [
    "Content-Length: ",
    "Content-Length: +1",
    "Content-Length: -1",
    "Content-Length: 1 1",
    "Content-Length: 1, 1",
    "Content-Length: 0x1",
    "Content-Length: \u00b2",
    "Content-Length: 00000000000000000007",
    "Content-Length: 9223372036854775808",
    "Content-Length: 1\r\nContent-Length: 1",
    "Content-Length: 1\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: gzip",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: ,chunked",
    "Transfer-Encoding: ",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "A : b",
    " A: b",
    "A\tB: c",
    ": b",
    "A",
    "A: \x00",
    "A: b\rC: d",
    "A: b\nC: d",
    "A: \x7f",
    "\u00e4: b",
]


def head(lines: str, first: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join(filter(None, (first, lines))).encode("latin-1") + b"\r\n\r\n"


@pytest.mark.parametrize(("lines", "length", "persistent"), FRAMED)
def test_the_fields_determine_the_body_framing(lines: str, length: int, persistent: bool) -> None:
    read = parse_response_head(head(lines))
    assert (read.status, read.length, read.persistent) == (200, length, persistent)


@pytest.mark.parametrize("lines", BAD)
def test_an_ambiguous_response_is_invalid(lines: str) -> None:
    with pytest.raises(InvalidResponse):
        parse_response_head(head(lines))
    with pytest.raises(InvalidResponse):
        parse_response_head(head(f"Server: x\r\n{lines}\r\nDate: y"))


@pytest.mark.parametrize(
    "first",
    [
        "HTTP/1.1 099 Odd",
        "HTTP/1.1 600 Odd",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 20 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1\t200 OK",
        "HTTP/2.0 200 OK",
        "HTTP/0.9 200 OK",
        "HTTP/1.2 200 OK",
        "http/1.1 200 OK",
        "ICE/1.0 200 OK",
        "HTTP/1.1 200 O\x01K",
        "HTTP/1.1 -20 OK",
        " HTTP/1.1 200 OK",
        "",
    ],
)
def test_a_malformed_status_line_is_invalid(first: str) -> None:
    with pytest.raises(InvalidResponse):
        parse_response_head(f"{first}\r\nContent-Length: 0\r\n\r\n".encode("latin-1"))


def test_an_http_1_0_response_closes_by_default_and_has_no_transfer_coding() -> None:
    old = "HTTP/1.0 200 OK"
    assert not parse_response_head(head("Content-Length: 1", old)).persistent
    assert parse_response_head(head("Content-Length: 1\r\nConnection: Keep-Alive", old)).persistent
    assert parse_response_head(head("", old)).lines.startswith(b"HTTP/1.1 200 OK\r\n")
    with pytest.raises(InvalidResponse):
        parse_response_head(head("Transfer-Encoding: chunked", old))


def test_hop_by_hop_fields_are_removed_and_all_others_are_unchanged() -> None:
    end_to_end = "Set-Cookie: a=1\r\nX-Odd:  two  \r\nSet-Cookie: b=2\r\nETag:\r\nx-lower: \u00fc"
    dropped = (
        "Connection: X-Hop, close\r\nx-hop: 1\r\nKeep-Alive: timeout=1\r\nTE: x\r\nTrailer: y\r\n"
        "Transfer-Encoding: chunked\r\nUpgrade: h2\r\nProxy-Connection: x"
    )
    read = parse_response_head(head(f"{dropped}\r\n{end_to_end}"))
    assert read.lines == f"HTTP/1.1 200 OK\r\n{end_to_end}\r\n".encode("latin-1")
    assert read.upgrade == b"h2"


@pytest.mark.parametrize("status", [100, 103, 204, 304])
def test_responses_with_these_statuses_have_no_body(status: int) -> None:
    assert parse_response_head(head("", f"HTTP/1.1 {status} Some")).no_body


def test_connection_cannot_name_the_length_or_the_status_line() -> None:
    read = parse_response_head(
        head("Content-Length: 5\r\nConnection: Content-Length, http/1.1 200 ok")
    )
    assert read.length == 5
    assert read.lines == b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"


class _Seen:
    """The result of llhttp for a response."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.complete = True


_NAME = st.sampled_from(
    [
        b"Content-Length", b"content-length", b"Transfer-Encoding", b"Connection", b"Upgrade", b"A",
        b"Set-Cookie", b"Content_Length", b"A ", b"\xe4", b"",
    ]
)  # fmt: skip
_VALUE = st.one_of(
    st.sampled_from(
        [b" 5", b" chunked", b" close", b" gzip, chunked", b"", b" 1, 1", b" a\rb", b" \xfc\t"]
    ),
    st.binary(max_size=6),
)
_LINE = st.tuples(_NAME, st.sampled_from([b":", b": ", b" :", b""]), _VALUE).map(b"".join)
_FIRST = st.one_of(
    st.sampled_from(
        [
            b"HTTP/1.1 200 OK",
            b"HTTP/1.0 200 OK",
            b"HTTP/1.1 200",
            b"HTTP/1.1 204 ",
            b"HTTP/1.1 404 \xe4",
        ]
    ),
    st.binary(max_size=12).map(lambda data: b"HTTP/1.1 200" + data),
)
_HEAD = st.tuples(_FIRST, st.lists(_LINE, max_size=4)).map(
    lambda parts: b"\r\n".join((parts[0], *parts[1])) + b"\r\n\r\n"
)


@given(_HEAD)
@settings(max_examples=500)
@example(b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 5\r\n\r\n")
def test_llhttp_accepts_every_accepted_response_with_the_same_result(data: bytes) -> None:
    if b"\r\n\r\n" in data[:-4]:
        return
    try:
        read = parse_response_head(data)
    except InvalidResponse:
        return
    seen = _Seen()
    parser = httptools.HttpResponseParser(seen)
    with contextlib.suppress(httptools.HttpParserUpgrade):
        parser.feed_data(data)
    assert seen.complete
    assert parser.get_status_code() == read.status
    fields = {name.lower(): value for name, value in seen.fields}
    assert (b"content-length" in fields) == (read.length >= 0)
    if read.length >= 0:
        assert int(fields[b"content-length"]) == read.length
    assert (read.length == CHUNKED) == (fields.get(b"transfer-encoding", b"").lower() == b"chunked")
    end_to_end = [line.split(b":", 1) for line in read.lines.split(b"\r\n")[1:-1]]
    assert [
        (name, value.strip(b" \t")) for name, value in end_to_end if name.lower() == b"set-cookie"
    ] == [(name, value) for name, value in seen.fields if name.lower() == b"set-cookie"]
