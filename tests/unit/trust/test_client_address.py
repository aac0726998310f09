"""Where a request came from, as Navidrome is told."""

from __future__ import annotations

import pytest

from shim.trust.client_address import PeerInfo, client_address
from shim.trust.peers import AddressList, parse_peer
from shim.trust.policy import Policy
from tests.support.decisions import ANYONE, EDGE, HOST, POLICY, decided, head, trusting
from tests.support.reference_parsers import read_by_llhttp

LISTED = PeerInfo(EDGE, trusted=True, scheme=b"http")
HOPS = trusting("173.245.48.0/20", "10.0.0.9")


@pytest.mark.parametrize(
    ("chain", "hops", "client"),
    [
        # no entry: the socket's peer
        ("", HOPS, "127.0.0.2"),
        # the last entry, whatever stands before it
        ("198.51.100.7", AddressList(), "198.51.100.7"),
        ("6.6.6.6, 198.51.100.7", AddressList(), "198.51.100.7"),
        # no hops are named: a hop's address is as good as any
        ("198.51.100.7, 173.245.48.1", AddressList(), "173.245.48.1"),
        # past the hops, and no further
        ("198.51.100.7, 173.245.48.1", HOPS, "198.51.100.7"),
        ("6.6.6.6, 198.51.100.7, 173.245.48.1, 10.0.0.9", HOPS, "198.51.100.7"),
        ("6.6.6.6, 198.51.100.7, 173.245.48.1, 192.0.2.1", HOPS, "192.0.2.1"),
        # hops alone: the leftmost of them
        ("173.245.48.1, 10.0.0.9", HOPS, "173.245.48.1"),
        # an entry that is no address ends the walk
        ("198.51.100.7, unknown", HOPS, "127.0.0.2"),
        ("198.51.100.7, unknown, 10.0.0.9", HOPS, "10.0.0.9"),
        ("198.51.100.7, 10.0.0.9:http", HOPS, "127.0.0.2"),
        ("198.51.100.7, [10.0.0.9]", HOPS, "127.0.0.2"),
        ('198.51.100.7, "10.0.0.9', HOPS, "127.0.0.2"),
        ("198.51.100.7, 10.0.0.9:", HOPS, "127.0.0.2"),
        ("198.51.100.7, [fd00::1]x", HOPS, "127.0.0.2"),
        ("198.51.100.7, [fe80::1%eth0]:443", HOPS, "127.0.0.2"),
        # ports, brackets and quotes are no part of an address
        ("203.0.113.7:51234", HOPS, "203.0.113.7"),
        ("6.6.6.6, 203.0.113.7:51234", HOPS, "203.0.113.7"),
        ("[2001:db8::1]:443", HOPS, "2001:db8::1"),
        ("[2001:db8::1]", HOPS, "2001:db8::1"),
        ('"[2001:DB8::1]:443"', HOPS, "2001:db8::1"),
        ('"203.0.113.7"', HOPS, "203.0.113.7"),
        ("[::ffff:203.0.113.7]:1", HOPS, "203.0.113.7"),
        ("203.0.113.7:51234, 10.0.0.9:4711", HOPS, "203.0.113.7"),
        # empty entries before the last are ignored
        ("198.51.100.7,, 10.0.0.9", HOPS, "198.51.100.7"),
        (",, 198.51.100.7", HOPS, "198.51.100.7"),
        ("198.51.100.7, 10.0.0.9, ,", HOPS, "127.0.0.2"),
        (",", HOPS, "127.0.0.2"),
        ("198.51.100.7, fe80::1%eth0", HOPS, "127.0.0.2"),
        ("198.51.100.7,", HOPS, "127.0.0.2"),
        ("198.51.100.7, 010.0.0.9", HOPS, "127.0.0.2"),
        # named in one way
        ("::ffff:198.51.100.7", HOPS, "198.51.100.7"),
        ("FD00:0::7", HOPS, "fd00::7"),
        ("198.51.100.7, ::ffff:10.0.0.9", HOPS, "198.51.100.7"),
        # who may name a user is not who may forward
        ("198.51.100.7, 127.0.0.2", AddressList(), "127.0.0.2"),
    ],
)
def test_the_client_is_the_last_entry_walked_past_the_hops(
    chain: str, hops: AddressList, client: str
) -> None:
    entries = [entry.strip().encode() for entry in chain.split(",")] if chain else []
    assert client_address(entries, LISTED, hops) == client.encode()


