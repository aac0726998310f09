"""Password guessing from one address that claims another one for each attempt.

Navidrome counts by the claimed address. Each test uses its own address, since counts persist.
"""

from __future__ import annotations

import httpx
import pytest

from tests.e2e.conftest import Deployment

GUESSES = 9
CLAIMS = ("True-Client-IP", "X-Real-IP", "X-Forwarded-For", "CF-Connecting-IP", "X-Client-IP")


def statuses(client: httpx.Client, *headers: str) -> list[int]:
    """The responses to the attempts; each attempt claims another address."""
    return [
        client.post(
            "/auth/login",
            json={"username": "admin", "password": f"guess {number}"},
            headers=dict.fromkeys(headers, f"203.0.113.{number}"),
        ).status_code
        for number in range(1, GUESSES + 1)
    ]


def test_without_the_shim_the_limit_never_applies(guide_without_shim: Deployment) -> None:
    guide = guide_without_shim
    with guide.client("alice", source="127.0.0.40") as client:
        assert statuses(client, "True-Client-IP") == [httpx.codes.UNAUTHORIZED] * GUESSES


@pytest.mark.parametrize(
    ("source", "headers"),
    [
        *((f"127.0.0.{50 + number}", (name,)) for number, name in enumerate(CLAIMS)),
        ("127.0.0.58", CLAIMS),
        ("127.0.0.59", ()),
    ],
)
def test_with_the_shim_the_limit_applies_whatever_address_is_claimed(
    deployment: Deployment, source: str, headers: tuple[str, ...]
) -> None:
    with deployment.client("alice", source=source) as client:
        responses = statuses(client, *headers)
    limit = deployment.stand_in.options.login_limit
    assert responses[:limit] == [httpx.codes.UNAUTHORIZED] * limit
    assert responses[limit:] == [httpx.codes.TOO_MANY_REQUESTS] * (GUESSES - limit)
    assert {tuple(seen.values("X-Real-IP")) for seen in deployment.received} == {(source,)}


def test_one_attacker_does_not_lock_out_others(deployment: Deployment) -> None:
    with deployment.client("alice", source="127.0.0.60") as guesser:
        statuses(guesser)
    with deployment.client("alice", source="127.0.0.61") as other:
        assert statuses(other)[0] == httpx.codes.UNAUTHORIZED


def test_the_limit_applies_to_clients_that_bypass_the_edge(deployment: Deployment) -> None:
    with deployment.client(source="127.0.0.62", to=deployment.shim_url) as client:
        responses = statuses(client, *CLAIMS)
    assert responses[-1] == httpx.codes.TOO_MANY_REQUESTS
