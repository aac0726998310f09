"""A signed-in user who spoofs identity headers, through each edge."""

from __future__ import annotations

import httpx
import pytest

from tests.e2e.conftest import ADMIN_GROUP, Deployment
from tests.e2e.servers import SECRET
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
def test_an_identity_header_of_a_client_has_no_effect(deployment: Deployment, name: str) -> None:
    with deployment.client("alice") as alice:
        response = alice.get("/app/", headers={name: "admin"})
    assert response.status_code == httpx.codes.OK
    assert identity_fields(deployment.last_seen("/app/").headers) == [("Remote-User", "alice")]


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_never_used_as_an_identity(deployment: Deployment, alias: str) -> None:
    with deployment.client("alice") as alice:
        response = alice.get("/app/", headers={alias: "admin"})
    if deployment.edge == "guide":  # It forwards aliases; the shim rejects them.
        assert response.status_code == httpx.codes.BAD_REQUEST
        assert deployment.received == []
    else:  # The edge removes the alias, and the request is alice's.
        assert response.status_code == httpx.codes.OK
        assert identity_fields(deployment.last_seen("/app/").headers) == [("Remote-User", "alice")]


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_alone_on_an_open_path_claims_no_identity(
    deployment: Deployment, alias: str
) -> None:
    with deployment.client() as anonymous:
        response = anonymous.get("/ping", headers={alias: "admin"})
    if deployment.edge == "guide":  # It forwards aliases; the shim rejects them.
        assert response.status_code == httpx.codes.BAD_REQUEST
        assert identities_seen(deployment) == []
    else:
        assert response.status_code == httpx.codes.OK
        assert identities_seen(deployment) == [("/ping", [])]


@pytest.mark.parametrize("name", ["X-authentik-username", "Remote-User"])
def test_an_identity_header_of_a_client_on_an_open_path_is_stripped(
    deployment: Deployment, name: str
) -> None:
    with deployment.client() as anonymous:
        assert anonymous.get("/ping", headers={name: "admin"}).status_code == httpx.codes.OK
    assert identity_fields(deployment.last_seen("/ping").headers) == []


@pytest.mark.parametrize(
    "name", ["X-authentik-groups", "X_authentik_groups", "X.authentik.groups", "X-AUTHENTIK-GROUPS"]
)
def test_a_user_cannot_add_a_group(deployment: Deployment, name: str) -> None:
    with deployment.client("alice") as alice:
        response = alice.get("/_shim/readyz", headers={name: ADMIN_GROUP})
    assert response.status_code == httpx.codes.NOT_FOUND


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
def test_headers_listed_in_connection_do_not_change_the_identity(
    deployment: Deployment, named: str, claim: str
) -> None:
    with deployment.client("alice") as alice:
        response = alice.get("/app/", headers={"Connection": named, claim: "admin"})
    if deployment.edge == "guide" and claim != "X-Authentik-Username":
        assert response.status_code == httpx.codes.BAD_REQUEST
        assert identities_seen(deployment) == []
    else:
        assert response.status_code == httpx.codes.OK
        assert identities_seen(deployment) == [("/app/", [("Remote-User", "alice")])]


def test_a_path_matched_case_insensitively_carries_no_identity(deployment: Deployment) -> None:
    target = "/REST/getUsers?v=1&c=x"
    with deployment.client() as attacker:
        response = attacker.get(target, headers={"X-authentik-username": "admin"})
    if deployment.edge == "caddy":
        assert identities_seen(deployment) == [(target, [])]
    else:  # Traefik matches paths case-sensitively, and redirects the request to sign-in.
        assert response.status_code == httpx.codes.FOUND
        assert identities_seen(deployment) == []
    # Directly to the shim, from the edge's address.
    deployment.stand_in.seen.clear()
    with deployment.client(to=deployment.shim_url) as edge:
        claims = {"X-authentik-username": "admin", "X-Shim-Proxy-Secret": SECRET}
        edge.get(target, headers=claims)
    assert identities_seen(deployment) == [(target, [])]


def test_a_forwarded_uri_from_the_client_opens_no_path(deployment: Deployment) -> None:
    claims = {
        "X-Forwarded-Uri": "/ping",
        "X-Forwarded-Host": "x",
        "X-Original-URL": "http://x/ping",
    }
    with deployment.client() as anonymous:
        response = anonymous.get("/app/", headers=claims)
    assert response.status_code == httpx.codes.FOUND
    assert response.headers["Location"].startswith(deployment.url)
    assert deployment.received == []


@pytest.mark.parametrize("path", AMBIGUOUS_PATHS)
def test_an_ambiguous_path_does_not_change_the_identity(deployment: Deployment, path: str) -> None:
    with deployment.client() as attacker:
        response = attacker.get(
            "/",
            headers={"X-authentik-username": "admin"},
            extensions={"target": path.encode()},  # unchanged: httpx normalizes paths
        )
    if path.startswith("/app/") and deployment.edge in {
        "traefik",
        "guide",
    }:  # Traefik resolves it to `/rest/ping`.
        assert identities_seen(deployment) == [("/rest/ping?v=1", [])]
    else:
        rejected = {
            httpx.codes.FOUND,
            httpx.codes.BAD_REQUEST,
        }  # Redirected to sign-in, or rejected by the shim.
        assert response.status_code in rejected
        assert identities_seen(deployment) == []


@pytest.mark.parametrize("path", AMBIGUOUS_PATHS)
def test_the_shim_rejects_an_ambiguous_path_from_the_edge_too(
    deployment: Deployment, path: str
) -> None:
    with deployment.client(to=deployment.shim_url) as edge:
        claims = {"X-authentik-username": "admin", "X-Shim-Proxy-Secret": SECRET}
        response = edge.get("/", headers=claims, extensions={"target": path.encode()})
    assert response.status_code == httpx.codes.BAD_REQUEST
    assert identities_seen(deployment) == []
