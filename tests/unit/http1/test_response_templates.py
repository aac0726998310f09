"""A response parsed by a cached template equals one parsed line by line."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shim.http1.response_head import InvalidResponse, ResponseHead, parse_response_head
from shim.http1.response_templates import ResponseTemplateCache

LONGEST = 4096


def head(*lines: str, first: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join((first, *lines, "", "")).encode("latin-1")


def build_cache(*heads: bytes) -> ResponseTemplateCache:
    """Templates that have parsed each of these heads twice, as often as it takes to cache one."""
    cache = ResponseTemplateCache(LONGEST, 20)
    for each in heads * 2:
        cache.read(each)
    return cache


def test_a_template_is_cached_at_the_second_parse_whatever_its_values() -> None:
    cache = ResponseTemplateCache(LONGEST, 20)
    first = head("Date: Mon", "Content-Length: 5", "Set-Cookie: a=1")
    assert cache.match(first) is None
    cache.read(first)
    assert cache.match(first) is None
    cache.read(first)
    second = head("Date: Tue", "Content-Length: 77", "Set-Cookie: b=\u00fc")
    assert cache.match(second + b"body") == (parse_response_head(second), len(second))


def test_an_incomplete_or_oversized_head_has_no_template() -> None:
    cache = build_cache(head("A: b"))
    whole = head("A: c")
    assert all(cache.match(whole[:at]) is None for at in range(len(whole)))
    assert cache.match(head("A: " + "x" * LONGEST)) is None


def test_hop_by_hop_fields_are_part_of_the_template_byte_by_byte() -> None:
    known = head("Content-Length: 5", "Connection: close"), head("Transfer-Encoding: chunked")
    cache = build_cache(*known)
    assert [cache.match(each) for each in known] == [
        (parse_response_head(each), len(each)) for each in known
    ]
    for other in (
        head("Content-Length: 5", "Connection: keep-alive"),
        head("Content-Length: 5", "Connection: close, content-type"),
        head("Transfer-Encoding: gzip, chunked"),
        head("Transfer-Encoding: chunked", first="HTTP/1.0 200 OK"),
    ):
        assert cache.match(other) is None


def test_the_template_cache_is_bounded() -> None:
    cache = ResponseTemplateCache(LONGEST, 20)
    for number in range(5000):
        for _ in range(2):
            cache.read(head(f"X-{number}: y"))
    assert len(cache._templates) <= 24
    assert len(cache._seen) <= 8 * 24


_NAME = st.sampled_from(
    ["Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "A", "Set-Cookie", "TE"]
)
_VALUE = st.sampled_from(
    [
        "5",
        " 5 ",
        "007",
        "",
        "chunked",
        "close",
        "keep-alive",
        "A",
        "content-length",
        "\u00fc",
        "a: b",
        "9" * 19,
    ]
)
_LINES = st.lists(st.tuples(_NAME, _VALUE).map(": ".join), max_size=5)
_FIRST = st.sampled_from(
    [
        "HTTP/1.1 200 OK",
        "HTTP/1.0 200 OK",
        "HTTP/1.1 304 Not",
        "HTTP/1.1 204 No",
        "HTTP/1.1 103 Early",
    ]
)
_HEADS = st.lists(
    st.builds(lambda lines, first: head(*lines, first=first), _LINES, _FIRST),
    min_size=1,
    max_size=6,
)
_UNUSUAL_LINES = st.binary(max_size=4)


def _read(data: bytes) -> ResponseHead | None:
    try:
        return parse_response_head(data)
    except InvalidResponse:
        return None


@given(heads=_HEADS, at=st.integers(0, 200), unusual_line=_UNUSUAL_LINES)
@settings(max_examples=300)
@example(heads=[head("Content-Length: 5")], at=19, unusual_line=b"A: b\r\n")
def test_a_cached_template_gives_the_same_result_as_parsing(
    heads: list[bytes], at: int, unusual_line: bytes
) -> None:
    cache = ResponseTemplateCache(LONGEST, 20)
    for each in heads * 2:
        if _read(each) is not None:
            cache.read(each)
    for each in heads:
        for data in (
            each,
            each[:at] + unusual_line + each[at:],
            each[:at] + unusual_line + each[at + len(unusual_line) :],
        ):
            known = cache.match(data)
            if known is None:
                continue
            response, end = known
            assert data[end - 4 : end] == b"\r\n\r\n"
            assert data.find(b"\r\n\r\n") == end - 4
            assert response == _read(data[:end])


def test_a_head_with_too_many_lines_is_invalid() -> None:
    cache = ResponseTemplateCache(LONGEST, 20)
    cache.read(head(*["A: b"] * 20))
    with pytest.raises(InvalidResponse, match="20 header lines"):
        cache.read(head(*["A: b"] * 21))


@pytest.mark.parametrize("byte", [*range(9), *range(10, 32), 0x7F])
@pytest.mark.parametrize("value", [b"x%by", b"%b", b"x%b"])
def test_a_head_with_a_control_byte_in_a_value_has_no_template(byte: int, value: bytes) -> None:
    cache = build_cache(head("ETag: a", "Content-Length: 5"))
    assert cache.match(head("ETag: \u00e9\t b", "Content-Length: 5")) is not None
    sent = value % bytes([byte])
    bad = b"HTTP/1.1 200 OK\r\nETag: %b\r\nContent-Length: 5\r\n\r\n" % sent
    assert cache.match(bad) is None
    with pytest.raises(InvalidResponse):
        cache.read(bad)