def test_a_unix_peer_that_named_nobody_has_no_client() -> None:
    source = PeerInfo(parse_peer("@"), trusted=True, scheme=b"http")
    assert client_address([], source, AddressList()) is None
    assert client_address([b"198.51.100.7"], source, AddressList()) == b"198.51.100.7"


def forwarded(decided: bytes, name: str) -> list[str]:
    read = read_by_llhttp(decided)
    assert read is not None
    return [value.decode() for value in read.values(name)]


CLAIMS = (
    "X-Forwarded-For: 6.6.6.6, 198.51.100.7",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: music.example.com",
    "X-Forwarded-Port: 8443",
    "X-Forwarded-Uri: /rest/ping",
    "Forwarded: for=6.6.6.6;proto=https",
    "X-Real-IP: 6.6.6.6",
    "True-Client-IP: 6.6.6.6",
    "CF-Connecting-IP: 6.6.6.6",
    "X-Client-IP: 6.6.6.6",
    "X_Cluster_Client_IP: 6.6.6.6",
)


def test_a_listed_peer_is_trusted_and_added_to() -> None:
    told = decided(head("GET /app/ HTTP/1.1", *CLAIMS, host="inside:4534")).render_head()
    assert forwarded(told, "X-Forwarded-For") == ["6.6.6.6, 198.51.100.7, 127.0.0.2"]
    assert forwarded(told, "X-Real-IP") == ["198.51.100.7"]
    assert forwarded(told, "X-Forwarded-Proto") == ["https"]
    assert forwarded(told, "X-Forwarded-Host") == ["music.example.com"]
    assert forwarded(told, "X-Forwarded-Port") == ["8443"]
    assert forwarded(told, "Forwarded") == [
        'for=6.6.6.6;proto=https, for=127.0.0.2;proto=http;host="inside:4534"'
    ]


def test_anybody_else_is_replaced_by_what_the_socket_says() -> None:
    told = decided(head("GET /app/ HTTP/1.1", *CLAIMS), ANYONE, scheme=b"https").render_head()
    assert forwarded(told, "X-Forwarded-For") == ["127.0.0.1"]
    assert forwarded(told, "X-Real-IP") == ["127.0.0.1"]
    assert forwarded(told, "X-Forwarded-Proto") == ["https"]
    assert forwarded(told, "X-Forwarded-Host") == [HOST]
    assert forwarded(told, "X-Forwarded-Port") == []
    assert forwarded(told, "X-Forwarded-Uri") == []
    assert forwarded(told, "Forwarded") == [f'for=127.0.0.1;proto=https;host="{HOST}"']
    assert b"6.6.6.6" not in told


@pytest.mark.parametrize(
    "name",
    ["True-Client-IP", "CF-Connecting-IP", "X-Client-IP", "X-Cluster-Client-IP", "true_client.ip"],
)
def test_the_kin_of_true_client_ip_never_passes(name: str) -> None:
    for peer in (EDGE, ANYONE):
        told = decided(head("POST /auth/login HTTP/1.1", f"{name}: 6.6.6.6"), peer)
        assert b"6.6.6.6" not in told.render_head()
        assert name in told.explain()["removed_headers"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("fields", "scheme"),
    [
        ((), "https"),
        (("X-Forwarded-Proto: http",), "http"),
        (("X-Forwarded-Proto: HTTPS",), "https"),
        (("X-Forwarded-Proto: http, https",), "http"),
        (("X-Forwarded-Proto: http", "X-Forwarded-Proto: https"), "http"),
        (("X-Forwarded-Proto: ,http",), "https"),
        (("X-Forwarded-Proto: wss",), "https"),
        (("X-Forwarded-Proto: https://evil",), "https"),
        (("X-Forwarded-Proto:",), "https"),
    ],
)
def test_the_scheme_is_the_first_word_that_was_forwarded_or_the_listeners(
    fields: tuple[str, ...], scheme: str
) -> None:
    told = decided(head("GET /app/ HTTP/1.1", *fields), scheme=b"https").render_head()
    assert forwarded(told, "X-Forwarded-Proto") == [scheme]


