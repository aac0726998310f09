"""The attack that this project prevents: one `curl` on `/rest/`, and the attacker is the admin."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Deployment

USERS_CALL = "/rest/getUsers?v=1.16.1&c=curl&f=json"
CLAIMS = (
    "X-authentik-username",
    "x-authentik-username",
    "X-AUTHENTIK-USERNAME",
    "Remote-User",
    "X_authentik_username",
    "X.Authentik.Username",
    "X~Authentik~Username",
    "Remote_User",
)


def subsonic(response: httpx.Response) -> dict[str, Any]:
    """The envelope of a Subsonic response in JSON."""
    envelope: dict[str, Any] = response.json()["subsonic-response"]
    return envelope


def test_with_the_guides_routers_alone_any_client_can_be_the_admin(
    guide_without_shim: Deployment,
) -> None:
    with guide_without_shim.client() as attacker:
        response = attacker.get(USERS_CALL, headers={"X-authentik-username": "admin"})
    listed = subsonic(response)
    assert listed["status"] == "ok"
    # Navidrome lists to each user only that user.
    [text] = listed["users"]["user"]
    assert (text["username"], text["adminRole"]) == ("admin", True)


@pytest.mark.parametrize("header", CLAIMS)
def test_behind_the_shim_the_same_request_has_no_identity(
    deployment: Deployment, header: str
) -> None:
    with deployment.client() as attacker:
        response = attacker.get(USERS_CALL, headers={header: "admin"})
    refused = subsonic(response)
    assert refused["status"] == "failed"
    assert "users" not in refused
    seen = deployment.last_seen(USERS_CALL)
    assert identity_fields(seen.headers) == []


@pytest.mark.parametrize("header", CLAIMS)
def test_a_session_does_not_confirm_a_claimed_identity_on_a_public_path(
    deployment: Deployment, header: str
) -> None:
    with deployment.client("alice") as alice:
        response = alice.get(USERS_CALL, headers={header: "admin"})
    assert subsonic(response)["status"] == "failed"
    assert identity_fields(deployment.last_seen(USERS_CALL).headers) == []


@pytest.mark.parametrize(
    "path", ["/share/nothing", "/share/img/nothing", "/rest/ping.view?v=1&c=x"]
)
@pytest.mark.parametrize("header", CLAIMS)
def test_no_public_path_carries_an_identity(deployment: Deployment, path: str, header: str) -> None:
    with deployment.client() as attacker:
        response = attacker.get(path, headers={header: "admin"})
    seen = identities_seen(deployment)
    if deployment.edge == "guide" and path.startswith("/share/") and not seen:
        # Two of the guide's routers for a share have the same priority, and Traefik uses either of
        # them.
        assert response.status_code == httpx.codes.FOUND
    else:
        assert seen == [(path, [])]


@pytest.mark.parametrize("path", ["/restx", "/rest.", "/re%C5%BFt/x", "/jellyf%C4%B0n/x"])
@pytest.mark.parametrize("header", CLAIMS)
def test_no_path_that_an_edge_may_treat_as_public_carries_an_identity(
    deployment: Deployment, path: str, header: str
) -> None:
    with deployment.client() as attacker:
        attacker.get(path, headers={header: "admin"})
    with deployment.client("alice") as alice:
        alice.get(path, headers={header: "admin"})
    assert identities_seen(deployment) in ([(path, [])], [(path, [])] * 2)


@pytest.mark.parametrize("header", CLAIMS)
def test_a_client_that_bypasses_the_edge_has_no_identity(
    deployment: Deployment, header: str
) -> None:
    with deployment.client(source="127.0.0.9", to=deployment.shim_url) as direct_client:
        claims = {header: "admin", "X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1"}
        assert subsonic(direct_client.get(USERS_CALL, headers=claims))["status"] == "failed"
        direct_client.get("/app/", headers=claims)
        assert (
            direct_client.get("/api/user", headers=claims).status_code == httpx.codes.UNAUTHORIZED
        )
    assert len(deployment.received) == 3
    for seen in deployment.received:
        assert identity_fields(seen.headers) == []
        assert seen.values("X-Real-IP") == ["127.0.0.9"]


def identities_seen(deployment: Deployment) -> list[tuple[str, list[tuple[str, str]]]]:
    """The target of each request that reached Navidrome, with its fields that may be an identity."""
    return [(seen.target, identity_fields(seen.headers)) for seen in deployment.received]


def identity_fields(headers: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    """Every field that Navidrome, or any normalizing parser, could read an identity from."""
    return [
        (name, value)
        for name, value in headers
        if "authentik" in name.lower() or "user" in name.lower().replace("user-agent", "")
    ]
