"""The client address and scheme that the shim forwards to Navidrome."""

from __future__ import annotations

import pytest

from shim.trust.client_address import PeerInfo, client_address
from shim.trust.peers import AddressList, parse_peer
from shim.trust.policy import Policy
from tests.support.decisions import EDGE, HOST, POLICY, UNTRUSTED, decided, head, trusting
from tests.support.reference_parsers import read_by_llhttp

LISTED = PeerInfo(EDGE, trusted=True, scheme=b"http")
HOPS = trusting("173.245.48.0/20", "10.0.0.9")


@pytest.mark.parametrize(
    ("chain", "hops", "client"),
    [
        # no entry: the peer
        ("", HOPS, "127.0.0.2"),
        # the last entry, whatever precedes it
        ("198.51.100.7", AddressList(), "198.51.100.7"),
        ("6.6.6.6, 198.51.100.7", AddressList(), "198.51.100.7"),
        # no real-IP proxies: a proxy's address is used like any other
        ("198.51.100.7, 173.245.48.1", AddressList(), "173.245.48.1"),
        # past the real-IP proxies, and no further
        ("198.51.100.7, 173.245.48.1", HOPS, "198.51.100.7"),
        ("6.6.6.6, 198.51.100.7, 173.245.48.1, 10.0.0.9", HOPS, "198.51.100.7"),
        ("6.6.6.6, 198.51.100.7, 173.245.48.1, 192.0.2.1", HOPS, "192.0.2.1"),
        # real-IP proxies alone: the leftmost of them
        ("173.245.48.1, 10.0.0.9", HOPS, "173.245.48.1"),
        # an entry that is not an address ends the search
        ("198.51.100.7, unknown", HOPS, "127.0.0.2"),
        ("198.51.100.7, unknown, 10.0.0.9", HOPS, "10.0.0.9"),
        ("198.51.100.7, 10.0.0.9:http", HOPS, "127.0.0.2"),
        ("198.51.100.7, [10.0.0.9]", HOPS, "127.0.0.2"),
        ('198.51.100.7, "10.0.0.9', HOPS, "127.0.0.2"),
        ("198.51.100.7, 10.0.0.9:", HOPS, "127.0.0.2"),
        ("198.51.100.7, [fd00::1]x", HOPS, "127.0.0.2"),
        ("198.51.100.7, [fe80::1%eth0]:443", HOPS, "127.0.0.2"),
        # ports, brackets and quotes are not part of an address
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
        # addresses in their normal form
        ("::ffff:198.51.100.7", HOPS, "198.51.100.7"),
        ("FD00:0::7", HOPS, "fd00::7"),
        ("198.51.100.7, ::ffff:10.0.0.9", HOPS, "198.51.100.7"),
        # a trusted peer for identities is not a real-IP proxy
        ("198.51.100.7, 127.0.0.2", AddressList(), "127.0.0.2"),
    ],
)
def test_the_client_is_the_last_entry_that_is_not_a_real_ip_proxy(
    chain: str, hops: AddressList, client: str
) -> None:
    entries = [entry.strip().encode() for entry in chain.split(",")] if chain else []
    assert client_address(entries, LISTED, hops) == client.encode()


def test_a_unix_peer_without_forwarded_entries_has_no_client_address() -> None:
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


def test_the_chain_of_a_trusted_peer_is_kept_and_extended() -> None:
    rendered = decided(head("GET /app/ HTTP/1.1", *CLAIMS, host="inside:4534")).render_head()
    assert forwarded(rendered, "X-Forwarded-For") == ["6.6.6.6, 198.51.100.7, 127.0.0.2"]
    assert forwarded(rendered, "X-Real-IP") == ["198.51.100.7"]
    assert forwarded(rendered, "X-Forwarded-Proto") == ["https"]
    assert forwarded(rendered, "X-Forwarded-Host") == ["music.example.com"]
    assert forwarded(rendered, "X-Forwarded-Port") == ["8443"]
    assert forwarded(rendered, "Forwarded") == [
        'for=6.6.6.6;proto=https, for=127.0.0.2;proto=http;host="inside:4534"'
    ]


def test_the_chain_of_an_untrusted_peer_is_replaced_by_its_address() -> None:
    rendered = decided(
        head("GET /app/ HTTP/1.1", *CLAIMS), UNTRUSTED, scheme=b"https"
    ).render_head()
    assert forwarded(rendered, "X-Forwarded-For") == ["127.0.0.1"]
    assert forwarded(rendered, "X-Real-IP") == ["127.0.0.1"]
    assert forwarded(rendered, "X-Forwarded-Proto") == ["https"]
    assert forwarded(rendered, "X-Forwarded-Host") == [HOST]
    assert forwarded(rendered, "X-Forwarded-Port") == []
    assert forwarded(rendered, "X-Forwarded-Uri") == []
    assert forwarded(rendered, "Forwarded") == [f'for=127.0.0.1;proto=https;host="{HOST}"']
    assert b"6.6.6.6" not in rendered