def test_without_a_known_client_no_chain_is_forwarded() -> None:
    """Navidrome would take its first entry, which anybody may have sent."""
    policy = Policy(whitelist=trusting("@"))
    text = head("GET /app/ HTTP/1.1", "X-Forwarded-For: 6.6.6.6, unknown")
    told = decided(text, parse_peer("@"), policy).render_head()
    assert forwarded(told, "X-Forwarded-For") == forwarded(told, "X-Real-IP") == []


def test_several_fields_of_one_name_are_one_chain() -> None:
    told = decided(
        head(
            "GET /app/ HTTP/1.1",
            "X-Forwarded-For: 6.6.6.6",
            "X-Other: x",
            "x-forwarded-for: 198.51.100.7",
        )
    ).render_head()
    assert forwarded(told, "X-Forwarded-For") == ["6.6.6.6, 198.51.100.7, 127.0.0.2"]
    assert forwarded(told, "X-Real-IP") == ["198.51.100.7"]


def test_a_unix_peer_adds_nothing_to_the_chain() -> None:
    policy = Policy(whitelist=trusting("@"))
    unix = parse_peer("@")
    told = decided(head("GET /app/ HTTP/1.1"), unix, policy).render_head()
    assert forwarded(told, "X-Forwarded-For") == []
    assert forwarded(told, "X-Real-IP") == []
    told = decided(
        head("GET /app/ HTTP/1.1", "X-Forwarded-For: 198.51.100.7"), unix, policy
    ).render_head()
    assert forwarded(told, "X-Forwarded-For") == ["198.51.100.7"]
    assert forwarded(told, "X-Real-IP") == ["198.51.100.7"]
    told = decided(head("GET /app/ HTTP/1.1", "X-Real-IP: 6.6.6.6"), unix, POLICY).render_head()
    assert forwarded(told, "X-Real-IP") == []
    assert forwarded(told, "Forwarded") == [f'for=unknown;proto=http;host="{HOST}"']


def test_an_ipv6_peer_is_told_without_its_zone() -> None:
    peer = parse_peer("fe80::1%eth0")
    told = decided(head("GET /app/ HTTP/1.1"), peer).render_head()
    assert forwarded(told, "X-Real-IP") == ["fe80::1"]
    assert forwarded(told, "Forwarded") == [f'for="[fe80::1]";proto=http;host="{HOST}"']


def test_what_connection_names_can_not_take_the_clients_address_away() -> None:
    told = decided(
        head(
            "GET /app/ HTTP/1.1",
            "X-Forwarded-For: 198.51.100.7",
            "Connection: close, X-Forwarded-For, X-Real-IP, X-Forwarded-Proto, Host",
        )
    ).render_head()
    assert forwarded(told, "X-Forwarded-For") == ["198.51.100.7, 127.0.0.2"]
    assert forwarded(told, "X-Real-IP") == ["198.51.100.7"]
    assert forwarded(told, "Host") == [HOST]


def test_only_the_last_32_entries_of_x_forwarded_for_are_read_and_forwarded() -> None:
    policy = Policy(whitelist=POLICY.whitelist, real_ip_proxies=trusting("10.0.0.0/8"))
    entries = ["198.51.100.7", *(f"10.0.0.{number}" for number in range(1, 33))]
    told = decided(
        head("GET /app/ HTTP/1.1", f"X-Forwarded-For: {', '.join(entries)}"), policy=policy
    ).render_head()
    assert forwarded(told, "X-Forwarded-For") == [", ".join([*entries[1:], "127.0.0.2"])]
    assert forwarded(told, "X-Real-IP") == ["10.0.0.1"]
    told = decided(
        head("GET /app/ HTTP/1.1", f"X-Forwarded-For: {', '.join(entries[:-1])}"), policy=policy
    ).render_head()
    assert forwarded(told, "X-Real-IP") == ["198.51.100.7"]
