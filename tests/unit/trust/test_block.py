"""Header blocks: body framing, host, and forwarded fields."""

from __future__ import annotations

import pytest

from shim.http1.framing import CHUNKED, NO_BODY
from shim.trust.policy import Policy
from shim.trust.reasons import Reason, Verdict
from tests.support.decisions import EDGE, HOST, UNTRUSTED, decided, head, trusting
from tests.support.reference_parsers import read_by_llhttp


def forwarded(rendered: bytes) -> list[str]:
    """The names of the forwarded fields, without those about the client."""
    read = read_by_llhttp(rendered)
    assert read is not None
    return [
        name.decode()
        for name, _ in read.fields
        if not name.lower().startswith((b"x-forwarded-", b"x-real-ip", b"forwarded"))
    ]


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ((), NO_BODY),
        (("Content-Length: 0",), 0),
        (("content-LENGTH: 69",), 69),
        (("Content-Length: 069 ",), 69),
        (("Content-Length: 9223372036854775807",), 2**63 - 1),
        (("Transfer-Encoding: chunked",), CHUNKED),
        (("transfer-encoding:  CHUNKED\t",), CHUNKED),
    ],
)
def test_one_field_frames_the_body_and_it_is_framed_again(
    fields: tuple[str, ...], length: int
) -> None:
    decision = decided(head("POST /api/playlist HTTP/1.1", *fields))
    assert decision.block is not None
    assert decision.block.metadata.length == length
    rendered = decision.render_head().lower()
    assert rendered.count(b"content-length") == (length >= 0)
    assert rendered.count(b"transfer-encoding: chunked\r\n") == (length == CHUNKED)
    if length >= 0:
        assert b"content-length: %d\r\n" % length in rendered


@pytest.mark.parametrize(
    "fields",
    [
        ("Content-Length: 1", "Content-Length: 1"),
        ("Content-Length: 1", "Content-Length: 2"),
        ("Content-Length: 1, 1",),
        ("Content-Length:",),
        ("Content-Length: +1",),
        ("Content-Length: -1",),
        ("Content-Length: 1 1",),
        ("Content-Length: 0x1",),
        ("Content-Length: 1_0",),
        ("Content-Length: 1.0",),
        ("Content-Length: \u0661",),
        ("Content-Length: 9223372036854775808",),
        ("Content-Length: 18446744073709551615",),
        ("Content-Length: 00000000000000000001",),
        ("Content-Length: 1", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 1"),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding:",),
        ("Transfer-Encoding: gzip",),
        ("Transfer-Encoding: identity",),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: chunked, gzip",),
        ("Transfer-Encoding: chunked, chunked",),
        ("Transfer-Encoding: ,chunked",),
        ("Transfer-Encoding: chunked,",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: chunked;q=1",),
        ('Transfer-Encoding: "chunked"',),
        ("Transfer-Encoding: chun\tked",),
        (b"Transfer-Encoding: \xa0chunked",),
        ("Expect: 200-ok",),
        ("Expect: 100-continue, 100-continue",),
        ("Expect:",),
    ],
)
def test_ambiguous_body_framing_is_rejected(
    fields: tuple[str | bytes, ...],
) -> None:
    for peer in (EDGE, UNTRUSTED):
        decision = decided(head("POST /rest/ping HTTP/1.1", *fields), peer)
        assert decision.outcome.reason is Reason.AMBIGUOUS_FRAMING
        assert decision.outcome.status == 400


@pytest.mark.parametrize(
    "name",
    [
        "Content_Length",
        "Content.Length",
        "Transfer_Encoding",
        "transfer~encoding",
        "Content'Length",
    ],
)
def test_a_name_that_only_normalizes_to_a_framing_header_is_rejected(name: str) -> None:
    for peer in (EDGE, UNTRUSTED):
        decision = decided(head("POST /rest/ping HTTP/1.1", f"{name}: 69"), peer)
        assert (decision.outcome.reason, decision.outcome.status) == (Reason.FRAMING_ALIAS, 400)


def test_http_1_0_has_no_chunked_coding() -> None:
    decision = decided(head("POST /rest/ping HTTP/1.0", "Transfer-Encoding: chunked"))
    assert decision.outcome.reason is Reason.AMBIGUOUS_FRAMING


@pytest.mark.parametrize(
    "host",
    ["music.example.com", "music.example.com:8080", "127.0.0.1:4534", "[fd00::1]:4534", "edge_1"],
)
def test_a_host_is_a_name_with_or_without_a_port(host: str) -> None:
    decision = decided(head("GET / HTTP/1.1", host=host))
    assert decision.outcome.verdict is Verdict.ANONYMOUS
    assert f"\r\nHost: {host}\r\n".encode() in decision.render_head()


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ("Host: a", "Host: a"),
        ("Host: a", "host: b"),
        ("Host:",),
        ("Host: a b",),
        ("Host: a,b",),
        ("Host: a/b",),
        ("Host: user@a",),
        ("Host: a:b",),
        ("Host: :",),
        ("Host: a:1:2",),
        ("Host: a?",),
        ('Host: a"',),
        (b"Host: \xff",),
        ("Host: [fd00::1",),
        ("Host: a:123456",),
    ],
)
def test_a_missing_or_repeated_host_is_rejected(fields: tuple[str | bytes, ...]) -> None:
    decision = decided(head("GET / HTTP/1.1", *fields, host=None))
    assert (decision.outcome.reason, decision.outcome.status) == (Reason.AMBIGUOUS_HOST, 400)


