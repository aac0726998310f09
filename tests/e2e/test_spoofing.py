"""A signed-in user who would like to be more than he is, and what the edges let through of it."""

from __future__ import annotations

import httpx
import pytest

from tests.e2e.conftest import ADMIN_GROUP, Scene
from tests.e2e.parts import SECRET
from tests.e2e.test_takeover import identities_seen, identity_fields

ALIASES = (
    "X_authentik_username",
    "X.Authentik.Username",
    "X~Authentik~Username",
    "X+Authentik+Username",
    "X-Authentik_Username",
    "x_AUTHENTIK_username",
)

AMBIGUOUS_PATHS = (
    "/rest/../app/",
    "/share/%2e%2e/app/",
    "/rest//../api/user",
    "/app/../rest/ping?v=1",
)


@pytest.mark.parametrize("name", ["X-authentik-username", "X-AUTHENTIK-USERNAME", "Remote-User"])
def test_the_true_header_of_a_client_changes_nothing(scene: Scene, name: str) -> None:
    with scene.client("alice") as alice:
        response = alice.get("/app/", headers={name: "admin"})
    assert response.status_code == httpx.codes.OK
    assert identity_fields(scene.last_seen("/app/").headers) == [("Remote-User", "alice")]


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_never_speaks(scene: Scene, alias: str) -> None:
    with scene.client("alice") as alice:
        response = alice.get("/app/", headers={alias: "admin"})
    if scene.edge == "guide":  # It passes aliases on; the shim rejects them.
        assert response.status_code == httpx.codes.BAD_REQUEST
        assert list(scene.stand_in.seen) == []
    else:  # The alias ends at the edge, and alice is herself.
        assert response.status_code == httpx.codes.OK
        assert identity_fields(scene.last_seen("/app/").headers) == [("Remote-User", "alice")]


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_alone_on_an_open_path_is_nobody(scene: Scene, alias: str) -> None:
    with scene.client() as stranger:
        response = stranger.get("/ping", headers={alias: "admin"})
    if scene.edge == "guide":  # It passes aliases on; the shim rejects them.
        assert response.status_code == httpx.codes.BAD_REQUEST
        assert identities_seen(scene) == []
    else:
        assert response.status_code == httpx.codes.OK
        assert identities_seen(scene) == [("/ping", [])]


@pytest.mark.parametrize("name", ["X-authentik-username", "Remote-User"])
def test_the_true_header_of_a_client_on_an_open_path_is_nobody(scene: Scene, name: str) -> None:
    with scene.client() as stranger:
        assert stranger.get("/ping", headers={name: "admin"}).status_code == httpx.codes.OK
    assert identity_fields(scene.last_seen("/ping").headers) == []


@pytest.mark.parametrize(
    "name", ["X-authentik-groups", "X_authentik_groups", "X.authentik.groups", "X-AUTHENTIK-GROUPS"]
)
def test_nobody_gives_himself_a_group(scene: Scene, name: str) -> None:
    with scene.client("alice") as alice:
        response = alice.get("/_shim/readyz", headers={name: ADMIN_GROUP})
    assert response.status_code in {httpx.codes.NOT_FOUND, httpx.codes.BAD_REQUEST}


@pytest.mark.parametrize(
    "named",
    [
        "close, X-Authentik-Username",
        "X-Authentik-Username, Remote-User",
        "close, X-Authentik-Groups, X-Authentik-Uid, X-Authentik-Jwt",
        "X-Shim-Proxy-Secret",
    ],
)
@pytest.mark.parametrize(
    "claim", ["X~Authentik~Username", "X_Authentik_Username", "X-Authentik-Username"]
)
def test_what_connection_names_makes_nobody_someone_else(
    scene: Scene, named: str, claim: str
) -> None:
    with scene.client("alice") as alice:
        response = alice.get("/app/", headers={"Connection": named, claim: "admin"})
    if scene.edge == "guide" and claim != "X-Authentik-Username":
        assert response.status_code == httpx.codes.BAD_REQUEST
        assert identities_seen(scene) == []
    else:
        assert response.status_code == httpx.codes.OK
        assert identities_seen(scene) == [("/app/", [("Remote-User", "alice")])]


def test_the_path_is_matched_without_case_and_still_carries_nobody(scene: Scene) -> None:
    target = "/REST/getUsers?v=1&c=x"
    with scene.client() as intruder:
        response = intruder.get(target, headers={"X-authentik-username": "admin"})
    if scene.edge == "caddy":
        assert identities_seen(scene) == [(target, [])]
    else:  # Traefik matches paths with case, and sends the request to sign-in.
        assert response.status_code == httpx.codes.FOUND
        assert identities_seen(scene) == []
    # The shim itself, asked by the edge's address.
    scene.stand_in.seen.clear()
    with scene.client(to=scene.shim_url) as edge:
        claims = {"X-authentik-username": "admin", "X-Shim-Proxy-Secret": SECRET}
        edge.get(target, headers=claims)
    assert identities_seen(scene) == [(target, [])]


def test_a_forwarded_uri_of_the_clients_own_opens_no_path(scene: Scene) -> None:
    claims = {
        "X-Forwarded-Uri": "/ping",
        "X-Forwarded-Host": "x",
        "X-Original-URL": "http://x/ping",
    }
    with scene.client() as stranger:
        response = stranger.get("/app/", headers=claims)
    assert response.status_code == httpx.codes.FOUND
    assert response.headers["Location"].startswith(scene.url)
    assert list(scene.stand_in.seen) == []


@pytest.mark.parametrize("path", AMBIGUOUS_PATHS)
def test_a_path_that_can_be_read_in_two_ways_makes_nobody_someone_else(
    scene: Scene, path: str
) -> None:
    with scene.client() as intruder:
        response = intruder.get(
            "/",
            headers={"X-authentik-username": "admin"},
            extensions={"target": path.encode()},  # as it stands: httpx clears paths up
        )
    if path.startswith("/app/") and scene.edge in {
        "traefik",
        "guide",
    }:  # Traefik resolves it to `/rest/ping`.
        assert identities_seen(scene) == [("/rest/ping?v=1", [])]
    else:
        rejected = {httpx.codes.FOUND, httpx.codes.BAD_REQUEST}  # To sign-in, or by the shim.
        assert response.status_code in rejected
        assert identities_seen(scene) == []


@pytest.mark.parametrize("path", AMBIGUOUS_PATHS)
def test_the_shim_rejects_a_path_that_can_be_read_in_two_ways_from_the_edge_too(
    scene: Scene, path: str
) -> None:
    with scene.client(to=scene.shim_url) as edge:
        claims = {"X-authentik-username": "admin", "X-Shim-Proxy-Secret": SECRET}
        response = edge.get("/", headers=claims, extensions={"target": path.encode()})
    assert response.status_code == httpx.codes.BAD_REQUEST
    assert identities_seen(scene) == []
