"""Match peers against a list of IP addresses, CIDRs, host names and `@` for Unix-socket peers.

The list does not resolve names. The caller resolves the host names and passes their addresses; until then
a host name matches no peer. Addresses are normalized before they are compared: an IPv4-mapped IPv6
address is the IPv4 address, and a zone counts only if the entry has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

UNIX_PEERS = "@"
_MAX_ADDRESS = 128  # characters of an address, including blanks

# Quoted or not: a bracketed IPv6 address or an IPv4 address, each with or without a port, or a bare IPv6
# address.
_FORWARDED_ENTRY = re.compile(
    rb'("?)(?:\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?|([0-9.]{7,15})(?::[0-9]{1,5})?|([0-9A-Fa-f:.]{2,45}))\1'
)
_MAPPED = IPv6Network("::ffff:0:0/96")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
# WHATWG URL §3.5 "ends in a number": some resolvers would parse such a name as an IPv4 address.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a downstream socket.

    `address` is None for a peer on a Unix socket. `text` is the normalized address, with its zone if it
    has one, or `@`.
    """

    address: Address | None
    text: str


@dataclass(frozen=True, slots=True)
class NetworkEntry:
    """An IP address or a CIDR of the list.

    `host_bits`: the CIDR has host bits set, which Navidrome accepts too: `10.0.0.5/8` matches all of
    `10.0.0.0/8`.
    """

    text: str
    network: Network
    zone: str | None = None
    host_bits: bool = False


@dataclass(frozen=True, slots=True)
class HostEntry:
    """A host name of the list, in lower case and without a trailing dot."""

    text: str
    host: str


@dataclass(frozen=True, slots=True)
class UnixEntry:
    """The entry `@`: every peer that can reach the Unix socket."""

    text: str = UNIX_PEERS


Entry: TypeAlias = NetworkEntry | HostEntry | UnixEntry


def parse_peer(text: str) -> Peer:
    """Parse the address of a peer as the socket reports it.

    Accepts `10.0.0.5`, `::ffff:10.0.0.5`, `fe80::1%eth0`, and `@` or an empty name for a Unix socket.
    Raises ValueError for anything else.
    """
    if text in ("", UNIX_PEERS):
        return Peer(None, UNIX_PEERS)
    address = _unmapped(ip_address(text))
    return Peer(address, str(address))


def parse_entry(text: str) -> Entry:
    """Parse one entry of a list, ignoring blanks around it.

    Raises ValueError with the error and a correct example: an empty entry, a CIDR with a zone, an IPv4
    address in octal, hexadecimal or short form, or a host name outside RFC 1123 (underscores are
    accepted, since compose services have them).
    """
    text = text.strip(" \t")
    if not text:
        raise ValueError("an empty entry; write addresses, CIDRs or host names between the commas")
    if text == UNIX_PEERS:
        return UnixEntry()
    if "/" in text:
        return _parse_cidr(text)
    try:
        address = ip_address(text)
    except ValueError:
        return HostEntry(text, _parse_host(text))
    zone = address.scope_id if isinstance(address, IPv6Address) else None
    if isinstance(address, IPv6Address) and zone is not None:
        address = IPv6Address(int(address))
    return NetworkEntry(text, ip_network(_unmapped(address)), zone)


def parse_address(text: bytes) -> Address | None:
    """Parse the address of a forwarded entry, without its quotes, brackets and port.

    See RFC 7239 §6; IIS and others write `192.0.2.1:4711`. Returns None for a name, an address with a
    zone, or an empty entry.
    """
    if len(text) > _MAX_ADDRESS:
        return None
    match = _FORWARDED_ENTRY.fullmatch(text.strip(b" \t"))
    if match is None:
        return None
    try:
        address = ip_address((match[2] or match[3] or match[4]).decode("ascii"))
    except ValueError:
        return None
    if match[2] is not None and not isinstance(address, IPv6Address):
        return None
    return _unmapped(address)


