"""The client address that Navidrome receives."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim.trust.peers import AddressList, parse_entry
from shim.trust.policy import Policy
from tests.support.http_client import get
from tests.support.running_proxy import EDGE, UNTRUSTED, policy, start_proxy
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
    """The forwarded fields about the client; each was sent once."""
    async with start_proxy(navidrome, by=by, path=path) as proxy:
        client = await proxy.client(source)
        await client.send(get("/", *lines).encode())
        _, head = await navidrome.requests()
    fields = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:-2]]
    received = [(name.lower(), value) for name, value in fields if name.lower() != "host"]
    assert len(dict(received)) == len(received), received
    assert b"\r\nVia:" not in head
    return dict(received)


async def test_an_untrusted_peer_is_forwarded_by_its_socket_address(navidrome: Navidrome) -> None:
    assert await forwarded(navidrome, UNTRUSTED, *CLAIMED) == {
        "x-forwarded-for": UNTRUSTED,
        "x-forwarded-proto": "http",
        "x-forwarded-host": "music.test",
        "forwarded": f'for={UNTRUSTED};proto=http;host="music.test"',
        "x-real-ip": UNTRUSTED,
    }


async def test_the_chain_of_the_edge_is_kept_and_extended(navidrome: Navidrome) -> None:
    received = await forwarded(navidrome, EDGE, *CLAIMED)
    assert received.pop("forwarded").startswith("for=203.0.113.7, for=127.0.0.2;proto=http")
    assert received == {
        "x-forwarded-for": f"203.0.113.7, {EDGE}",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "music.example.org",
        "x-real-ip": "203.0.113.7",
    }


@pytest.mark.parametrize("listed", ["@", ""])
async def test_a_unix_peer_without_forwarded_entries_has_no_address(
    navidrome: Navidrome, tmp_path: Path, listed: str
) -> None:
    by = Policy(whitelist=AddressList([parse_entry("@")] if listed else []))
    received = await forwarded(navidrome, "", by=by, path=tmp_path / "shim.sock")
    assert "x-real-ip" not in received
    assert "x-forwarded-for" not in received


async def test_a_trusted_unix_peer_can_forward_an_address(
    navidrome: Navidrome, tmp_path: Path
) -> None:
    by = Policy(whitelist=AddressList([parse_entry("@")]))
    received = await forwarded(navidrome, "", CLAIMED[0], by=by, path=tmp_path / "shim.sock")
    assert (received["x-forwarded-for"], received["x-real-ip"]) == ("203.0.113.7", "203.0.113.7")


async def test_the_client_is_searched_behind_the_real_ip_proxies_only(navidrome: Navidrome) -> None:
    by = policy(real_ip_proxies=AddressList([parse_entry("198.51.100.0/24")]))
    chain = "X-Forwarded-For: 192.0.2.66, 203.0.113.7, 198.51.100.9"
    received = await forwarded(navidrome, EDGE, chain, by=by)
    assert received["x-real-ip"] == "203.0.113.7"
    assert received["x-forwarded-for"] == f"192.0.2.66, 203.0.113.7, 198.51.100.9, {EDGE}"
