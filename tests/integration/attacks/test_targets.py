"""Targets that the edge and Navidrome interpret differently."""

from __future__ import annotations

import pytest

from tests.support.recorder import Recorder
from tests.support.shim_process import (
    HOST,
    Shim,
    assert_rejected,
    assert_stripped,
    build_request,
    edge_address,
    untrusted_address,
)

ADMIN = "X-authentik-username: admin"


@pytest.mark.parametrize("name", ["X-Forwarded-Uri", "X-Original-URL", "X-Rewrite-URL"])
def test_the_decision_uses_the_path_of_the_request_line(
    shim: Shim, upstream: Recorder, name: str
) -> None:
    edge = edge_address()
    fields = (ADMIN, f"{name}: /app/", "X-Forwarded-Prefix: /app")
    response = shim.request(build_request("GET /rest/getUsers?v=1&c=x HTTP/1.1", *fields), edge)
    received = assert_stripped(shim, upstream, response, edge)
    assert received.target == "/rest/getUsers?v=1&c=x"


@pytest.mark.parametrize(
    "target",
    [
        "/app/../rest/getUsers",
        "/rest/../api/user",
        "/rest/./getUsers",
        "/api/user/..",
        "//rest/getUsers",
        "/app//rest/getUsers",
        "/%2e%2e/rest/getUsers",
        "/app/.%2E/rest/getUsers",
        "/rest%2fgetUsers",
        "/rest%2FgetUsers",
        "/%72est/getUsers",
        "/%52EST/getUsers",
        "/rest%252fgetUsers",
        "/app\\..\\rest\\getUsers",
        "/app/..%5crest/getUsers",
        "/app;/../rest/getUsers",
        "/rest;x=/getUsers",
        "/rest%3bx/getUsers",
        "/rest/getUsers%00",
        "/rest/getUsers%0d%0aRemote-User:%20admin",
        "/app/#/../rest/getUsers",
        "/app/%zz",
        "/app/%c0%af../rest",
        "http://evil.example/rest/getUsers",
        f"http://{HOST}:1/app/",
        f"http://eve@{HOST}/app/",
        f"http://{HOST}//rest/getUsers",
        f"ftp://{HOST}/rest/getUsers",
        "rest/getUsers",
        "*",
        "music.example.com:443",
    ],
)
@pytest.mark.parametrize("listed", [True, False], ids=["the edge", "anyone"])
def test_an_ambiguous_target_is_rejected_and_not_normalized(
    shim: Shim, upstream: Recorder, target: str, listed: bool
) -> None:
    peer = edge_address() if listed else untrusted_address()
    method = "OPTIONS" if target == "*" else "GET"
    response = shim.request(build_request(f"{method} {target} HTTP/1.1", ADMIN), peer)
    assert_rejected(shim, upstream, response, peer, 400, "ambiguous_target")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/restx", "public_path"),
        ("/rest.", "public_path"),
        ("/RESTx/getUsers", "public_path"),
        ("/rest%20/getUsers", "public_path"),
        ("/sharex", "public_path"),
        ("/jellyfinx/Users", "public_path"),
        ("/re%C5%BFt/x", "non_ascii_path"),
        ("/re%C5%BFt%C3%A9", "non_ascii_path"),
        ("/jellyf%C4%B0n/x", "non_ascii_path"),
        ("/rest/%C3%A9", "public_path"),
    ],
)
def test_a_path_that_an_edge_may_treat_as_public_carries_no_identity(
    shim: Shim, upstream: Recorder, target: str, reason: str
) -> None:
    """An edge's rule may be a bare prefix (`/rest`), and may fold case as Unicode does (Go's `(?i)`)."""
    edge = edge_address()
    response = shim.request(build_request(f"GET {target} HTTP/1.1", ADMIN), edge)
    received = assert_stripped(shim, upstream, response, edge, reason)
    assert received.target == target


@pytest.mark.parametrize("target", ["/app/\x00", "/app/\x7f", "/app/\x01", "/app/\u00e9"])
def test_a_target_with_a_control_or_raw_byte_is_rejected(
    shim: Shim, upstream: Recorder, target: str
) -> None:
    edge = edge_address()
    response = shim.request(build_request(f"GET {target} HTTP/1.1", ADMIN), edge)
    assert_rejected(shim, upstream, response, edge, 400, "ambiguous_target")


def test_an_absolute_target_is_decided_and_forwarded_by_its_path(
    shim: Shim, upstream: Recorder
) -> None:
    edge = edge_address()
    response = shim.request(build_request(f"GET http://{HOST}/rest/getUsers HTTP/1.1", ADMIN), edge)
    received = assert_stripped(shim, upstream, response, edge)
    assert received.target == "/rest/getUsers"
    assert received.values("Host") == [HOST]


def test_two_host_headers_are_rejected(shim: Shim, upstream: Recorder) -> None:
    for fields in ((f"Host: {HOST}", "Host: evil.example"), ("Host: a", "host: a"), ("Host: a,b",)):
        edge = edge_address()
        response = shim.request(
            build_request("GET /app/ HTTP/1.1", ADMIN, *fields, host=None), edge
        )
        assert_rejected(shim, upstream, response, edge, 400, "ambiguous_host")


def test_a_method_that_another_parser_could_read_differently_is_not_forwarded(
    shim: Shim, upstream: Recorder
) -> None:
    for method in ("CONNECT", "TRACE", "get", "PROPFIND", "QUERY"):
        edge = edge_address()
        response = shim.request(build_request(f"{method} /app/ HTTP/1.1", ADMIN), edge)
        assert_rejected(shim, upstream, response, edge, 501, "method_not_implemented")
