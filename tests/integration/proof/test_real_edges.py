"""Real edges in front of the shim, with each proof enabled: the takeover and its variants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from demo.navidrome import StandInOptions, StandInThread
from demo.outpost import Outpost, OutpostOptions
from tests.e2e.conftest import EDGES, USERS, Deployment
from tests.e2e.servers import SECRET, Upstreams, shim
from tests.support.jwt_minting import claims, rsa_key, token

SPOOFED = {
    "X-authentik-username": "admin",
    "X-authentik-uid": "1",
    "X-authentik-groups": "admins",
}
REST = "/rest/getUsers?v=1.16.1&c=curl&f=json"


@contextmanager
def start_deployment(
    folder: Path, edge: str, *, secret: str = "", **settings: str
) -> Iterator[Deployment]:
    """An edge, a provider with a key set, the shim and a stand-in."""
    with (
        StandInThread(StandInOptions(login_window=3600)) as stand_in,
        Outpost(OutpostOptions(users=USERS, open_paths=("^/ping$",))) as outpost,
    ):
        environment = {
            "SHIM_JWKS_URL": f"{outpost.issuer}jwks/",
            "SHIM_JWT_ISSUER": outpost.issuer,
            "SHIM_JWT_AUDIENCE": outpost.options.client_id,
            "SHIM_ADMIN_GROUPS": "admins",
            **{f"SHIM_{name}": value for name, value in settings.items()},
        }
        if secret:
            environment["SHIM_PROXY_SECRET"] = secret
        with (
            shim(folder, stand_in.url, **environment) as before,
            EDGES[edge](folder, Upstreams(outpost.url, before.url, secret)) as url,
        ):
            yield Deployment(edge, url, before.url, before.control, outpost, stand_in)


def users_seen(deployment: Deployment) -> set[str]:
    """Every user that Navidrome received, except in the shim's own probe of the user header."""
    seen = list(deployment.stand_in.seen)
    users = {value for one in seen for name, value in one.headers if name.lower() == "remote-user"}
    return {user for user in users if not user.startswith("navidrome-shim-probe-")}


@pytest.mark.parametrize("edge", ["traefik", "guide", "caddy"])
def test_with_a_required_token_no_route_of_any_edge_accepts_a_claimed_name(
    tmp_path: Path, edge: str
) -> None:
    secret = "" if edge == "guide" else SECRET
    with start_deployment(tmp_path, edge, secret=secret, JWT_VERIFY="required") as deployment:
        with deployment.client("alice") as alice:
            assert alice.get("/app/").status_code == httpx.codes.OK
            assert alice.get("/rest/ping").status_code == httpx.codes.OK
        assert users_seen(deployment) == {"alice"}
        forged = token(claims(iss=deployment.outpost.issuer, iat=None), key=rsa_key(1), kid="x")
        with (
            deployment.client() as outsider,
            deployment.client(to=deployment.shim_url) as local_client,
        ):
            for sender in (outsider, local_client):
                for path in (REST, "/share/abc", "/ping", "/app/", "/api/user"):
                    for headers in (
                        SPOOFED,
                        {**SPOOFED, "X-authentik-jwt": forged},
                        {"Authorization": f"Bearer {forged}"},
                        {**SPOOFED, "X-authentik-jwt": ""},
                    ):
                        sender.get(path, headers=headers)
        assert users_seen(deployment) == {"alice"}


@pytest.mark.parametrize("edge", ["traefik", "caddy"])
@pytest.mark.parametrize("proof", ["none", "secret"])
def test_the_secret_of_the_protected_route_is_not_sent_on_the_public_one(
    tmp_path: Path, edge: str, proof: str
) -> None:
    with start_deployment(tmp_path, edge, secret=SECRET, PUBLIC_PATH_PROOF=proof) as deployment:
        with deployment.client("alice") as alice:
            assert alice.get("/app/").status_code == httpx.codes.OK
        with deployment.client() as outsider:
            for guess in ({}, {"X-Shim-Proxy-Secret": "guessed"}, {"X_Shim_Proxy_Secret": SECRET}):
                outsider.get(REST, headers={**SPOOFED, **guess})
                outsider.get("/share/abc", headers={**SPOOFED, **guess})
        assert users_seen(deployment) == {"alice"}


def test_a_client_that_bypasses_the_edge_lacks_the_secret(tmp_path: Path) -> None:
    with start_deployment(tmp_path, "traefik", secret=SECRET) as deployment:
        with deployment.client(to=deployment.shim_url) as local_client:
            assert (
                local_client.get("/app/", headers=SPOOFED).status_code == httpx.codes.UNAUTHORIZED
            )
            wrong = {**SPOOFED, "X-Shim-Proxy-Secret": SECRET[:-1]}
            assert local_client.get("/app/", headers=wrong).status_code == httpx.codes.UNAUTHORIZED
        assert users_seen(deployment) == set()


def test_a_group_from_the_edge_must_be_in_the_token(tmp_path: Path) -> None:
    with (
        start_deployment(tmp_path, "guide", JWT_VERIFY="required") as deployment,
        deployment.client("alice") as alice,
    ):
        response = alice.get("/_shim/readyz", headers={"X-authentik-groups": "admins"})
        assert response.status_code == httpx.codes.NOT_FOUND
        alice.get("/app/", headers={"X-authentik-groups": "admins"})
        assert users_seen(deployment) <= {"alice"}
