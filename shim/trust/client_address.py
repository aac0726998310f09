"""Where a request came from, as Navidrome shall see it.

Navidrome takes the client's address from `True-Client-IP`, `X-Real-IP` or the first entry of
`X-Forwarded-For`, unchecked, for its log and its login limit, and the addresses of its share links from
`X-Forwarded-Host` and `-Proto`. So a peer on the list has its word kept and added to, anybody else has
it replaced by what the socket says, and `X-Real-IP` is always ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shim.trust.fields import Field, Kind
from shim.trust.peers import AddressList, Peer, parse_address

# Entries of `X-Forwarded-For` that are read, and forwarded: the last ones. No chain of proxies is longer.
_MAX_ENTRIES = 32


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """What the socket says of a request: its peer, whether the policy lists it, the listener's scheme
    (`http` or `https`)."""

    peer: Peer
    trusted: bool
    scheme: bytes

    @property
    def address(self) -> bytes | None:
        """The peer's address as text, without a zone; None on a Unix socket."""
        if self.peer.address is None:
            return None
        return self.peer.text.partition("%")[0].encode("ascii")


def client_address(
    chain: Sequence[bytes], source: PeerInfo, trusted_proxies: AddressList
) -> bytes | None:
    """The client's address, where `chain` holds the entries of `X-Forwarded-For` that a trusted peer sent.

    The last entry, further to the left only past `hops`. An entry that is no address stops the search, empty
    ones before the last are ignored. If the last is no address, the client is the socket's peer. None for a
    Unix peer that named nobody.
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
    """The header lines that tell Navidrome of the client, and the client's address.

    `kept` are the fields of the forwarding family as they were sent (used only if the source is listed),
    `host` the value of `Host`.
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
    # Several proxies may each have added theirs: the first is the client's.
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
    # Without X-Real-IP Navidrome takes the first entry for the client, and anybody may have sent that.
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
