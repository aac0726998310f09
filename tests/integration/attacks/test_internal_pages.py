"""`/_shim/`: control-plane pages behind the edge, and requests that imitate the shim's own channel."""

from __future__ import annotations

import pytest

from shim.control.protocol import MAX_CONNECTIONS
from tests.support.recorder import Recorder
from tests.support.shim_process import (
    Shim,
    assert_rejected,
    build_request,
    edge_address,
    untrusted_address,
)

SETTINGS = {"ADMIN_GROUPS": "admins", "PROXY_SECRET": "swordfish-swordfish"}
SECRET = "X-Shim-Proxy-Secret: swordfish-swordfish"
ADMIN = ("X-authentik-username: ada", "X-authentik-groups: users|admins", SECRET)
FORM = ("Content-Type: application/x-www-form-urlencoded", "Content-Length: 10")
USER = ("X-authentik-username: eve", "X-authentik-groups: users", SECRET)


@pytest.mark.parametrize("path", ["/_shim/", "/_shim", "/_shim/metrics", "/_SHIM/readyz"])
@pytest.mark.parametrize(
    "fields",
    [
        (),
        ADMIN,
        ("X-Forwarded-For: 127.0.0.2", *ADMIN),
        ("Remote-User: admin",),
        ("X-Shim-Channel: guess", "X-Shim-User: admin", *ADMIN),
    ],
    ids=["nobody", "a claim", "a claim and a forwarded address", "the user header", "the channel"],
)
def test_an_untrusted_peer_gets_no_control_pages(
    shim: Shim, upstream: Recorder, path: str, fields: tuple[str, ...]
) -> None:
    untrusted_peer = untrusted_address()
    response = shim.request(build_request(f"GET {path} HTTP/1.1", *fields), untrusted_peer)
    assert_rejected(shim, upstream, response, untrusted_peer, 404, "not_found")


@pytest.mark.parametrize(
    "fields",
    [
        (),
        USER,
        (*USER, "X_authentik_groups: admins"),
        ("X-authentik-username: eve", "X-authentik-groups: Admins", SECRET),
        ("X-Shim-Channel: guess", "X-Shim-User: admin"),
        (*USER, "X-Shim-Admin: 1"),
        ADMIN[:2],
    ],
    ids=[
        "nobody",
        "no admin",
        "an alias of the groups",
        "another group",
        "the channel",
        "the rights",
        "no proof",
    ],
)
def test_a_user_who_is_not_admin_gets_no_control_pages(
    shim: Shim, upstream: Recorder, fields: tuple[str, ...]
) -> None:
    edge = edge_address()
    response = shim.request(build_request("GET /_shim/metrics HTTP/1.1", *fields), edge)
    assert_rejected(shim, upstream, response, edge, 404, "not_found")


def test_an_admin_gets_control_pages_and_navidrome_gets_no_request(
    shim: Shim, upstream: Recorder
) -> None:
    response = shim.request(build_request("GET /_shim/metrics HTTP/1.1", *ADMIN), edge_address())
    assert response.statuses == [200]
    assert b"shim_requests_total" in response.raw
    shim.decided("nobody", upstream)
    assert not upstream.requested
    assert not upstream.incomplete


@pytest.mark.parametrize(
    "fields",
    [
        ("X-Shim-User: root",),
        ("X-Shim-Channel: guess",),
        ("x-shim-channel:", "x-shim-user: root"),
    ],
)
def test_an_admin_cannot_forge_the_channels_headers(
    shim: Shim, upstream: Recorder, fields: tuple[str, ...]
) -> None:
    response = shim.request(
        build_request("GET /_shim/metrics HTTP/1.1", *ADMIN, *fields), edge_address()
    )
    assert response.statuses == [404]
    assert not upstream.requested


def test_a_query_is_not_part_of_the_control_planes_path(shim: Shim, upstream: Recorder) -> None:
    response = shim.request(build_request("GET /_shim?metrics HTTP/1.1", *ADMIN), edge_address())
    assert b"shim_requests_total" not in response.raw
    assert not upstream.requested


def test_unfinished_requests_of_one_person_do_not_keep_others_out(shim: Shim) -> None:
    unfinished = []
    for _ in range(MAX_CONNECTIONS + 10):
        client = shim.connect(edge_address())
        client.sendall(build_request("POST /_shim/api/reload HTTP/1.1", *ADMIN, *FORM) + b"half")
        unfinished.append(client)
    response = shim.request(build_request("GET /_shim/metrics HTTP/1.1", *ADMIN), edge_address())
    assert response.statuses == [200]
    for client in unfinished:
        client.close()


def test_a_long_body_does_not_reach_the_pages(shim: Shim) -> None:
    request = build_request("POST /_shim/api/reload HTTP/1.1", *ADMIN, "Content-Length: 100000")
    assert shim.request(request, edge_address()).statuses == [413]
