"""A Navidrome that reads the user name from another header than the shim writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.navidrome import StandIn, StandInOptions, StandInThread
from tests.support.shim_process import (
    Shim,
    build_request,
    edge_address,
    run_shim,
    untrusted_address,
)

PING = "GET /rest/ping?v=1&c=x&f=json HTTP/1.1"


@pytest.fixture(params=["X-WebAuth-User", "X-Own-Idea"])
def accepted_header(request: pytest.FixtureRequest) -> str:
    """The header that Navidrome reads: a known one, and an unknown one."""
    header: str = request.param
    return header


@pytest.fixture
def navidrome(accepted_header: str) -> Iterator[StandIn]:
    with StandInThread(StandInOptions(user_header=accepted_header)) as stand_in:
        yield stand_in


@pytest.fixture
def shim(navidrome: StandIn, tmp_path: Path) -> Iterator[Shim]:
    with run_shim(navidrome.port, tmp_path) as running:
        yield running


def test_the_header_that_navidrome_reads_is_removed(
    shim: Shim, navidrome: StandIn, accepted_header: str
) -> None:
    for peer in (untrusted_address(), edge_address()):
        navidrome.seen.clear()
        for name in (accepted_header, accepted_header.lower(), accepted_header.replace("-", "_")):
            response = shim.request(build_request(PING, f"{name}: admin", "Range: bytes=0-"), peer)
            assert b'"code":10' in response.raw, response.raw
        assert len(navidrome.seen) == 3
        for seen in navidrome.seen:
            names = {name.lower().replace("_", "-") for name, _ in seen.headers}
            assert accepted_header.lower() not in names and "range" in names


def test_an_identity_is_rejected_with_a_reason(shim: Shim, navidrome: StandIn) -> None:
    navidrome.seen.clear()
    edge = edge_address()
    response = shim.request(
        build_request("GET /app/ HTTP/1.1", "X-authentik-username: admin"), edge
    )
    assert response.status == 503
    line = shim.wait_for_line(kind="request_decision", peer=edge)
    assert line["reason"] == "user_header_mismatch"
    assert not navidrome.accounts.by_id


def test_wrong_passwords_of_apps_count_meanwhile(
    navidrome: StandIn, accepted_header: str, tmp_path: Path
) -> None:
    """No device may be used, but Navidrome is asked about every password."""
    with run_shim(navidrome.port, tmp_path, PROVISIONING="true") as shim:
        edge = edge_address()
        navidrome.seen.clear()
        responses = [
            shim.request(
                build_request(f"GET /rest/ping?u=dave&p=wrong{number}&v=1&c=x HTTP/1.1"), edge
            )
            for number in range(11)
        ]
        assert all(b'<error code="40"' in each.raw for each in responses)
        assert len(navidrome.seen) == 10, accepted_header
