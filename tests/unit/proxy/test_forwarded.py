"""What Navidrome is told of the client, as it arrives on the wire."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim.trust.peers import AddressList, parse_entry
from shim.trust.policy import Policy
from tests.support.data_plane import EDGE, UNTRUSTED, front_before, policy
from tests.support.http_client import get
from tests.support.scripted_navidrome import Navidrome

CLAIMED = (
    "X-Forwarded-For: 203.0.113.7",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: music.example.org",
    "Forwarded: for=203.0.113.7",
    "X-Real-IP: 198.51.100.1",
    "True-Client-IP: 198.51.100.2",
    "CF-Connecting-IP: 198.51.100.3",
    "X-Client-IP: 198.51.100.4",
    "X-Cluster-Client-IP: 198.51.100.5",
    "X_Real_IP: 198.51.100.6",
)


async def forwarded(
    navidrome: Navidrome,
    source: str,
    *lines: str,
    by: Policy | None = None,
    path: Path | None = None,
) -> dict[str, str]:
    """The fields that tell of the client, as Navidrome got them; each came once."""
    async with front_before(navidrome, by=by, path=path) as front:
        client = await front.client(source)
        await client.send(get("/", *lines).encode())
        _, head = await navidrome.requests()
    fields = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:-2]]
    told = [(name.lower(), value) for name, value in fields if name.lower() != "host"]
    assert len(dict(told)) == len(told), told
    assert b"\r\nVia:" not in head
    return dict(told)


async def test_anyone_is_told_of_as_the_socket_says(navidrome: Navidrome) -> None:
    assert await forwarded(navidrome, UNTRUSTED, *CLAIMED) == {
        "x-forwarded-for": UNTRUSTED,
        "x-forwarded-proto": "http",
        "x-forwarded-host": "music.test",
        "forwarded": f'for={UNTRUSTED};proto=http;host="music.test"',
        "x-real-ip": UNTRUSTED,
    }


async def test_the_edge_is_trusted_and_added_to(navidrome: Navidrome) -> None:
    told = await forwarded(navidrome, EDGE, *CLAIMED)
    assert told.pop("forwarded").startswith("for=203.0.113.7, for=127.0.0.2;proto=http")
    assert told == {
        "x-forwarded-for": f"203.0.113.7, {EDGE}",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "music.example.org",
        "x-real-ip": "203.0.113.7",
    }


@pytest.mark.parametrize("listed", ["@", ""])
async def test_a_unix_peer_that_names_nobody_has_no_address(
    navidrome: Navidrome, tmp_path: Path, listed: str
) -> None:
    by = Policy(whitelist=AddressList([parse_entry("@")] if listed else []))
    told = await forwarded(navidrome, "", by=by, path=tmp_path / "shim.sock")
    assert "x-real-ip" not in told
    assert "x-forwarded-for" not in told


async def test_a_listed_unix_peer_is_trusted(navidrome: Navidrome, tmp_path: Path) -> None:
    by = Policy(whitelist=AddressList([parse_entry("@")]))
    told = await forwarded(navidrome, "", CLAIMED[0], by=by, path=tmp_path / "shim.sock")
    assert (told["x-forwarded-for"], told["x-real-ip"]) == ("203.0.113.7", "203.0.113.7")


async def test_the_client_is_looked_for_behind_the_hops_alone(navidrome: Navidrome) -> None:
    by = policy(real_ip_proxies=AddressList([parse_entry("198.51.100.0/24")]))
    chain = "X-Forwarded-For: 192.0.2.66, 203.0.113.7, 198.51.100.9"
    told = await forwarded(navidrome, EDGE, chain, by=by)
    assert told["x-real-ip"] == "203.0.113.7"
    assert told["x-forwarded-for"] == f"192.0.2.66, 203.0.113.7, 198.51.100.9, {EDGE}"