@pytest.mark.parametrize(
    "name",
    ["True-Client-IP", "CF-Connecting-IP", "X-Client-IP", "X-Cluster-Client-IP", "true_client.ip"],
)
def test_headers_like_true_client_ip_are_never_forwarded(name: str) -> None:
    for peer in (EDGE, UNTRUSTED):
        rendered = decided(head("POST /auth/login HTTP/1.1", f"{name}: 6.6.6.6"), peer)
        assert b"6.6.6.6" not in rendered.render_head()
        assert name in rendered.explain()["removed_headers"]  # type: ignore[operator]


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
def test_the_scheme_is_the_first_forwarded_value_or_the_listeners(
    fields: tuple[str, ...], scheme: str
) -> None:
    rendered = decided(head("GET /app/ HTTP/1.1", *fields), scheme=b"https").render_head()
    assert forwarded(rendered, "X-Forwarded-Proto") == [scheme]


def test_without_a_known_client_no_chain_is_forwarded() -> None:
    """Navidrome would use its first entry, which any client can set."""
    policy = Policy(whitelist=trusting("@"))
    text = head("GET /app/ HTTP/1.1", "X-Forwarded-For: 6.6.6.6, unknown")
    rendered = decided(text, parse_peer("@"), policy).render_head()
    assert forwarded(rendered, "X-Forwarded-For") == forwarded(rendered, "X-Real-IP") == []


def test_several_fields_of_one_name_are_one_chain() -> None:
    rendered = decided(
        head(
            "GET /app/ HTTP/1.1",
            "X-Forwarded-For: 6.6.6.6",
            "X-Other: x",
            "x-forwarded-for: 198.51.100.7",
        )
    ).render_head()
    assert forwarded(rendered, "X-Forwarded-For") == ["6.6.6.6, 198.51.100.7, 127.0.0.2"]
    assert forwarded(rendered, "X-Real-IP") == ["198.51.100.7"]


def test_a_unix_peer_adds_nothing_to_the_chain() -> None:
    policy = Policy(whitelist=trusting("@"))
    unix = parse_peer("@")
    rendered = decided(head("GET /app/ HTTP/1.1"), unix, policy).render_head()
    assert forwarded(rendered, "X-Forwarded-For") == []
    assert forwarded(rendered, "X-Real-IP") == []
    rendered = decided(
        head("GET /app/ HTTP/1.1", "X-Forwarded-For: 198.51.100.7"), unix, policy
    ).render_head()
    assert forwarded(rendered, "X-Forwarded-For") == ["198.51.100.7"]
    assert forwarded(rendered, "X-Real-IP") == ["198.51.100.7"]
    rendered = decided(head("GET /app/ HTTP/1.1", "X-Real-IP: 6.6.6.6"), unix, POLICY).render_head()
    assert forwarded(rendered, "X-Real-IP") == []
    assert forwarded(rendered, "Forwarded") == [f'for=unknown;proto=http;host="{HOST}"']


def test_an_ipv6_peer_is_forwarded_without_its_zone() -> None:
    peer = parse_peer("fe80::1%eth0")
    rendered = decided(head("GET /app/ HTTP/1.1"), peer).render_head()
    assert forwarded(rendered, "X-Real-IP") == ["fe80::1"]
    assert forwarded(rendered, "Forwarded") == [f'for="[fe80::1]";proto=http;host="{HOST}"']


def test_connection_cannot_remove_the_client_address() -> None:
    rendered = decided(
        head(
            "GET /app/ HTTP/1.1",
            "X-Forwarded-For: 198.51.100.7",
            "Connection: close, X-Forwarded-For, X-Real-IP, X-Forwarded-Proto, Host",
        )
    ).render_head()
    assert forwarded(rendered, "X-Forwarded-For") == ["198.51.100.7, 127.0.0.2"]
    assert forwarded(rendered, "X-Real-IP") == ["198.51.100.7"]
    assert forwarded(rendered, "Host") == [HOST]


def test_only_the_last_32_entries_of_x_forwarded_for_are_read_and_forwarded() -> None:
    policy = Policy(whitelist=POLICY.whitelist, real_ip_proxies=trusting("10.0.0.0/8"))
    entries = ["198.51.100.7", *(f"10.0.0.{number}" for number in range(1, 33))]
    rendered = decided(
        head("GET /app/ HTTP/1.1", f"X-Forwarded-For: {', '.join(entries)}"), policy=policy
    ).render_head()
    assert forwarded(rendered, "X-Forwarded-For") == [", ".join([*entries[1:], "127.0.0.2"])]
    assert forwarded(rendered, "X-Real-IP") == ["10.0.0.1"]
    rendered = decided(
        head("GET /app/ HTTP/1.1", f"X-Forwarded-For: {', '.join(entries[:-1])}"), policy=policy
    ).render_head()
    assert forwarded(rendered, "X-Real-IP") == ["198.51.100.7"]
