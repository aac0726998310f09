"""Requests on the open routes of the edges reach Navidrome without a session, and without an identity."""

from __future__ import annotations

import httpx
import pytest
from websockets.sync.client import connect

from tests.e2e.conftest import Deployment
from tests.e2e.test_edges import CLAIMS
from tests.e2e.test_takeover import identity_fields

ICONS = (
    "/app/browserconfig.xml",
    "/app/android-chrome-192x192.png",
    "/app/apple-touch-icon.png",
    "/app/favicon.ico",
    "/app/mstile-70x70.png",
    "/app/safari-pinned-tab.svg",
)


@pytest.fixture
def shipped(deployment: Deployment) -> Deployment:
    """The shim behind an edge of `deploy/`."""
    if deployment.edge == "guide":
        pytest.skip("not an edge that we ship")
    return deployment


@pytest.mark.parametrize(
    "target", ["/app/manifest.webmanifest", "/jellyfin/System/Info/Public", *ICONS]
)
def test_requests_of_browsers_and_apps_without_a_session_reach_navidrome(
    shipped: Deployment, target: str
) -> None:
    with shipped.client() as anonymous:
        response = anonymous.get(target, headers=CLAIMS, follow_redirects=False)
    assert not response.is_redirect
    if target not in ICONS:  # which the stand-in lacks
        assert response.status_code == httpx.codes.OK
    assert identity_fields(shipped.last_seen(target).headers) == []


def test_a_jellyfin_app_can_open_its_websocket(shipped: Deployment) -> None:
    url = shipped.url.replace("http", "ws", 1) + "/jellyfin/socket?api_key=x"
    with connect(url, proxy=None, open_timeout=10) as socket:
        assert "ForceKeepAlive" in str(socket.recv(timeout=10))
        socket.send("hello")
        assert socket.recv(timeout=10) == "hello"


def test_long_headers_are_forwarded(shipped: Deployment) -> None:
    for target in ("/rest/ping?v=1&c=x", "/app/"):
        with shipped.client("alice") as alice:
            response = alice.get(target, headers={"X-Long": "x" * 40_000})
        assert response.status_code == httpx.codes.OK
