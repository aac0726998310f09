"""How a server treats connections, bodies and codings, on both servers."""

from __future__ import annotations

import contextlib
import re
import socket
import zlib

import pytest

from tests.support.navidrome_client import ADMIN, EDGE, UNTRUSTED, NavidromeClient

QUERY = "v=1.16.1&c=x&f=json"
LAST = "GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.1 (\d\d\d)")


def _send(client: NavidromeClient, *pieces: str | bytes, source: str = EDGE) -> bytes:
    """Send each piece, the later ones after the first bytes of a response; returns everything until the
    server closes the connection."""
    address = ("127.0.0.1", client.port)
    received = bytearray()
    with (
        socket.create_connection(address, timeout=10, source_address=(source, 0)) as connection,
        contextlib.suppress(ConnectionError),  # a server that closes does not read the rest
    ):
        for number, piece in enumerate(pieces):
            if number:
                received += connection.recv(65536)
            connection.sendall(piece.encode() if isinstance(piece, str) else piece)
        while more := connection.recv(65536):
            received += more
    return bytes(received)


def _statuses(received: bytes) -> list[int]:
    return [int(status) for status in _STATUS.findall(received)]


def _head(line: str, *fields: str, user: str | None = ADMIN) -> str:
    named = [f"Remote-User: {user}"] if user else []
    return "\r\n".join((f"{line} HTTP/1.1", "Host: x", *named, *fields, "", ""))


@pytest.mark.parametrize(
    ("line", "user", "body", "status"),
    [
        ("GET /api/nonsense", ADMIN, "", 404),
        ("HEAD /api/user", ADMIN, "", 405),
        ("POST /ping", ADMIN, "abc", 405),
        ("POST /api/user", ADMIN, "abc", 422),
        ("POST /api/user", None, "abc", 401),
        ("GET /ping", None, "abc", 200),
        ("GET /rest/stream?v=1&c=x&id=none", ADMIN, "", 200),
    ],
)
def test_the_connection_stays_open_after_an_error_or_an_unread_body(
    client: NavidromeClient, line: str, user: str | None, body: str, status: int
) -> None:
    length = [f"Content-Length: {len(body)}"] if body else []
    received = _send(client, _head(line, *length, user=user) + body + LAST)
    assert _statuses(received) == [status, 200]


def test_pipelined_requests_are_answered_in_order(client: NavidromeClient) -> None:
    received = _send(client, _head("GET /ping") + _head("GET /api/nonsense") + LAST)
    assert _statuses(received) == [200, 404, 200]


@pytest.mark.parametrize("size", [200_000, 300_000])
def test_a_long_unread_body_closes_the_connection(client: NavidromeClient, size: int) -> None:
    head = _head("POST /api/user", f"Content-Length: {size}", user=None)
    received = _send(client, head.encode() + b"x" * size + LAST.encode())
    assert _statuses(received) == ([401, 200] if size <= 256 << 10 else [401])


def test_100_continue_is_sent_when_the_body_is_read(client: NavidromeClient) -> None:
    expect = ("Expect: 100-continue", "Content-Length: 3")
    received = _send(client, _head("POST /api/user", *expect), "abc" + LAST)
    assert _statuses(received) == [100, 422, 200]


@pytest.mark.parametrize("line", ["POST /api/user", "GET /ping", "POST /api/nonsense"])
def test_a_response_without_100_continue_closes_the_connection(
    client: NavidromeClient, line: str
) -> None:
    head = _head(line, "Expect: 100-continue", "Content-Length: 3", user=None)
    received = _send(client, head, "abc" + LAST)
    assert 100 not in _statuses(received) and len(_statuses(received)) == 1
    assert b"\r\nconnection: close\r\n" in received.lower()


@pytest.mark.parametrize(
    ("field", "status"),
    [
        ("Expect: 200-ok", 417),
        ("Transfer-Encoding: gzip, chunked", 501),
        ("Host: y", 400),
    ],
)
def test_a_head_that_is_rejected_closes_the_connection(
    client: NavidromeClient, field: str, status: int
) -> None:
    received = _send(client, _head("GET /ping", field))
    assert _statuses(received) == [status]


def test_a_request_without_host_is_rejected(client: NavidromeClient) -> None:
    assert _statuses(_send(client, "GET /ping HTTP/1.1\r\n\r\n")) == [400]


def test_a_chunked_body_is_read_with_its_extensions_and_trailers(client: NavidromeClient) -> None:
    name = client.new_name()
    body = f'{{"userName":"{name}"}}'
    chunks = f"5;a=b\r\n{body[:5]}\r\n{len(body) - 5:X}\r\n{body[5:]}\r\n0\r\nX: y\r\n\r\n"
    head = _head("POST /api/user", "Transfer-Encoding: chunked", "Trailer: X")
    assert _statuses(_send(client, head + chunks + LAST)) == [200, 200]
    assert len(client.request("GET", f"/api/user?user_name={name}").json()) == 1


def test_a_form_of_more_than_10_mib_is_not_read(client: NavidromeClient) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for size, status in (((10 << 20) - 2, "ok"), ((10 << 20) + 1, "failed")):
        reply = client.request(
            "POST", f"/rest/ping?{QUERY}", headers=form, body="a=" + "b" * (size - 2)
        )
        assert reply.json()["subsonic-response"]["status"] == status


