"""Spoofed identity headers."""

from __future__ import annotations

import pytest

from tests.support.recorder import Recorder
from tests.support.shim_process import (
    Shim,
    assert_no_identity,
    assert_rejected,
    assert_stripped,
    build_request,
    edge_address,
    untrusted_address,
)

SETTINGS = {"ADMIN_GROUPS": "admins"}  # so that the policy reads the groups

ADMIN = "X-authentik-username: admin"
GROUPS = "X-authentik-groups: users"
ALIASES = [
    "X_Authentik_Username",
    "X.Authentik.Username",
    "X~Authentik~Username",
    "x+authentik-uid",
    "X_authentik_meta_jwks",  # a name that no setting has, below a prefix that is
]
TRUE_NAMES = ["x-AUTHENTIK-username", "X-authentik-meta-jwks", "REMOTE-user", "Remote_User"]


def test_an_identity_from_the_edge_is_trusted(shim: Shim, upstream: Recorder) -> None:
    edge = edge_address()
    response = shim.request(build_request("GET /app/ HTTP/1.1", ADMIN, GROUPS), edge)
    assert response.statuses == [200]
    assert shim.decided(edge, upstream) == []
    (received,) = upstream.requested
    assert received.values("Remote-User") == ["admin"]


@pytest.mark.parametrize(
    "target",
    [
        "/rest/getUsers?v=1&c=x",
        "/REST/getUsers?v=1&c=x",
        "/rest",
        "/share/abc",
        "/share",
        "/jellyfin/Users",
        "/JellyFin/Users",
    ],
)
def test_an_identity_header_on_an_unauthenticated_route_is_stripped(
    shim: Shim, upstream: Recorder, target: str
) -> None:
    edge = edge_address()
    fields = ("X-authentik-username: admin", GROUPS, "X-Shim-Proxy-Secret: x", "Remote-User: admin")
    response = shim.request(build_request(f"GET {target} HTTP/1.1", *fields), edge)
    received = assert_stripped(shim, upstream, response, edge)
    assert b"admin" not in received.head


@pytest.mark.parametrize("name", ALIASES)
def test_aliases_on_a_protected_path_are_rejected(
    shim: Shim, upstream: Recorder, name: str
) -> None:
    for fields in ((f"{name}: admin",), ("X-authentik-username: eve", GROUPS, f"{name}: admin")):
        edge = edge_address()
        response = shim.request(build_request("GET /app/ HTTP/1.1", *fields), edge)
        assert_rejected(shim, upstream, response, edge, 400, "header_alias")


@pytest.mark.parametrize("name", [*ALIASES, *TRUE_NAMES])
@pytest.mark.parametrize("path", ["/app/", "/rest/ping", "/share/x"])
def test_aliases_from_an_untrusted_peer_are_stripped(
    shim: Shim, upstream: Recorder, name: str, path: str
) -> None:
    untrusted_peer = untrusted_address()
    response = shim.request(build_request(f"GET {path} HTTP/1.1", f"{name}: admin"), untrusted_peer)
    assert_stripped(shim, upstream, response, untrusted_peer)


@pytest.mark.parametrize("name", ALIASES)
def test_aliases_on_a_public_path_are_stripped(shim: Shim, upstream: Recorder, name: str) -> None:
    edge = edge_address()
    response = shim.request(build_request("GET /rest/ping HTTP/1.1", f"{name}: admin"), edge)
    assert_stripped(shim, upstream, response, edge)


@pytest.mark.parametrize(
    "fields",
    [
        ("X-authentik-username: ada", ADMIN),
        (ADMIN, ADMIN),
        ("X-authentik-username: ada", "x-AUTHENTIK-username: admin"),
        ("X-authentik-username: ada", GROUPS, "X-Authentik-Groups: admins"),
        ("X-authentik-username: ada", "X_authentik_username: ada"),
    ],
    ids=["two values", "twice the same", "another case", "the groups", "once per alias"],
)
def test_a_repeated_header_or_alias_is_rejected(
    shim: Shim, upstream: Recorder, fields: tuple[str, ...]
) -> None:
    edge = edge_address()
    response = shim.request(build_request("GET /app/ HTTP/1.1", *fields), edge)
    assert_rejected(shim, upstream, response, edge, 400, "identity_duplicate", "header_alias")


@pytest.mark.parametrize("path", ["/app/", "/api/user", "/rest/getUsers", "/share/x", "/_shim"])
@pytest.mark.parametrize("listed", [True, False], ids=["the edge", "anyone"])
def test_a_user_header_from_the_client_is_stripped(
    shim: Shim, upstream: Recorder, path: str, listed: bool
) -> None:
    peer = edge_address() if listed else untrusted_address()
    fields = ("Remote-User: admin", "remote-user: root")
    response = shim.request(build_request(f"GET {path} HTTP/1.1", *fields), peer)
    if path == "/_shim":
        assert_rejected(shim, upstream, response, peer, 404, "not_found")
    else:
        assert_stripped(shim, upstream, response, peer)


def test_a_user_header_beside_a_trusted_identity_is_replaced(
    shim: Shim, upstream: Recorder
) -> None:
    fields = ("Remote-User: admin", "X-authentik-username: ada", GROUPS, "remote-user: root")
    shim.request(build_request("GET /app/ HTTP/1.1", *fields), edge_address())
    (received,) = upstream.requested
    assert received.values("Remote-User") == ["ada"]


