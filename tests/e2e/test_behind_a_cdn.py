"""A CDN in front of Traefik: its client address is used, and its path has no effect on authentik."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.conftest import OPEN_PATH, Deployment, start_deployment
from tests.e2e.servers import CDN, SECRET
from tests.e2e.test_takeover import identity_fields

CLIENT = "203.0.113.7"


@pytest.fixture(scope="module")
def shared_cdn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with start_deployment(
        tmp_path_factory.mktemp("cdn"), "cdn", with_shim=True, secret=SECRET
    ) as deployment:
        yield deployment


@pytest.fixture
def behind_a_cdn(shared_cdn: Deployment) -> Deployment:
    shared_cdn.stand_in.seen.clear()
    return shared_cdn


def test_a_forwarded_path_from_the_cdn_opens_no_path(behind_a_cdn: Deployment) -> None:
    # With `trustForwardHeader: true`, authentik would use it as its open path.
    with behind_a_cdn.client(source=CDN) as anonymous:
        response = anonymous.get("/app/", headers={"X-Forwarded-Uri": OPEN_PATH})
    assert response.status_code == httpx.codes.FOUND
    assert behind_a_cdn.received == []


@pytest.mark.parametrize("target", ["/app/", "/rest/ping?v=1&c=x"])
def test_the_client_address_from_the_cdn_is_used(behind_a_cdn: Deployment, target: str) -> None:
    with behind_a_cdn.client("alice", source=CDN) as alice:
        alice.get(target, headers={"X-Forwarded-For": f"198.51.100.1, {CLIENT}"})
    seen = behind_a_cdn.last_seen(target)
    assert seen.values("X-Real-IP") == [CLIENT]
    expected = [("Remote-User", "alice")] if target == "/app/" else []
    assert identity_fields(seen.headers) == expected


def test_a_client_that_bypasses_the_cdn_cannot_forge_its_address(behind_a_cdn: Deployment) -> None:
    source = "127.0.0.71"
    with behind_a_cdn.client("alice", source=source) as alice:
        alice.get("/app/", headers={"X-Forwarded-For": f"{CLIENT}, {CDN}", "X-Real-IP": CLIENT})
    assert behind_a_cdn.last_seen("/app/").values("X-Real-IP") == [source]
