"""What leaves the edges that we ship, seen by a Navidrome directly behind them.

These hold the files in `deploy/` alone, so that the shim's own care hides no fault in them.
"""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest

from demo.outpost import OutpostUser
from tests.e2e.conftest import OPEN_PATH, USERS, Scene
from tests.e2e.parts import SECRET

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


def names_of_an_identity(scene: Scene, target: str) -> set[str]:
    """Which fields that could be an identity, or the secret, reached Navidrome."""
    folded = {name.lower() for name, _ in scene.last_seen(target).headers}
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
def test_nothing_that_an_untrusted_peer_claims_leaves_the_edge(
    edge_alone: Scene, target: str
) -> None:
    with edge_alone.client() as stranger:
        stranger.get(target, headers=CLAIMS)
    # The route of open paths is the authenticated one: its secret says that the edge asked.
    expected = {"x-shim-proxy-secret"} if target == OPEN_PATH else set()
    assert names_of_an_identity(edge_alone, target) == expected


def test_what_authentik_says_replaces_what_the_client_says(edge_alone: Scene) -> None:
    with edge_alone.client("alice") as alice:
        alice.get("/app/", headers=CLAIMS)
    seen = edge_alone.last_seen("/app/")
    expected = {name.lower() for name in NAMES} | {"x-shim-proxy-secret"}
    if edge_alone.edge in {"caddy", "nginx"}:  # They copy no empty header.
        expected.remove("x-authentik-entitlements")
    assert names_of_an_identity(edge_alone, "/app/") == expected
    for name in expected:
        [value] = seen.values(name)
        assert value != "forged"
    user = USERS[0]
    assert seen.values("X-authentik-username") == [user.username]
    assert seen.values("X-authentik-name") == [user.name]
    assert seen.values("X-authentik-groups") == ["|".join(user.groups)]
    assert seen.values("X-authentik-uid") == [user.uid]
    assert seen.values("X-Shim-Proxy-Secret") == [SECRET]


def test_the_secret_never_goes_where_the_edge_does_not_authenticate(edge_alone: Scene) -> None:
    with edge_alone.client("alice") as alice:
        for target in ("/rest/ping?v=1&c=x", "/share/nothing"):
            alice.get(target)
            assert names_of_an_identity(edge_alone, target) == set()


def test_what_connection_names_stays(edge_alone: Scene) -> None:
    named = "close, X-Authentik-Username, X-Authentik-Groups, X-Shim-Proxy-Secret"
    with edge_alone.client("alice") as alice:
        alice.get("/app/", headers={"Connection": named})
    seen = edge_alone.last_seen("/app/")
    assert seen.values("X-Authentik-Username") == ["alice"]
    assert seen.values("X-Authentik-Groups") == ["family|listeners"]
    assert seen.values("X-Shim-Proxy-Secret") == [SECRET]


@pytest.mark.parametrize("target", ["/app/", "/rest/ping?v=1&c=x"])
def test_what_the_client_says_about_forwarding_does_not_leave_the_edge(
    edge_alone: Scene, target: str
) -> None:
    claims = {
        "X-Forwarded-For": "203.0.113.7",
        "X-Forwarded-Proto": "gopher",
        "X-Forwarded-Host": "evil.example",
    }
    with edge_alone.client("alice") as alice:
        alice.get(target, headers=claims)
    seen = edge_alone.last_seen(target)
    assert seen.values("X-Forwarded-For") == ["127.0.0.1"]
    assert seen.values("X-Forwarded-Proto") == ["http"]
    assert seen.values("X-Forwarded-Host") == [edge_alone.url.removeprefix("http://")]


def test_a_path_in_other_case_is_treated_as_the_edge_treats_it(edge_alone: Scene) -> None:
    with edge_alone.client() as stranger:
        response = stranger.get("/REST/ping?v=1&c=x", headers=CLAIMS)
    if edge_alone.edge == "caddy":  # It matches paths without case.
        [seen] = edge_alone.stand_in.seen
        assert all("forged" not in value for _, value in seen.headers)
    else:
        assert response.status_code == httpx.codes.FOUND
        assert not edge_alone.stand_in.seen


def test_the_outposts_users_have_ids_of_their_own() -> None:
    assert len({user.uid for user in USERS}) == len(USERS)
    assert OutpostUser("alice", "Another Name").uid == USERS[0].uid
    assert replace(USERS[0], username="alison").uid == USERS[0].uid
