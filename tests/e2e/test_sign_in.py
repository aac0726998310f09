"""A regular user: redirected to sign in, then identified once in each request."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from demo.outpost import COOKIE
from tests.e2e.conftest import OPEN_PATH, Deployment
from tests.e2e.test_takeover import identity_fields


@pytest.mark.parametrize("path", ["/app/", "/api/user?_start=0&_end=1", "/", "/rest"])
def test_without_a_session_the_client_is_redirected_to_sign_in(
    deployment: Deployment, path: str
) -> None:
    with deployment.client() as anonymous:
        response = anonymous.get(path)
    assert response.status_code == httpx.codes.FOUND
    location = urlsplit(response.headers["Location"])
    assert location.path == "/outpost.goauthentik.io/start"
    # nginx cannot encode the URL, so it ends at the first `&`.
    back = path.partition("&")[0] if deployment.edge == "nginx" else path
    assert parse_qs(location.query)["rd"] == [deployment.url + back]
    assert deployment.received == []


def test_signing_in_returns_to_the_web_app_as_that_user(deployment: Deployment) -> None:
    with deployment.client() as browser:
        sent = browser.get("/app/?page=1")
        back = browser.get(sent.headers["Location"] + "&user=alice")
        assert back.headers["Location"] == "/app/?page=1"
        page = browser.get(back.headers["Location"])
    assert page.status_code == httpx.codes.OK
    assert r"\"username\":\"alice\"" in page.text
    assert identity_fields(deployment.last_seen("/app/?page=1").headers) == [
        ("Remote-User", "alice")
    ]


@pytest.mark.parametrize("user", ["alice", "boss", "jörg", "solo"])
def test_a_user_reaches_the_api_as_that_user(deployment: Deployment, user: str) -> None:
    account = deployment.stand_in.accounts.find(user)
    assert account is not None
    with deployment.client(user) as browser:
        response = browser.get(f"/api/user/{account.id}")
    assert response.status_code == httpx.codes.OK
    assert response.json()["userName"] == user
    seen = deployment.last_seen(f"/api/user/{account.id}")
    assert identity_fields(seen.headers) == [("Remote-User", user)]
    assert seen.values("X-Shim-Proxy-Secret") == []


def test_an_open_path_is_forwarded_without_an_identity(deployment: Deployment) -> None:
    with deployment.client() as anonymous:
        response = anonymous.get(OPEN_PATH)
    assert response.status_code == httpx.codes.OK
    assert identity_fields(deployment.last_seen(OPEN_PATH).headers) == []


def test_signing_out_ends_the_session(deployment: Deployment) -> None:
    with deployment.client("alice") as browser:
        session = browser.cookies[COOKIE]
        assert browser.get("/app/").status_code == httpx.codes.OK
        browser.get("/outpost.goauthentik.io/sign_out")
        browser.cookies.clear()
        again = browser.get("/app/", headers={"Cookie": f"{COOKIE}={session}"})
    assert again.status_code == httpx.codes.FOUND


def test_the_control_pages_are_for_admins_by_group_and_with_a_proof(deployment: Deployment) -> None:
    # The guide's edge sends no shared secret.
    for_admins = httpx.codes.NOT_FOUND if deployment.edge == "guide" else httpx.codes.OK
    with deployment.client("boss") as boss, deployment.client("alice") as alice:
        assert boss.get("/_shim/readyz").status_code == for_admins
        assert alice.get("/_shim/readyz").status_code == httpx.codes.NOT_FOUND
    assert deployment.received == []