class AddressList:
    """A list of entries with the current addresses of their host names.

    `resolved` maps a host name to its addresses; a name without addresses matches no peer.
    """

    __slots__ = ("_unix", "_v4", "_v6", "_zoned", "entries", "matches_everyone", "resolved")

    def __init__(
        self,
        entries: Iterable[Entry] = (),
        resolved: Mapping[str, frozenset[Address]] | None = None,
    ) -> None:
        self.entries = tuple(entries)
        self.resolved = dict(resolved or {})
        networks: list[Network] = []
        zoned: set[tuple[Address, str]] = set()
        unix = False
        for entry in self.entries:
            match entry:
                case UnixEntry():
                    unix = True
                case HostEntry(host=host):
                    networks += [ip_network(_unmapped(a)) for a in self.resolved.get(host, ())]
                case NetworkEntry(network=network, zone=str(zone)):
                    zoned.add((network.network_address, zone))
                case NetworkEntry(network=network):
                    networks.append(network)
        # Whether an entry matches every address of a family (`0.0.0.0/0`, `::/0`).
        self.matches_everyone = any(network.prefixlen == 0 for network in networks)
        self._v4 = _by_prefix(network for network in networks if network.version == 4)
        self._v6 = _by_prefix(network for network in networks if network.version == 6)
        self._zoned = frozenset(zoned)
        self._unix = unix

    def __contains__(self, peer: Peer) -> bool:
        address = peer.address
        if address is None:
            return self._unix
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            zone = address.scope_id
            address = IPv6Address(int(address))
            if (address, zone) in self._zoned:
                return True
        number = int(address)
        prefixes = self._v4 if address.version == 4 else self._v6
        return any(number >> shift in numbers for shift, numbers in prefixes)

    def __bool__(self) -> bool:
        return bool(self.entries)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Return the host names to resolve, each once, in the order of the list."""
        names = (entry.host for entry in self.entries if isinstance(entry, HostEntry))
        return tuple(dict.fromkeys(names))

    def describe(self) -> tuple[str, ...]:
        """Return every entry as text for users: a CIDR with its range, a host name with its addresses."""
        descriptions = []
        for entry in self.entries:
            match entry:
                case HostEntry(host=host):
                    found = ", ".join(sorted(map(str, self.resolved.get(host, ()))))
                    descriptions.append(f"{host} ({found or 'not resolved: nobody'})")
                case NetworkEntry(network=network, host_bits=True):
                    descriptions.append(f"{entry.text} (all of {network})")
                case _:
                    descriptions.append(entry.text)
        return tuple(descriptions)

    def with_resolved(self, resolved: Mapping[str, frozenset[Address]]) -> AddressList:
        """Return the same entries with other addresses for the host names."""
        return AddressList(self.entries, resolved)


def _by_prefix(networks: Iterable[Network]) -> tuple[tuple[int, frozenset[int]], ...]:
    """Group networks by prefix length.

    Returns, for each length, the number of bits to shift out of an address and the set of remaining
    prefixes. A lookup then costs one set access per length, for any number of networks.
    """
    found: dict[int, set[int]] = {}
    for network in networks:
        shift = network.max_prefixlen - network.prefixlen
        found.setdefault(shift, set()).add(int(network.network_address) >> shift)
    return tuple((shift, frozenset(found[shift])) for shift in sorted(found))


def _parse_cidr(text: str) -> NetworkEntry:
    if "%" in text:
        raise ValueError("a CIDR with a zone; write the address with its zone, or the CIDR alone")
    prefix = text.partition("/")[2]
    if not prefix.isascii() or not prefix.isdigit():
        raise ValueError("a CIDR's prefix is a number of bits, such as 10.0.0.0/8 or fd00::/8")
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            "not a CIDR; use for example 10.0.0.0/8, 192.168.1.5/32 or fd00::/8"
        ) from None
    host_bits = ip_address(text.partition("/")[0]) != network.network_address
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        v4 = IPv4Address(int(network.network_address) & 0xFFFFFFFF)
        network = IPv4Network((v4, network.prefixlen - 96))
    return NetworkEntry(text, network, None, host_bits)


def _parse_host(text: str) -> str:
    host = text.lower().removesuffix(".")
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        raise ValueError("not a valid address; IPv4 is four decimal numbers without leading zeros")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(
            "not an IP address, CIDR, host name or @; use for example 10.0.0.5, 10.0.0.0/8 or traefik"
        )
    return host


def _unmapped(address: Address) -> Address:
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
