"""Short Subsonic responses are read, in any framing and coding, and changed where they list extensions."""

from __future__ import annotations

import gzip
import zlib

import pytest

from shim.proxy.subsonic_responses import ExtensionListFilter, LoginOutcomeFilter, with_extension

JSON = b'{"subsonic-response":{"status":"%b","version":"1.16.1"%b}}'
WRONG = JSON % (b"failed", b',"error":{"code":40,"message":"Wrong username or password"}')
RIGHT = JSON % (b"ok", b"")
WRONG_CALLBACK = JSON % (
    b"failed",
    b',"error":{"code":0,"message":"invalid callback parameter"}',
)
MISSING = JSON % (b"failed", b',"error":{"code":10,"message":"missing parameter"}')
WRONG_XML = (
    b'<subsonic-response xmlns="x" status="failed" version="1"><error code="40" message="w"></error>'
    b"</subsonic-response>"
)
RIGHT_XML = b'<subsonic-response xmlns="x" status="ok" version="1"></subsonic-response>'


class Recorded:
    """An attempt that records its results."""

    def __init__(self) -> None:
        self.results: list[str] = []

    def failed(self) -> None:
        self.results.append("failed")

    def succeeded(self) -> None:
        self.results.append("succeeded")

    def ended(self) -> None:
        self.results.append("ended")


def _response(
    body: bytes,
    media_type: bytes = b"application/json",
    coding: bytes = b"",
    status: bytes = b"200 OK",
) -> bytes:
    line = b"Content-Encoding: %b\r\n" % coding if coding else b""
    return b"HTTP/1.1 %b\r\nContent-Type: %b\r\n%bContent-Length: %d\r\n\r\n%b" % (
        status,
        media_type,
        line,
        len(body),
        body,
    )


def _chunked(body: bytes) -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (body[:7], body[7:]))
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunks
        + b"0\r\n\r\n"
    )


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (_response(WRONG), ["failed", "ended"]),
        (_response(gzip.compress(WRONG), coding=b"gzip"), ["failed", "ended"]),
        (_response(zlib.compress(WRONG), coding=b"deflate"), ["failed", "ended"]),
        (_chunked(WRONG), ["failed", "ended"]),
        (_response(WRONG_XML, b"application/xml"), ["failed", "ended"]),
        (_response(b"a.b(%b)" % WRONG, b"application/javascript"), ["failed", "ended"]),
        # A long callback hides the error.
        (_response(b"a" * 5000 + b"(%b)" % WRONG, b"application/javascript"), ["failed", "ended"]),
        (
            _response(
                gzip.compress(b"a" * 5000 + b"(%b)" % WRONG), b"application/javascript", b"gzip"
            ),
            ["failed", "ended"],
        ),
        # A callback that is not allowed replaces the error.
        (_response(WRONG_CALLBACK), ["failed", "ended"]),
        (_response(RIGHT + b" " * 5000), ["succeeded", "ended"]),
        (
            _response(b"a(%b" % RIGHT + b" " * 5000, b"application/javascript"),
            ["succeeded", "ended"],
        ),
        (_response(RIGHT), ["succeeded", "ended"]),
        (_response(RIGHT_XML, b"application/xml"), ["succeeded", "ended"]),
        (_response(b"\xff\xd8" + b"x" * 100, b"image/jpeg"), ["succeeded", "ended"]),
        (_response(b"x" * 100_000, b"audio/mpeg"), ["succeeded", "ended"]),
        # Neither: it may come before the credentials are checked.
        (_response(MISSING), ["ended"]),
        (_response(b"404 page not found", b"text/plain", status=b"404 Not Found"), ["ended"]),
        (_response(b"x" * 100_000, b"audio/mpeg", status=b"500 X"), ["ended"]),
        (_response(b"", b""), ["ended"]),
        (_response(b"not gzip", coding=b"gzip"), ["ended"]),
        (_response(WRONG, coding=b"br"), ["ended"]),
        # Text of a client within a response is escaped, and no error.
        (_response(JSON % (b"ok", rb',"name":"\"error\":{\"code\":40,"')), ["succeeded", "ended"]),
    ],
)
def test_an_attempt_gets_its_result(response: bytes, expected: list[str], size: int) -> None:
    attempt = Recorded()
    response_filter = LoginOutcomeFilter(attempt, head_only=False)
    pieces = [
        response_filter.feed(response[at : at + size]) for at in range(0, len(response), size)
    ]
    assert b"".join([*pieces, response_filter.finish()]) == response
    assert attempt.results == expected


