"""What the edges of `deploy/` forward, seen by a Navidrome directly behind them.

These test the files in `deploy/` alone, so that the shim's own checks hide no fault in them.
"""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest

from demo.outpost import OutpostUser
from tests.e2e.conftest import OPEN_PATH, USERS, Deployment
from tests.e2e.servers import SECRET

NAMES = (
    "X-authentik-username",
    "X-authentik-groups",
    "X-authentik-entitlements",
    "X-authentik-email",
    "X-authentik-name",
    "X-authentik-uid",
    "X-authentik-jwt",
    "X-authentik-meta-jwks",
    "X-authentik-meta-outpost",
    "X-authentik-meta-provider",
    "X-authentik-meta-app",
    "X-authentik-meta-version",
)
CLAIMS = {
    **dict.fromkeys((*NAMES, "Remote-User", "X-Shim-Proxy-Secret"), "forged"),
    **{name.replace("-", "_"): "forged" for name in (*NAMES, "Remote-User", "X-Shim-Proxy-Secret")},
    **{name.replace("-", "."): "forged" for name in NAMES},
    **{name.replace("-", "~"): "forged" for name in NAMES},
}


def names_of_an_identity(deployment: Deployment, target: str) -> set[str]:
    """The fields that could be an identity, or the secret, which reached Navidrome."""
    folded = {name.lower() for name, _ in deployment.last_seen(target).headers}
    return {n for n in folded if any(word in n for word in ("authentik", "remote", "secret"))}


@pytest.mark.parametrize(
    "target",
    [
        "/rest/ping?v=1&c=x",
        "/share/nothing",
        OPEN_PATH,
        "/rest/",
        "/share/img/x",
        "/jellyfin/Users",
        "/app/favicon.ico",
    ],
)
def test_no_claimed_identity_of_an_untrusted_peer_is_forwarded(
    edge_without_shim: Deployment, target: str
) -> None:
    with edge_without_shim.client() as anonymous:
        anonymous.get(target, headers=CLAIMS)
    # The route of open paths is the authenticated one: its secret shows that the request came
    # through the edge.
    expected = {"x-shim-proxy-secret"} if target == OPEN_PATH else set()
    assert names_of_an_identity(edge_without_shim, target) == expected


def test_authentiks_headers_replace_the_clients(edge_without_shim: Deployment) -> None:
    with edge_without_shim.client("alice") as alice:
        alice.get("/app/", headers=CLAIMS)
    seen = edge_without_shim.last_seen("/app/")
    expected = {name.lower() for name in NAMES} | {"x-shim-proxy-secret"}
    if edge_without_shim.edge in {"caddy", "nginx"}:  # They copy no empty header.
        expected.remove("x-authentik-entitlements")
    assert names_of_an_identity(edge_without_shim, "/app/") == expected
    for name in expected:
        [value] = seen.values(name)
        assert value != "forged"
    user = USERS[0]
    assert seen.values("X-authentik-username") == [user.username]
    assert seen.values("X-authentik-name") == [user.name]
    assert seen.values("X-authentik-groups") == ["|".join(user.groups)]
    assert seen.values("X-authentik-uid") == [user.uid]
    assert seen.values("X-Shim-Proxy-Secret") == [SECRET]


def test_the_secret_is_not_sent_where_the_edge_does_not_authenticate(
    edge_without_shim: Deployment,
) -> None:
    with edge_without_shim.client("alice") as alice:
        for target in ("/rest/ping?v=1&c=x", "/share/nothing"):
            alice.get(target)
            assert names_of_an_identity(edge_without_shim, target) == set()


def test_headers_listed_in_connection_are_still_forwarded(edge_without_shim: Deployment) -> None:
    named = "close, X-Authentik-Username, X-Authentik-Groups, X-Shim-Proxy-Secret"
    with edge_without_shim.client("alice") as alice:
        alice.get("/app/", headers={"Connection": named})
    seen = edge_without_shim.last_seen("/app/")
    assert seen.values("X-Authentik-Username") == ["alice"]
    assert seen.values("X-Authentik-Groups") == ["family|listeners"]
    assert seen.values("X-Shim-Proxy-Secret") == [SECRET]


@pytest.mark.parametrize("target", ["/app/", "/rest/ping?v=1&c=x"])
def test_the_clients_forwarding_headers_are_not_forwarded(
    edge_without_shim: Deployment, target: str
) -> None:
    claims = {
        "X-Forwarded-For": "203.0.113.7",
        "X-Forwarded-Proto": "gopher",
        "X-Forwarded-Host": "evil.example",
    }
    with edge_without_shim.client("alice") as alice:
        alice.get(target, headers=claims)
    seen = edge_without_shim.last_seen(target)
    assert seen.values("X-Forwarded-For") == ["127.0.0.1"]
    assert seen.values("X-Forwarded-Proto") == ["http"]
    assert seen.values("X-Forwarded-Host") == [edge_without_shim.url.removeprefix("http://")]


def test_a_path_in_another_case_is_treated_as_the_edge_treats_it(
    edge_without_shim: Deployment,
) -> None:
    with edge_without_shim.client() as anonymous:
        response = anonymous.get("/REST/ping?v=1&c=x", headers=CLAIMS)
    if edge_without_shim.edge == "caddy":  # It matches paths case-insensitively.
        [seen] = edge_without_shim.received
        assert all("forged" not in value for _, value in seen.headers)
    else:
        assert response.status_code == httpx.codes.FOUND
        assert not edge_without_shim.received


def test_the_outposts_users_have_different_ids() -> None:
    assert len({user.uid for user in USERS}) == len(USERS)
    assert OutpostUser("alice", "Another Name").uid == USERS[0].uid
    assert replace(USERS[0], username="alison").uid == USERS[0].uid