COMPRESSED = [
    f"/rest/ping?{QUERY}",
    "/rest/ping?v=1&c=x",
    "/rest/ping?v=1&c=x&f=jsonp&callback=cb",
    "/app/nonsense",
    "/api/nonsense",
    "/nowhere",
]


_WINDOW_BITS = {"gzip": 31, "deflate": -15}  # "deflate" comes without zlib's header


@pytest.mark.parametrize("target", COMPRESSED)
@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate, gzip", "gzip"),
        ("GZIP;q=0", "gzip"),
        ("deflate", "deflate"),
        ("br", None),
        ("*", None),
        ("identity", None),
    ],
)
def test_text_is_compressed_as_the_client_accepts(
    client: NavidromeClient, target: str, accepted: str, coding: str | None
) -> None:
    plain = client.request("GET", target)
    reply = client.request("GET", target, headers={"Accept-Encoding": accepted})
    assert reply.headers.get("content-encoding") == coding
    assert int(reply.headers["content-length"]) == len(reply.body)
    decoded = reply.body if coding is None else zlib.decompress(reply.body, _WINDOW_BITS[coding])
    assert decoded == plain.body
    assert reply.status == plain.status


@pytest.mark.parametrize(
    "target", ["/ping", "/robots.txt", "/api/keepalive/x", "/rest/createUser?" + QUERY]
)
def test_some_text_is_never_compressed(client: NavidromeClient, target: str) -> None:
    reply = client.request("GET", target, headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in reply.headers
    assert reply.headers["content-type"].startswith("text/plain")


def test_media_are_not_compressed(client: NavidromeClient) -> None:
    song = client.request("GET", "/api/song?_start=0&_end=1&_sort=title").json()[0]["id"]
    for call, more, status in (("stream", {"Range": "bytes=0-3"}, 206), ("getCoverArt", {}, 200)):
        target = f"/rest/{call}?{QUERY}&id={song}"
        reply = client.request("GET", target, headers={"Accept-Encoding": "gzip", **more})
        assert reply.status == status
        assert "content-encoding" not in reply.headers


@pytest.mark.parametrize(
    ("method", "target", "user", "status", "allowed"),
    [
        ("HEAD", "/api/user", ADMIN, 405, {"GET", "POST"}),
        ("PATCH", "/api/user/x", ADMIN, 405, {"GET", "PUT", "DELETE"}),
        ("POST", "/api/user/x/library", ADMIN, 405, {"GET", "PUT"}),
        ("POST", "/api/song", ADMIN, 405, {"GET"}),
        ("HEAD", "/api/library", ADMIN, 405, {"GET", "POST"}),
        ("HEAD", "/api/library", None, 401, set()),
        ("HEAD", "/api/user", None, 401, set()),
        ("POST", "/api/keepalive/x", None, 405, {"GET"}),
        ("POST", "/api/config/config", None, 405, {"GET"}),
        ("GET", "/api/config", None, 404, set()),
        ("GET", "/api//user", None, 404, set()),
        ("GET", "/api/user/x/nonsense", None, 401, set()),
        ("GET", "/api/user/x/nonsense", ADMIN, 404, set()),
        ("GET", "/api/events/", ADMIN, 404, set()),
        ("GET", "/auth/createAdmin", None, 405, {"POST"}),
        ("PUT", "/nowhere", None, 405, {"GET"}),
    ],
)
def test_a_method_or_path_without_a_route_is_rejected(
    client: NavidromeClient,
    method: str,
    target: str,
    user: str | None,
    status: int,
    allowed: set[str],
) -> None:
    received = _send(client, _head(f"{method} {target}", "Connection: close", user=user))
    assert _statuses(received) == [status]
    shown = re.findall(rb"(?im)^allow: (\w+)\r$", received)
    assert {each.decode() for each in shown} == allowed


def test_a_preflight_request_reaches_no_route(client: NavidromeClient) -> None:
    name = client.new_name()
    headers = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "put",
        "Access-Control-Request-Headers": "X-Nd-Authorization",
    }
    for target in ("/app/", "/api/user", f"/rest/ping?{QUERY}"):
        reply = client.request("OPTIONS", target, name, headers=headers)
        assert (reply.status, reply.body) == (200, b"")
        assert reply.headers["access-control-allow-origin"] == "*"
        assert reply.headers["access-control-allow-methods"] == "PUT"
        assert reply.headers["access-control-allow-headers"] == "X-Nd-Authorization"
    assert client.request("GET", "/api/song", name).status == 401


def test_only_the_first_user_header_counts(client: NavidromeClient) -> None:
    name = client.new_name()
    client.create(name)
    for first, second, status in ((name, ADMIN, 403), (ADMIN, name, 200), ("", ADMIN, 401)):
        fields = (f"Remote-User: {first}", f"Remote-User: {second}", "Connection: close")
        received = _send(client, _head("GET /api/user?_end=1", *fields, user=None))
        assert _statuses(received) == [status], first
    received = _send(
        client, _head("GET /api/user", "Remote_User: " + ADMIN, "Connection: close", user=None)
    )
    assert _statuses(received) == [401]
    untrusted = _head("GET /api/user", "Connection: close")
    assert _statuses(_send(client, untrusted, source=UNTRUSTED)) == [401]
