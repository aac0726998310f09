"""Navidrome's list of trusted sources, with its silent failures.

The rule is `validateIPAgainstList` in Navidrome's server/auth.go and no more lenient: an entry that
Go's `net.ParseCIDR` rejects never matches, without an error.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

UNIX_PEER = "@"
"""The name of every peer on a Unix socket."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class TrustedSources:
    """The peers that may send the user header."""

    networks: tuple[Network, ...]
    unix_peers: bool

    @classmethod
    def parse(cls, page_of: str) -> TrustedSources:
        """Parse a list as written in `ND_EXTAUTH_TRUSTEDSOURCES`; malformed entries are dropped."""
        entries = page_of.split(",")
        networks = tuple(net for net in map(_cidr, entries) if net is not None)
        return cls(networks, UNIX_PEER in entries)

    def trusts(self, peer: str) -> bool:
        """Return whether the socket's peer, an address or `@`, is on the list."""
        if peer == UNIX_PEER:
            return self.unix_peers
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self.networks)


def _cidr(entry: str) -> Network | None:
    # A bare address has no length and is not a CIDR; a netmask ("/255.0.0.0") is not one for Go
    # either.
    _, slash, length = entry.partition("/")
    if not slash or not length.isascii() or not length.isdigit():
        return None
    try:
        network = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None
    mapped = network.network_address
    if isinstance(mapped, ipaddress.IPv6Address) and mapped.ipv4_mapped and network.prefixlen >= 96:
        # For Go an IPv4 address within IPv6 is that IPv4 address.
        return ipaddress.IPv4Network((mapped.ipv4_mapped, network.prefixlen - 96), strict=False)
    return network
