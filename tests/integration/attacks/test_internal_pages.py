"""`/_shim/`: control-plane pages behind the edge, and requests that imitate the shim's own channel."""

from __future__ import annotations

import pytest

from tests.support.recorder import Recorder
from tests.support.shim_process import Shim, an_edge, assert_rejected, build_request, someone

SETTINGS = {"ADMIN_GROUPS": "admins", "PROXY_SECRET": "swordfish-swordfish"}
SECRET = "X-Shim-Proxy-Secret: swordfish-swordfish"
ADMIN = ("X-authentik-username: ada", "X-authentik-groups: users|admins", SECRET)
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
    front: Shim, upstream: Recorder, path: str, fields: tuple[str, ...]
) -> None:
    untrusted_peer = someone()
    response = front.request(build_request(f"GET {path} HTTP/1.1", *fields), untrusted_peer)
    assert_rejected(front, upstream, response, untrusted_peer, 404, "not_found")


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
    front: Shim, upstream: Recorder, fields: tuple[str, ...]
) -> None:
    edge = an_edge()
    response = front.request(build_request("GET /_shim/metrics HTTP/1.1", *fields), edge)
    assert_rejected(front, upstream, response, edge, 404, "not_found")


def test_an_admin_gets_control_pages_and_navidrome_gets_no_request(
    front: Shim, upstream: Recorder
) -> None:
    response = front.request(build_request("GET /_shim/metrics HTTP/1.1", *ADMIN), an_edge())
    assert response.statuses == [200]
    assert b"shim_requests_total" in response.raw
    front.decided("nobody", upstream)
    assert not upstream.requested
    assert not upstream.torn


@pytest.mark.parametrize(
    "fields",
    [
        ("X-Shim-User: root",),
        ("X-Shim-Channel: guess",),
        ("x-shim-channel:", "x-shim-user: root"),
    ],
)
def test_an_admin_cannot_forge_the_channels_headers(
    front: Shim, upstream: Recorder, fields: tuple[str, ...]
) -> None:
    response = front.request(
        build_request("GET /_shim/metrics HTTP/1.1", *ADMIN, *fields), an_edge()
    )
    assert response.statuses == [404]
    assert not upstream.requested


def test_a_query_is_not_part_of_the_control_planes_path(front: Shim, upstream: Recorder) -> None:
    response = front.request(build_request("GET /_shim?metrics HTTP/1.1", *ADMIN), an_edge())
    assert b"shim_requests_total" not in response.raw
    assert not upstream.requested
