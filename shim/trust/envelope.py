"""What the fields that matter to the shim come to: whom they name, how they frame the body, where the
request came from.

Everything here depends on those fields alone and not on the rest of the header block, which passes as it
is: a browser whose cookie changes keeps its envelope.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from shim.trust.claims import CLAIMING, Belief, judge_claims
from shim.trust.fields import Field, Kind
from shim.trust.forwarding import Source, forwarded_lines
from shim.trust.identity import Role
from shim.trust.policy import Policy
from shim.trust.proof import Awaited
from shim.trust.reasons import Reason
from shim.trust.refusal import Refused

NO_BODY = -1
CHUNKED = -2
# Go reads a length into an int64.
_LONGEST = 2**63 - 1

_HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://")
_FORWARDED = (
    Kind.FORWARDED_FOR,
    Kind.FORWARDED_PROTO,
    Kind.FORWARDED_HOST,
    Kind.FORWARDED,
    Kind.FORWARDED_OTHER,
)
# End-to-end fields that are looked at on their way.
_WATCHED = (Kind.HOST, Kind.ORIGIN, Kind.FETCH_SITE, Kind.WEBSOCKET)
_SAME_SITE = (b"same-origin", b"none")


@dataclass(slots=True)
class Envelope:
    """What the fields that matter say. Treated as frozen.

    `belief`: what is believed wherever no token is needed. `awaited`: what is believed where one is, and
    where that is; None without a token that counts.
    `forward`: their share of the lines for Navidrome, each with its line end, but for the user header; it
    begins with those of `tokens`, which may carry a token of Navidrome's own.
    `user_prefix`: how the user header begins, for an account that is named otherwise than the identity.
    `host`: the value of `Host`, None if there is none.
    `length`: bytes of the body, `NO_BODY` or `CHUNKED`.
    `close`, `keep_alive`: the options of `Connection`; `named`: the fields that it names, lower case.
    `upgrade`: the value of `Upgrade` where `Connection` names it. `websocket`: whether the handshake's
    fields are whole.
    `expects`: the client waits for a 100.
    `foreign`: a browser says that another site asked.
    `client`: the client's address.
    `removed`: the fields that do not reach Navidrome as they were sent.
    """

    belief: Belief
    awaited: Awaited[Belief] | None
    forward: bytes
    tokens: tuple[Field, ...]
    user_prefix: bytes
    host: bytes | None
    length: int
    close: bool
    keep_alive: bool
    named: frozenset[bytes]
    upgrade: bytes | None
    websocket: bool
    expects: bool
    foreign: bool
    client: bytes | None
    removed: tuple[Field, ...]


def set_apart(fields: tuple[Field, ...]) -> tuple[tuple[Field, ...], str]:
    """The fields with the provider's token taken out, and the token, empty without one: what they come to
    depends on its being there alone."""
    token = ""
    for field in fields:
        # Where both are there the edge's own header speaks, and not the client's.
        if (
            field.role is Role.JWT
            and isinstance(field.claim, str)
            and (not token or (field.claim and field.kind is Kind.IDENTITY))
        ):
            token = field.claim
    return tuple([field.apart or field for field in fields]) if token else fields, token


def read_envelope(fields: Sequence[Field], source: Source, policy: Policy) -> Envelope:
    """Read the fields of a header block whose kind is not `PASS`, in the order in which they were sent.

    Raises `Refused` where they frame the body, or name the host, in a way that two parsers could read in
    two ways.
    """
    found: dict[Kind, list[Field]] = {}
    for field in fields:
        found.setdefault(field.kind, []).append(field)
    return _Reading(found, source, policy).envelope()


class _Reading:
    """The fields by their kind, and the questions that are asked of them."""

    __slots__ = ("_found", "_policy", "_source")

    def __init__(self, found: dict[Kind, list[Field]], source: Source, policy: Policy) -> None:
        self._found = found
        self._source = source
        self._policy = policy

    def envelope(self) -> Envelope:
        if Kind.FRAMING_ALIAS in self._found:
            raise Refused(
                Reason.FRAMING_ALIAS, "a header's name only folds to one that frames the request"
            )
        host = self._host()
        length = self._length()
        options = self._options()
        identity = self._fields(*CLAIMING, Kind.SECRET)
        forwarding = self._fields(*_FORWARDED)
        belief, awaited = judge_claims(identity, self._source, self._policy)
        lines, client = forwarded_lines(forwarding, self._source, host or b"", self._policy.hops)
        # RFC 9110 §7.6.1: what Connection names is for this hop alone. What frames the message or tells
        # of the client is written anew and can't be named away.
        named = options - {b"close", b"keep-alive", b"upgrade", b"host"}
        watched = self._fields(*_WATCHED)
        tokens = tuple(field for field in self._fields(Kind.TOKEN) if field.name not in named)
        kept = [field.wire for field in (*tokens, *watched) if field.name not in named]
        if host is None:
            # HTTP/1.0 may go without; forwarded in HTTP/1.1 it may not (RFC 9112 §3.2).
            kept.append(b"Host: \r\n")
        prefix = b"%b: " % self._policy.names.user.encode()
        return Envelope(
            belief=belief,
            awaited=awaited,
            forward=b"".join((*kept, framing_lines(length), *lines)),
            tokens=tokens,
            user_prefix=prefix,
            host=host,
            length=length,
            close=b"close" in options,
            keep_alive=b"keep-alive" in options,
            named=named,
            upgrade=self._upgrade() if b"upgrade" in options else None,
            websocket=self._websocket(length),
            expects=self._expects(),
            foreign=self._foreign(host),
            client=client,
            removed=(
                *identity,
                *self._fields(Kind.DROP, Kind.CONNECTION, Kind.UPGRADE, Kind.EXPECT),
                *(() if self._source.listed else forwarding),
                *(f for f in (*self._fields(Kind.TOKEN), *watched) if f.name in named),
            ),
        )

    def _fields(self, *kinds: Kind) -> list[Field]:
        return [field for kind in kinds for field in self._found.get(kind, ())]

    def _host(self) -> bytes | None:
        hosts = self._found.get(Kind.HOST)
        if hosts is None:
            return None
        if len(hosts) > 1 or not _HOST.fullmatch(hosts[0].value):
            # RFC 9112 §3.2: more than one, or an invalid one, is answered with 400.
            raise Refused(
                Reason.AMBIGUOUS_HOST, "Host is not given once, as a name with or without a port"
            )
        return hosts[0].value

    def _length(self) -> int:
        lengths = self._found.get(Kind.LENGTH)
        codings = self._found.get(Kind.CODING)
        if codings is not None:
            # RFC 9112 §6.1 and §6.3: whatever is not chunked alone is where smuggling begins.
            if lengths is not None or len(codings) > 1 or codings[0].value.lower() != b"chunked":
                raise Refused(
                    Reason.AMBIGUOUS_FRAMING, "Transfer-Encoding is not chunked, once and alone"
                )
            return CHUNKED
        if lengths is None:
            return NO_BODY
        value = lengths[0].value
        if len(lengths) > 1 or not value.isdigit() or len(value) > 19 or int(value) > _LONGEST:
            raise Refused(
                Reason.AMBIGUOUS_FRAMING, "Content-Length is not one number of at most 2^63-1"
            )
        return int(value)

    def _options(self) -> frozenset[bytes]:
        fields = self._found.get(Kind.CONNECTION)
        if fields is None:
            return frozenset()
        options = b",".join(field.value for field in fields).lower().split(b",")
        return frozenset(option.strip(b" \t") for option in options)

    def _expects(self) -> bool:
        fields = self._found.get(Kind.EXPECT, ())
        if any(field.value.lower() != b"100-continue" for field in fields):
            raise Refused(Reason.AMBIGUOUS_FRAMING, "Expect is not 100-continue")
        return bool(fields)

    def _upgrade(self) -> bytes | None:
        # RFC 9110 §7.8: the option alone, which some edges send with every request, asks for nothing.
        fields = self._found.get(Kind.UPGRADE)
        return None if fields is None else b",".join(field.value for field in fields).lower()

    def _websocket(self, length: int) -> bool:
        fields = sorted((field.name, field.value) for field in self._fields(Kind.WEBSOCKET))
        if length != NO_BODY or len(fields) != 2:
            return False
        (key_name, key), version = fields
        return (
            key_name == b"sec-websocket-key"
            and bool(key)
            and version == (b"sec-websocket-version", b"13")
        )

    def _foreign(self, host: bytes | None) -> bool:
        sites = self._found.get(Kind.FETCH_SITE, ())
        if any(field.value.lower() not in _SAME_SITE for field in sites):
            return True
        origins = self._found.get(Kind.ORIGIN, ())
        if not origins:
            return False
        asked = host or b""
        if self._source.listed and Kind.FORWARDED_HOST in self._found:
            asked = self._found[Kind.FORWARDED_HOST][-1].value.rpartition(b",")[2].strip(b" \t")
        return any(_authority(field.value) != _without_default_port(asked) for field in origins)


def framing_lines(length: int) -> bytes:
    """Return the line that frames a body of this length, with its line end; none where there is no body."""
    if length == CHUNKED:
        return b"Transfer-Encoding: chunked\r\n"
    return b"" if length == NO_BODY else b"Content-Length: %d\r\n" % length


def _authority(origin: bytes) -> bytes | None:
    scheme = _SCHEME.match(origin)
    if scheme is None:  # "null", or nothing that a browser sends
        return None
    return _without_default_port(origin[scheme.end() :])


def _without_default_port(authority: bytes) -> bytes:
    return authority.lower().removesuffix(b":443").removesuffix(b":80")
