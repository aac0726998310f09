"""Password guessing with a new client address for each attempt."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from demo.navidrome import StandIn, StandInOptions, StandInThread
from tests.support.recorder import Recorder
from tests.support.shim_process import (
    EDGE,
    Shim,
    build_request,
    edge_address,
    run_shim,
    untrusted_address,
)

LIMIT = 5
CLAIMS = {
    "True-Client-IP": "True-Client-IP: 192.0.2.{}",
    "X-Real-IP": "X-Real-IP: 192.0.2.{}",
    "CF-Connecting-IP": "CF-Connecting-IP: 192.0.2.{}",
    "an alias": "True_Client_IP: 192.0.2.{}",
    "a first X-Forwarded-For entry": "X-Forwarded-For: 192.0.2.{}, 198.51.100.7",
    "a first field of two": "X-Forwarded-For: 192.0.2.{}\r\nX-Forwarded-For: 198.51.100.7",
    "Forwarded": "Forwarded: for=192.0.2.{}",
    "named in Connection": "True-Client-IP: 192.0.2.{}\r\nConnection: close, X-Real-IP",
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shim, StandIn]]:
    """A shim with the stand-in Navidrome, whose login limit the attack tries to avoid."""
    options = StandInOptions(trusted_sources="127.0.0.1/32", login_limit=LIMIT, login_window=3600)
    with (
        StandInThread(options) as stand_in,
        run_shim(stand_in.port, tmp_path_factory.mktemp("shim")) as shim,
    ):
        yield shim, stand_in


def guess(shim: Shim, source: str, claim: str, number: int) -> int:
    body = json.dumps({"username": "admin", "password": f"guess{number}"}).encode()
    fields = (claim.format(number), f"Content-Length: {len(body)}")
    return shim.request(
        build_request("POST /auth/login HTTP/1.1", *fields, body=body), source
    ).status


@pytest.mark.parametrize("case", [case for case in CLAIMS if "X-Forwarded" not in CLAIMS[case]])
@pytest.mark.parametrize("listed", [True, False], ids=["through the edge", "directly"])
def test_a_forged_client_address_does_not_avoid_the_login_limit(
    guarded: tuple[Shim, StandIn], case: str, listed: bool
) -> None:
    shim, _ = guarded
    source = edge_address() if listed else untrusted_address()
    responses = [guess(shim, source, CLAIMS[case], number) for number in range(LIMIT + 3)]
    assert responses == [401] * LIMIT + [429] * 3


@pytest.mark.parametrize("case", [case for case in CLAIMS if "X-Forwarded" in CLAIMS[case]])
def test_a_forged_first_entry_does_not_avoid_the_login_limit(
    guarded: tuple[Shim, StandIn], case: str
) -> None:
    """Through an edge that appends the client's own address to what the client sent."""
    shim, _ = guarded
    last = f"198.51.100.{10 + list(CLAIMS).index(case)}"
    claim = CLAIMS[case].replace("198.51.100.7", last)
    responses = [guess(shim, EDGE, claim, number) for number in range(LIMIT + 3)]
    assert responses == [401] * LIMIT + [429] * 3
    untrusted_peer = untrusted_address()
    responses = [guess(shim, untrusted_peer, claim, number) for number in range(LIMIT + 3)]
    assert responses == [401] * LIMIT + [429] * 3


def test_two_clients_behind_one_edge_have_separate_limits(guarded: tuple[Shim, StandIn]) -> None:
    shim, _ = guarded
    edge = edge_address()
    for number in range(LIMIT + 1):
        status = guess(shim, edge, "X-Forwarded-For: 198.51.100.99", number)
    assert status == 429
    assert guess(shim, edge, "X-Forwarded-For: 198.51.100.98", 0) == 401


@pytest.mark.parametrize(
    "claim", ["203.0.113.{}:51234", "[2001:db8:{}::1]:443", '"[2001:db8:1{}::1]"']
)
def test_an_attacker_does_not_lock_out_others_behind_an_edge_that_sends_ports(
    guarded: tuple[Shim, StandIn], claim: str
) -> None:
    shim, _ = guarded
    edge = edge_address()
    for number in range(LIMIT + 1):
        status = guess(shim, edge, f"X-Forwarded-For: {claim.format(1)}", number)
    assert status == 429
    assert guess(shim, edge, f"X-Forwarded-For: {claim.format(2)}", 0) == 401


def test_no_other_header_carries_a_forged_client_address(shim: Shim, upstream: Recorder) -> None:
    names = ("True-Client-IP", "X-Real-IP", "CF-Connecting-IP", "X-Client-IP", "x.real_ip")
    fields = [f"{name}: 6.6.6.6" for name in names]
    for peer in (edge_address(), untrusted_address()):
        upstream.clear()
        shim.request(build_request("POST /auth/login HTTP/1.1", *fields), peer)
        (received,) = upstream.requested
        assert b"6.6.6.6" not in received.head
        assert received.values("X-Real-IP") == [peer]
