"""Determine the client address of a request and write the forwarding headers for Navidrome.

Navidrome reads the client's address from `True-Client-IP`, `X-Real-IP` or the first entry of
`X-Forwarded-For` without a check, for its log and its login limit. It builds the addresses of its share
links from `X-Forwarded-Host` and `X-Forwarded-Proto`. So the shim keeps and extends the forwarding
headers of a trusted peer, and replaces those of any other peer with the values of the socket. The shim
always sets `X-Real-IP` itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shim.trust.fields import Field, Kind
from shim.trust.peers import AddressList, Peer, parse_address

# Maximum number of `X-Forwarded-For` entries that are read and forwarded, counted from the last. No chain
# of proxies is longer.
_MAX_ENTRIES = 32


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """The socket's information about a request.

    `peer`: the other end of the socket. `trusted`: whether the policy lists the peer. `scheme`: the
    scheme of the listener (`http` or `https`).
    """

    peer: Peer
    trusted: bool
    scheme: bytes

    @property
    def address(self) -> bytes | None:
        """Return the peer's address as text without a zone, or None on a Unix socket."""
        if self.peer.address is None:
            return None
        return self.peer.text.partition("%")[0].encode("ascii")


def client_address(
    chain: Sequence[bytes], source: PeerInfo, trusted_proxies: AddressList
) -> bytes | None:
    """Return the client's address. `chain` holds the entries of `X-Forwarded-For` from a trusted peer.

    The address is the last entry, or an earlier one if all entries after it are in `trusted_proxies`. An
    entry that is not an address ends the search; empty entries before the last are ignored. If the last
    entry is not an address, the client is the peer of the socket. Returns None for a Unix peer that sent
    no address.
    """
    client = None
    for entry in reversed(chain):
        if not entry and client is not None:
            continue
        address = parse_address(entry)
        if address is None:
            break
        client = str(address).encode("ascii")
        if Peer(address, str(address)) not in trusted_proxies:
            break
    return client or source.address


def forwarding_lines(
    fields: Sequence[Field], source: PeerInfo, host: bytes, trusted_proxies: AddressList
) -> tuple[list[bytes], bytes | None]:
    """Return the header lines that describe the client to Navidrome, and the client's address.

    `fields` are the forwarding fields as they were sent (used only from a trusted peer), `host` is the
    value of `Host`.
    """
    if not source.trusted:
        return _from_socket(source, host), source.address
    forwarded_for: list[bytes] = []
    lines: list[bytes] = []
    forwarded: list[bytes] = []
    scheme = b""
    has_host = False
    for field in fields:
        if field.kind is Kind.FORWARDED_FOR:
            forwarded_for.append(field.value)
        elif field.kind is Kind.FORWARDED:
            forwarded.append(field.value)
        elif field.kind is Kind.FORWARDED_PROTO:
            scheme = scheme or field.value.partition(b",")[0].strip(b" \t").lower()
        else:
            lines.append(field.wire)
            has_host = has_host or field.kind is Kind.FORWARDED_HOST
    entries = b",".join(forwarded_for).rsplit(b",", _MAX_ENTRIES)[-_MAX_ENTRIES:]
    chain = [entry.strip(b" \t") for entry in entries] if forwarded_for else []
    client = client_address(chain, source, trusted_proxies)
    # Each proxy may have added a value: the first one is the client's.
    if scheme not in (b"http", b"https"):
        scheme = source.scheme
    lines.append(b"X-Forwarded-Proto: %b\r\n" % scheme)
    if not has_host and host:
        lines.append(b"X-Forwarded-Host: %b\r\n" % host)
    if forwarded:
        forwarded.append(_forwarded_element(source, host))
        lines.append(b"Forwarded: %b\r\n" % b", ".join(filter(None, forwarded)))
    if source.address is not None:
        chain.append(source.address)
    chain = [entry for entry in chain if entry]
    # Without X-Real-IP Navidrome uses the first entry as the client, and any client can send that entry.
    if chain and client is not None:
        lines.append(b"X-Forwarded-For: %b\r\n" % b", ".join(chain))
    if client is not None:
        lines.append(b"X-Real-IP: %b\r\n" % client)
    return lines, client


def _from_socket(source: PeerInfo, host: bytes) -> list[bytes]:
    lines = [b"X-Forwarded-Proto: %b\r\n" % source.scheme]
    if host:
        lines.append(b"X-Forwarded-Host: %b\r\n" % host)
    lines.append(b"Forwarded: %b\r\n" % _forwarded_element(source, host))
    if source.address is not None:
        lines.append(b"X-Forwarded-For: %b\r\n" % source.address)
        lines.append(b"X-Real-IP: %b\r\n" % source.address)
    return lines


def _forwarded_element(source: PeerInfo, host: bytes) -> bytes:
    # RFC 7239 §4 and §6: an IPv6 address is bracketed and quoted, an unknown one is "unknown".
    address = source.address
    node = b"unknown" if address is None else b'"[%b]"' % address if b":" in address else address
    parts = [b"for=" + node, b"proto=" + source.scheme]
    if host:
        parts.append(b'host="%b"' % host)
    return b";".join(parts)
