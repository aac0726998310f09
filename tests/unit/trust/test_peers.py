"""The list of trusted peers: what an entry matches, and invalid entries."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.trust.peers import (
    AddressList,
    HostEntry,
    NetworkEntry,
    UnixEntry,
    parse_address,
    parse_entry,
    parse_peer,
)
from tests.support.decisions import trusting
from tests.support.instructions import instructions


@pytest.mark.parametrize(
    ("entry", "peer"),
    [
        ("10.0.0.5", "10.0.0.5"),
        (" 10.0.0.5\t", "10.0.0.5"),
        ("10.0.0.5", "::ffff:10.0.0.5"),
        ("::ffff:10.0.0.5", "10.0.0.5"),
        ("::ffff:10.0.0.5", "::ffff:a00:5"),
        ("10.0.0.0/8", "10.255.255.255"),
        ("10.0.0.5/8", "10.9.9.9"),
        ("10.0.0.0/8", "::ffff:10.1.2.3"),
        ("::ffff:10.0.0.0/104", "10.1.2.3"),
        ("::ffff:10.0.0.5/104", "10.1.2.3"),
        ("0.0.0.0/0", "203.0.113.9"),
        ("fd00::1", "fd00:0:0::1"),
        ("FD00::1", "fd00::1"),
        ("fd00::1/64", "fd00::ffff"),
        ("fe80::1", "fe80::1%eth0"),
        ("fe80::/10", "fe80::1%eth0"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("@", "@"),
        ("@", ""),
    ],
)
def test_a_list_matches_the_peers_of_its_entry(entry: str, peer: str) -> None:
    assert parse_peer(peer) in trusting(entry)


@pytest.mark.parametrize(
    ("entry", "peer"),
    [
        ("10.0.0.5", "10.0.0.6"),
        ("10.0.0.5/32", "10.0.0.4"),
        ("10.0.0.0/8", "11.0.0.0"),
        ("10.0.0.5", "::10.0.0.5"),  # IPv4-compatible, which is another address
        ("10.0.0.5", "64:ff9b::10.0.0.5"),  # NAT64, likewise
        ("::/0", "10.0.0.5"),
        ("0.0.0.0/0", "fd00::1"),
        ("0.0.0.0/0", "@"),
        ("@", "127.0.0.1"),
        ("fe80::1%eth0", "fe80::1%eth1"),
        ("fe80::1%eth0", "fe80::1"),
        ("fe80::1%eth0", "fe80::2%eth0"),
        ("traefik", "10.0.0.5"),
    ],
)
def test_a_list_matches_no_other_peers(entry: str, peer: str) -> None:
    assert parse_peer(peer) not in trusting(entry)


def test_an_empty_list_matches_no_peer() -> None:
    empty = AddressList()
    assert not empty
    assert not empty.matches_everyone
    for peer in ("@", "127.0.0.1", "::1", "0.0.0.0"):
        assert parse_peer(peer) not in empty


@pytest.mark.parametrize(
    "entry",
    [
        "",
        " ",
        "010.0.0.5",  # octal in some parsers
        "10.0.0.08",
        "0x0a.0.0.5",
        "0x0a000005",
        "10.5",  # short forms of inet_aton
        "10.0.5",
        "167772165",
        "10.0.0.256",
        "10.0.0.5.6",
        "\uff11\uff10.0.0.5",  # digits that a resolver does not accept
        "10.0.0.5:80",
        "[fd00::1]",
        "[fd00::1]:80",
        "fd00::1::2",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "10.0.0.0/",
        "10.0.0.0/255.0.0.0",
        "10.0.0.0/\u0668",
        "10.0.0.0/8/8",
        "10/8",
        "010.0.0.0/8",
        "/8",
        "fe80::1%eth0/64",
        "traefik/24",
        "-traefik",
        "traefik-",
        "tra efik",
        "traefik..local",
        ".traefik",
        "traefik,caddy",
        "t" * 64,
        ".".join(["t" * 60] * 5),
        "*.example.com",
        "@@",
        "!",
    ],
)
def test_an_invalid_entry_is_rejected_with_a_message(entry: str) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        parse_entry(entry)


def test_a_cidr_with_host_bits_is_rejected_with_its_network() -> None:
    entry = parse_entry("10.0.0.5/8")
    assert isinstance(entry, NetworkEntry)
    assert entry.host_bits
    plain = parse_entry("10.0.0.0/8")
    assert isinstance(plain, NetworkEntry)
    assert not plain.host_bits
    described = trusting("10.0.0.5/8", "10.0.0.0/8").describe()
    assert described == ("10.0.0.5/8 (all of 10.0.0.0/8)", "10.0.0.0/8")


def test_kinds_of_entries_are_distinguished() -> None:
    assert parse_entry("@") == UnixEntry()
    assert parse_entry("Traefik.") == HostEntry("Traefik.", "traefik")
    assert parse_entry("navidrome_edge-1") == HostEntry("navidrome_edge-1", "navidrome_edge-1")


def test_a_host_name_matches_its_resolved_addresses() -> None:
    unresolved = trusting("traefik", "caddy", "traefik")
    assert unresolved.hosts == ("traefik", "caddy")
    found = {"traefik": frozenset({ip_address("10.0.0.7"), ip_address("fd00::7")})}
    resolved = unresolved.with_resolved(found)
    assert parse_peer("10.0.0.7") in resolved
    assert parse_peer("fd00::7") in resolved
    assert parse_peer("10.0.0.8") not in resolved
    assert parse_peer("10.0.0.7") not in unresolved
    assert resolved.describe()[1] == "caddy (not resolved: nobody)"
    assert "10.0.0.7" in resolved.describe()[0]


@pytest.mark.parametrize("entry", ["0.0.0.0/0", "10.0.0.1/0", "::/0", "::ffff:0:0/96"])
def test_an_entry_that_matches_everyone_is_detected(entry: str) -> None:
    assert trusting("10.0.0.5", entry).matches_everyone
    assert not trusting("10.0.0.5", "10.0.0.0/1").matches_everyone


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        ("::ffff:10.0.0.5", "10.0.0.5"),
        ("FD00:0:0::1", "fd00::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("", "@"),
        ("@", "@"),
    ],
)
def test_a_peer_has_one_normal_form(sent: str, text: str) -> None:
    assert parse_peer(sent).text == text


@pytest.mark.parametrize("sent", ["traefik", "010.0.0.1", "10.1", "10.0.0.1:80", " 10.0.0.1"])
def test_a_peer_is_an_address(sent: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_peer(sent)


@pytest.mark.parametrize(
    ("sent", "address"),
    [
        (b" 10.0.0.5\t", "10.0.0.5"),
        (b"::ffff:10.0.0.5", "10.0.0.5"),
        (b"fd00::1", "fd00::1"),
        (b"10.0.0.5:80", "10.0.0.5"),
        (b"[fd00::1]", "fd00::1"),
        (b'"[fd00::1]:443"', "fd00::1"),
        (b"[10.0.0.5]", None),
        (b"10.0.0.5:x", None),
        (b"10.0.0.5:123456", None),
        (b'"10.0.0.5', None),
        (b"fd00::1]", None),
        (b"fe80::1%eth0", None),
        (b"010.0.0.5", None),
        (b"10.5", None),
        (b"unknown", None),
        (b"", None),
        (b"\xff", None),
    ],
)
def test_a_forwarded_entry_is_an_address_or_invalid(sent: bytes, address: str | None) -> None:
    found = parse_address(sent)
    assert (None if found is None else str(found)) == address


def test_a_dns_server_may_return_ipv4_mapped_addresses() -> None:
    found = {"traefik": frozenset({ip_address("::ffff:10.0.0.7")})}
    assert parse_peer("10.0.0.7") in trusting("traefik").with_resolved(found)


@given(
    networks=st.lists(
        st.ip_addresses(network="10.0.0.0/29") | st.ip_addresses(network="fd00::/125")
    ),
    prefixes=st.lists(st.integers(0, 8), min_size=1),
    looked_up=st.ip_addresses(network="10.0.0.0/28") | st.ip_addresses(network="fd00::/124"),
)
def test_a_list_agrees_with_its_networks(
    networks: list[IPv4Address | IPv6Address],
    prefixes: list[int],
    looked_up: IPv4Address | IPv6Address,
) -> None:
    listed = [
        ip_network(
            f"{address}/{address.max_prefixlen - prefixes[at % len(prefixes)]}", strict=False
        )
        for at, address in enumerate(networks)
    ]
    peers = AddressList([parse_entry(str(network)) for network in listed])
    assert (parse_peer(str(looked_up)) in peers) == any(looked_up in network for network in listed)


def test_the_cost_of_a_lookup_does_not_grow_with_the_list() -> None:
    def work(count: int) -> int:
        peers = AddressList([parse_entry(f"10.{n >> 8}.{n & 255}.0/24") for n in range(count)])
        unknown_peer = parse_peer("203.0.113.9")
        assert unknown_peer not in peers
        return instructions(lambda: unknown_peer in peers)

    assert work(10_000) == work(10)