def test_a_host_alias_is_rejected() -> None:
    names = Policy().names
    assert names.classify(b"host")[0].name == "HOST"
    for line in ("Ho_st: x", "Hos.t: x"):  # these normalize to other names
        assert decided(head("GET / HTTP/1.1", line)).outcome.verdict is Verdict.ANONYMOUS


def test_http_1_0_may_omit_host_and_is_forwarded_with_an_empty_one() -> None:
    # RFC 9112 §3.2: HTTP/1.1, which the shim uses with Navidrome, requires Host.
    decision = decided(head("GET / HTTP/1.0", host=None))
    read = read_by_llhttp(decision.render_head())
    assert read is not None
    assert read.values("Host") == [b""]
    assert decision.render_head().startswith(b"GET / HTTP/1.1\r\n")


def test_hop_by_hop_fields_are_not_forwarded() -> None:
    decision = decided(
        head(
            "GET /app/ HTTP/1.1",
            "Accept: */*",
            "Connection: keep-alive, X-Of-This-Hop, Cookie",
            "Keep-Alive: timeout=5",
            "Proxy-Connection: keep-alive",
            "Proxy-Authorization: Basic eDp5",
            "TE: trailers",
            "Trailer: X-authentik-username",
            "X-Of-This-Hop: x",
            "Cookie: a=b",
            "Upgrade: h2c",
            "HTTP2-Settings: x",
            "X-ND-Client-Unique-Id: 1",
        )
    )
    assert forwarded(decision.render_head()) == ["Host", "Accept", "X-ND-Client-Unique-Id"]


def test_connection_cannot_remove_the_framing() -> None:
    decision = decided(
        head("POST /api/x HTTP/1.1", "Content-Length: 3", "Connection: content-length, host")
    )
    assert b"Content-Length: 3\r\n" in decision.render_head()
    assert f"Host: {HOST}\r\n".encode() in decision.render_head()


def test_end_to_end_fields_keep_their_order_and_case() -> None:
    sent = ("aCCept: x", "X-A: 1", "Cookie: a", "x-a: 2", "COOKIE: b")
    decision = decided(head("GET /app/ HTTP/1.1", *sent))
    lines = decision.render_head().split(b"\r\n")
    assert [line.decode() for line in lines if line.lower()[:3] in (b"acc", b"x-a", b"coo")] == [
        *sent
    ]


@pytest.mark.parametrize(
    ("line", "connection", "stays"),
    [
        ("GET / HTTP/1.1", "", True),
        ("GET / HTTP/1.1", "keep-alive", True),
        ("GET / HTTP/1.1", "close", False),
        ("GET / HTTP/1.1", "keep-alive, CLOSE", False),
        ("GET / HTTP/1.1", "x ,\tclose ,", False),
        ("GET / HTTP/1.1", "closed", True),
        ("GET / HTTP/1.0", "", False),
        ("GET / HTTP/1.0", "Keep-Alive", True),
        ("GET / HTTP/1.0", "keep-alive, close", False),
    ],
)
def test_version_and_connection_options_decide_keep_alive(
    line: str, connection: str, stays: bool
) -> None:
    fields = (f"Connection: {connection}",) if connection else ()
    assert decided(head(line, *fields)).keep_alive is stays


@pytest.mark.parametrize("line", ["Connection: close\r\nConnection: x", "Connection: x,close"])
def test_the_options_of_several_connection_fields_are_combined(line: str) -> None:
    assert not decided(head("GET / HTTP/1.1", line)).keep_alive


def test_the_number_of_lines_in_a_request_is_limited() -> None:
    policy = Policy(whitelist=trusting("127.0.0.2"), max_fields=16)
    lines = [f"X-{number}: x" for number in range(16)]
    assert decided(head("GET / HTTP/1.1", *lines[:15]), policy=policy).outcome.status == 200
    decision = decided(head("GET / HTTP/1.1", *lines), policy=policy)
    assert (decision.outcome.reason, decision.outcome.status) == (Reason.HEAD_TOO_LARGE, 431)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\r\n",
        b"\r\n\r\n",
        b"GET / HTTP/1.0",
        b"GET / HTTP/1.0\r\n",
        b"GET / HTTP/1.0\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"GET / HTTP/1.1\r\nHost: a",
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\nX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_a_malformed_head_is_rejected(text: bytes) -> None:
    decision = decided(text)
    assert (decision.outcome.reason, decision.outcome.status) == (Reason.MALFORMED_HEAD, 400)


@pytest.mark.parametrize(("options", "rejected"), [(64, False), (65, True)])
def test_more_than_64_connection_options_are_rejected(options: int, rejected: bool) -> None:
    lines = [f"Connection: {','.join(f'x{n}' for n in range(32))}"]
    lines.append(f"Connection: {','.join(f'y{n}' for n in range(options - 32))}")
    decision = decided(head("GET / HTTP/1.1", *lines))
    assert (decision.outcome.reason is Reason.AMBIGUOUS_FRAMING) is rejected