@pytest.mark.parametrize(
    "name",
    [
        "X-WebAuth-User",
        "x_webauth_user",
        "X-Forwarded-User",
        "X-Auth-Request-User",
        "Remote-Groups",
        "Tailscale-User-Login",
        "Cf-Access-Authenticated-User-Email",
    ],
)
@pytest.mark.parametrize("path", ["/app/", "/rest/ping", "/share/x"])
def test_another_user_header_that_navidrome_may_read_is_removed(
    shim: Shim, upstream: Recorder, name: str, path: str
) -> None:
    """Navidrome may be configured with another user header than the shim."""
    for peer in (edge_address(), untrusted_address()):
        assert shim.request(
            build_request(f"GET {path} HTTP/1.1", f"{name}: root"), peer
        ).statuses == [200]
        assert shim.decided(peer, upstream) == []  # the verdict is `anonymous`
    edge = edge_address()
    fields = (f"{name}: root", "X-authentik-username: ada", GROUPS)
    assert shim.request(build_request("GET /app/ HTTP/1.1", *fields), edge).statuses == [200]
    assert shim.decided(edge, upstream) == []
    assert upstream.requested[-1].values("Remote-User") == ["ada"]
    assert len(upstream.requested) == 3
    for received in upstream.requested:
        assert b"root" not in received.head


@pytest.mark.parametrize("option", ["X-Authentik-Username", "x-authentik-groups", "Remote-User"])
def test_a_header_listed_in_connection_is_not_treated_as_hop_by_hop(
    shim: Shim, upstream: Recorder, option: str
) -> None:
    fields = ("X-authentik-username: ada", GROUPS, "Remote-User: admin")
    shim.request(
        build_request("GET /app/ HTTP/1.1", *fields, f"Connection: close, {option}"),
        edge_address(),
    )
    (received,) = upstream.requested
    assert received.values("Remote-User") == ["ada"]
    assert received.values("Connection") == []


def test_a_connection_option_does_not_preserve_an_alias(shim: Shim, upstream: Recorder) -> None:
    edge = edge_address()
    fields = ("X~Authentik~Username: admin", "Connection: close, X-Authentik-Username")
    response = shim.request(build_request("GET /app/ HTTP/1.1", *fields), edge)
    assert_rejected(shim, upstream, response, edge, 400, "header_alias")


@pytest.mark.parametrize(
    "value",
    [
        b"ad\x00min",
        b"\x00",
        b"ad\rmin",
        b"ad\nmin",
        b"admin\r",
        b"\nadmin",
        b"ada\r\n Remote-User: admin",
        b"ada\nRemote-User: admin",
        b"\xff",
        b"a" * 256,
        b"a\tb",
        "a\u2028b".encode(),
        "\u00a0admin".encode(),
    ],
)
def test_a_control_character_in_the_identity_is_rejected(
    shim: Shim, upstream: Recorder, value: bytes
) -> None:
    edge = edge_address()
    response = shim.request(
        build_request("GET /app/ HTTP/1.1", b"X-authentik-username: " + value), edge
    )
    assert_rejected(shim, upstream, response, edge, 400, "identity_invalid", "malformed_head")


@pytest.mark.parametrize("value", ["", " \t "])
def test_empty_identity_headers_claim_no_identity(
    shim: Shim, upstream: Recorder, value: str
) -> None:
    """An edge may always copy them, and leave them empty for anonymous clients."""
    edge = edge_address()
    fields = tuple(f"X-authentik-{role}:{value}" for role in ("username", "groups", "uid", "jwt"))
    assert shim.request(build_request("GET /app/ HTTP/1.1", *fields), edge).statuses == [200]
    assert shim.decided(edge, upstream) == []
    (received,) = upstream.requested
    assert_no_identity(received)
    upstream.clear()
    edge = edge_address()
    response = shim.request(build_request("GET /app/ HTTP/1.1", *fields, ADMIN), edge)
    assert_rejected(shim, upstream, response, edge, 400, "identity_duplicate")


@pytest.mark.parametrize("value", ["admin ", "admin\t", " \tadmin \t "])
def test_a_trailing_blank_is_removed_before_comparison(
    shim: Shim, upstream: Recorder, value: str
) -> None:
    shim.request(
        build_request("GET /app/ HTTP/1.1", f"X-authentik-username:{value}", GROUPS),
        edge_address(),
    )
    (received,) = upstream.requested
    assert b"\r\nRemote-User: admin\r\n" in received.head + b"\r\n"


@pytest.mark.parametrize("name", ["X_authentik_groups", "x.authentik.groups"])
def test_a_signed_in_user_cannot_add_an_alias_of_the_groups(
    shim: Shim, upstream: Recorder, name: str
) -> None:
    edge = edge_address()
    fields = ("X-authentik-username: eve", GROUPS, f"{name}: admins")
    response = shim.request(build_request("GET /_shim/ HTTP/1.1", *fields), edge)
    assert_rejected(shim, upstream, response, edge, 404, "not_found")
    edge = edge_address()
    response = shim.request(build_request("GET /api/user HTTP/1.1", *fields), edge)
    assert_rejected(shim, upstream, response, edge, 400, "header_alias")


def test_a_group_list_removed_by_the_connection_header_is_detected(
    shim: Shim, upstream: Recorder
) -> None:
    edge = edge_address()
    response = shim.request(build_request("GET /app/ HTTP/1.1", "X-authentik-username: eve"), edge)
    assert_rejected(shim, upstream, response, edge, 403, "identity_incomplete")


def test_a_request_without_an_identity_is_forwarded_without_one(
    shim: Shim, upstream: Recorder
) -> None:
    for peer in (edge_address(), untrusted_address()):
        assert shim.request(build_request("GET /app/ HTTP/1.1"), peer).statuses == [200]
        assert shim.decided(peer, upstream) == []
    for received in upstream.requested:
        assert_no_identity(received)
