"""Chunked coding: the same result for any slicing, strict, and never more lenient than llhttp."""

from __future__ import annotations

from itertools import pairwise

import httptools
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shim.http1.chunked import ChunkedDecoder, ChunkedError, encode_chunk

# (body, pieces joined, bytes used)
WHOLE = [
    (b"0\r\n\r\n", b"", 5),
    (b"5\r\nhello\r\n0\r\n\r\n", b"hello", 15),
    (b"00000005\r\nhello\r\n000\r\n\r\n", b"hello", 24),
    (b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789", 20),
    (b"A;x;y=z\r\n0123456789\r\n0;last\r\n\r\n", b"0123456789", 31),
    (b"1\r\na\r\n0\r\nX: y\r\nZ:\r\n\r\nnext", b"a", 21),
    (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n", 12),
]
BROKEN = [
    b"\r\n",
    b" 5\r\nhello\r\n",
    b"5 \r\nhello\r\n",
    b"5\t;a\r\nhello\r\n",
    b"0x5\r\nhello\r\n",
    b"+5\r\nhello\r\n",
    b"5_0\r\n",
    b"g\r\n",
    b"5\nhello\r\n",
    b"5\r\nhello\n",
    b"5\r\nhello0\r\n",
    b"5\r\nhello\rx",
    b"10000000000000000\r\n",
    b"8000000000000000\r\n",
    b"5;a\x00\r\n",
    b"5;a\rb\r\n",
    b"0\r\nX y\r\n\r\n",
    b"0\r\n: y\r\n\r\n",
    b"0\r\nX : y\r\n\r\n",
    b"0\r\nX: \x01\r\n\r\n",
    b"0\r\n folded\r\n\r\n",
    b"0\r\n\n",
]


def decoded(*slices: bytes) -> tuple[bytes, int | None]:
    """Return the body, and how many of the bytes belonged to the message; None if it is incomplete."""
    decoder = ChunkedDecoder()
    body, before = b"", 0
    for data in slices:
        pieces, used = decoder.feed(data)
        body += b"".join(pieces)
        if decoder.done:
            return body, before + used
        assert used == len(data)
        before += used
    return body, None


@pytest.mark.parametrize(("data", "body", "used"), WHOLE)
def test_a_complete_body_is_read_to_its_end(data: bytes, body: bytes, used: int) -> None:
    assert decoded(data) == (body, used)
    assert decoded(*(data[at : at + 1] for at in range(len(data)))) == (body, used)
    for at in range(len(data)):
        assert decoded(data[:at], data[at:]) == (body, used)


@pytest.mark.parametrize("data", BROKEN)
def test_an_invalid_body_is_rejected_in_any_slicing(data: bytes) -> None:
    for at in range(len(data)):
        with pytest.raises(ChunkedError):
            decoded(data[:at], data[at:])


def test_extensions_and_trailers_are_limited_each_and_in_total() -> None:
    short, long = b"1;" + b"x" * 4000 + b"\r\na\r\n", b"1;" + b"x" * 5000
    assert decoded(short * 4)[0] == b"aaaa"
    for data in (long, short * 5, b"0\r\n" + (b"A: " + b"b" * 4000 + b"\r\n") * 5):
        with pytest.raises(ChunkedError):
            decoded(data)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
@settings(max_examples=300)
@example(b"5\r\nhello\r\n0\r\n\r\nGET", [3])
def test_any_slicing_gives_the_same_result(data: bytes, places: list[int]) -> None:
    edges = [0, *sorted(place for place in places if place < len(data)), len(data)]
    slices = [data[a:b] for a, b in pairwise(edges)]
    assert _outcome(data) == _outcome(*slices)


def _outcome(*slices: bytes) -> tuple[bytes, int | None] | None:
    try:
        return decoded(*slices)
    except ChunkedError:
        return None


class _Seen:
    """The result of llhttp for a body."""

    def __init__(self) -> None:
        self.body = b""
        self.done = False

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.done = True


_CHUNK = st.tuples(
    st.sampled_from([b"", b";a", b";a=b", b";", b' ;q="x"', b"\t", b" ", b";\xff", b";\x7f"]),
    st.sampled_from([b"\r\n", b"\n", b"\r", b""]),
    st.binary(max_size=8),
    st.sampled_from([b"\r\n", b"\r\n", b"\n", b""]),
).map(lambda parts: b"%x%b%b%b%b" % (len(parts[2]), *parts))
_MESSAGE = st.tuples(
    st.lists(_CHUNK, max_size=3).map(b"".join),
    st.sampled_from(
        [b"0\r\n\r\n", b"0\r\nA: b\r\n\r\n", b"00;x\r\n\r\n", b"0\r\nA : b\r\n\r\n", b"0\n\n"]
    ),
).map(b"".join)


@given(st.one_of(_MESSAGE, st.binary(max_size=40).map(lambda data: data + b"0\r\n\r\n")))
@settings(max_examples=400)
def test_llhttp_accepts_every_accepted_body_with_the_same_result(data: bytes) -> None:
    outcome = _outcome(data)
    if outcome is None or outcome[1] is None:
        return
    body, used = outcome
    seen = _Seen()
    parser = httptools.HttpRequestParser(seen)
    parser.feed_data(
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + data[:used]
    )
    assert (seen.body, seen.done) == (body, True)


@given(st.lists(st.binary(max_size=50), max_size=5))
@settings(max_examples=100)
def test_an_encoded_body_decodes_to_the_same_bytes(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    encoded = encode_chunk(pieces)
    assert (encoded == b"") == (not whole), "an empty chunk would end the body"
    assert decoded(encoded + b"0\r\n\r\n")[0] == whole


_PIECES = [
    "1\r\na\r\n",
    "2\r\nab\r\n",
    "3;a\r\nabc\r\n",
    "0\r\n",
    "\r\n",
    "a: b\r\n",
    "1\r\nab",
    "x",
]


@given(
    st.lists(st.sampled_from(_PIECES)).map(lambda pieces: "".join(pieces).encode()),
    st.integers(1, 5),
)
def test_a_limit_of_lines_per_call_gives_the_same_result(data: bytes, max_lines: int) -> None:
    assert _in_steps(data, max_lines) == _outcome(data)


def _in_steps(data: bytes, max_lines: int) -> tuple[bytes, int | None] | None:
    decoder = ChunkedDecoder()
    body, at = b"", 0
    while at < len(data) and not decoder.done:
        try:
            pieces, used = decoder.feed(data[at:], max_lines)
        except ChunkedError:
            return None
        assert used > 0
        assert len(pieces) <= max_lines + 1
        body += b"".join(pieces)
        at += used
    return body, at if decoder.done else None