def test_a_large_text_that_is_packed_small_is_not_unpacked() -> None:
    attempt = Recorded()
    response_filter = LoginOutcomeFilter(attempt, head_only=False)
    response_filter.feed(_response(gzip.compress(b" " * 10_000_000)[:1000], coding=b"gzip"))
    response_filter.finish()
    assert "failed" not in attempt.results and attempt.results[-1] == "ended"


def test_a_short_text_counts_as_a_failure_of_head() -> None:
    for head, expected in [
        (_response(WRONG).partition(b"\r\n\r\n")[0], ["failed", "ended"]),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/javascript\r\nContent-Length: 9999",
            ["failed", "ended"],
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: 9", ["ended"]),
    ]:
        attempt = Recorded()
        response_filter = LoginOutcomeFilter(attempt, head_only=True)
        response_filter.feed(head + b"\r\n\r\n")
        response_filter.finish()
        assert attempt.results == expected


def test_an_attempt_ends_with_its_response() -> None:
    attempt = Recorded()
    response_filter = LoginOutcomeFilter(attempt, head_only=False)
    response_filter.feed(_response(WRONG)[:50])
    response_filter.abandon()
    assert attempt.results == ["ended"]


LIST = JSON % (b"ok", b',"openSubsonicExtensions":[%b]')
NEW = b'{"name":"apiKeyAuthentication","versions":[1]}'
OLD = b'{"name":"formPost","versions":[1]}'


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (LIST % b"", LIST % NEW),
        (LIST % OLD, LIST % (NEW + b"," + OLD)),
        (LIST % NEW, LIST % NEW),
        (b"a(%b)" % (LIST % b""), b"a(%b)" % (LIST % NEW)),
        (
            RIGHT_XML,
            RIGHT_XML.replace(
                b"</subs",
                b'<openSubsonicExtensions name="apiKeyAuthentication"><versions>1</versions>'
                b"</openSubsonicExtensions></subs",
            ),
        ),
        (WRONG, WRONG),
        (WRONG_XML, WRONG_XML),
        (b"404 page not found", b"404 page not found"),
    ],
)
def test_the_extension_is_added_once(body: bytes, expected: bytes) -> None:
    assert with_extension(body) == expected


@pytest.mark.parametrize("size", [1, 100_000])
@pytest.mark.parametrize(
    "response",
    [
        _response(LIST % OLD),
        _chunked(LIST % OLD),
        _response(gzip.compress(LIST % OLD), coding=b"gzip"),
    ],
)
def test_a_list_is_framed_again(response: bytes, size: int) -> None:
    response_filter = ExtensionListFilter()
    early = [response_filter.feed(response[at : at + size]) for at in range(0, len(response), size)]
    assert b"".join(early) == b""
    head, _, body = response_filter.finish().partition(b"\r\n\r\n")
    assert body == LIST % (NEW + b"," + OLD)
    assert b"Content-Length: %d" % len(body) in head.split(b"\r\n")
    assert b"Transfer-Encoding" not in head and b"Content-Encoding" not in head


def test_what_is_no_list_passes_unchanged() -> None:
    for response in (_response(WRONG), _response(b"x" * 200_000), _response(LIST, coding=b"br")):
        response_filter = ExtensionListFilter()
        assert response_filter.feed(response) + response_filter.finish() == response
