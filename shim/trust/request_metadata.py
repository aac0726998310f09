"""Read the metadata of a request: its identity, the framing of its body and its origin.

The metadata depends only on the fields that the shim interprets, not on the rest of the header block,
which passes unchanged: a browser whose cookie changes keeps its cached metadata.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

from shim.http1.framing import (
    CHUNKED,
    NO_BODY,
    connection_options,
    framing_lines,
    parse_content_length,
)
from shim.http1.grammar import BLANKS, is_host
from shim.trust.client_address import PeerInfo, forwarding_lines
from shim.trust.fields import Field, Kind
from shim.trust.identity import Role
from shim.trust.identity_evaluation import IDENTITY_KINDS, TrustResult, evaluate_identity
from shim.trust.policy import Policy
from shim.trust.reasons import Reason
from shim.trust.rejection import RequestRejected
from shim.trust.token_proof import DeferredResult

_WEBSOCKET = re.compile(rb"(?i)(?:^|,)[ \t]*websocket[ \t]*(?:,|$)")
_ORIGIN = re.compile(rb"(https?)://([^/?#@]+)")
_FORWARDED = (
    Kind.FORWARDED_FOR,
    Kind.FORWARDED_PROTO,
    Kind.FORWARDED_HOST,
    Kind.FORWARDED,
    Kind.FORWARDED_OTHER,
)
# End-to-end fields that the shim inspects and forwards.
_INSPECTED = (Kind.HOST, Kind.ORIGIN, Kind.FETCH_SITE, Kind.WEBSOCKET)
_SAME_SITE = (b"same-origin", b"none")


@dataclass(slots=True)
class RequestMetadata:
    """The metadata of a request. Treated as frozen.

    `trust_result`: the result for paths that need no token. `deferred`: the result for paths that need
    one, with their zones; None without a token that counts.
    `forward`: the lines of the interpreted fields for Navidrome, each with its line end, without the user
    header. It begins with those of `tokens`, which may carry a Navidrome token.
    `user_prefix`: the beginning of the user header line, for an account with another name than the
    identity's.
    `host`: the value of `Host`, None if absent.
    `length`: bytes of the body, `NO_BODY` or `CHUNKED`.
    `close`, `keep_alive`: the options of `Connection`. `connection_listed`: the fields that it lists, in
    lower case.
    `upgrade`: a WebSocket is offered; any other upgrade is ignored. `websocket`: the fields of the
    handshake are complete.
    `expect_continue`: the client waits for a 100.
    `cross_site`: the header values that show a request from another site, empty if there are none.
    `client`: the client's address.
    `removed`: the fields that do not reach Navidrome as they were sent.
    `has_body`: a body follows the head, of at least one byte or chunked.
    `unusual`: the request has no host, has chunks or offers an upgrade, so it needs more checks.
    `plain`: nothing in it can change the decision on a GET request but the zone of the path.
    """

    trust_result: TrustResult
    deferred: DeferredResult[TrustResult] | None
    forward: bytes
    tokens: tuple[Field, ...]
    user_prefix: bytes
    host: bytes | None
    length: int
    close: bool
    keep_alive: bool
    connection_listed: frozenset[bytes]
    upgrade: bool
    websocket: bool
    expect_continue: bool
    cross_site: str
    client: bytes | None
    removed: tuple[Field, ...]
    # Derived, because each request reads them.
    has_body: bool = dataclasses.field(init=False)
    unusual: bool = dataclasses.field(init=False)
    plain: bool = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.has_body = self.length not in (NO_BODY, 0)
        self.unusual = self.host is None or self.length == CHUNKED or self.upgrade
        self.plain = not (
            self.unusual or self.deferred or self.tokens or self.cross_site or self.close
        )


def extract_token(fields: tuple[Field, ...]) -> tuple[tuple[Field, ...], str]:
    """Return the fields without the provider's token, and the token, empty if there is none.

    The metadata depends only on the presence of the token.
    """
    token = ""
    for field in fields:
        # If both are present, the edge's own header takes precedence over the client's.
        if (
            field.role is Role.JWT
            and isinstance(field.parsed_value, str)
            and (not token or (field.parsed_value and field.kind is Kind.IDENTITY))
        ):
            token = field.parsed_value
    return tuple([field.token_placeholder or field for field in fields]) if token else fields, token


def read_metadata(fields: Sequence[Field], source: PeerInfo, policy: Policy) -> RequestMetadata:
    """Read the fields of a header block whose kind is not `PASS`, in the order in which they were sent.

    Raises `RequestRejected` if two parsers could read the framing or the host differently.
    """
    by_kind: dict[Kind, list[Field]] = {}
    for field in fields:
        by_kind.setdefault(field.kind, []).append(field)
    return _MetadataReader(by_kind, source, policy).metadata()


class _MetadataReader:
    """Read the metadata from the fields, grouped by kind."""

    __slots__ = ("_by_kind", "_policy", "_source")

    def __init__(self, by_kind: dict[Kind, list[Field]], source: PeerInfo, policy: Policy) -> None:
        self._by_kind = by_kind
        self._source = source
        self._policy = policy

    def metadata(self) -> RequestMetadata:
        if Kind.FRAMING_ALIAS in self._by_kind:
            raise RequestRejected(
                Reason.FRAMING_ALIAS, "a header's name only normalizes to a framing header"
            )
        host = self._host()
        length = self._length()
        options = self._options()
        identity = self._fields(*IDENTITY_KINDS, Kind.SECRET)
        forwarding = self._fields(*_FORWARDED)
        trust_result, deferred = evaluate_identity(identity, self._source, self._policy)
        lines, client = forwarding_lines(
            forwarding, self._source, host or b"", self._policy.real_ip_proxies
        )
        # RFC 9110 §7.6.1: fields that Connection lists are for this hop only. The framing and forwarding
        # fields are written again, so Connection cannot remove them.
        connection_listed = options - {b"close", b"keep-alive", b"upgrade", b"host"}
        inspected = self._fields(*_INSPECTED)
        tokens = tuple(
            field for field in self._fields(Kind.TOKEN) if field.name not in connection_listed
        )
        forwarded = [
            field.wire for field in (*tokens, *inspected) if field.name not in connection_listed
        ]
        if host is None:
            # HTTP/1.0 does not require Host, but HTTP/1.1, in which the request is forwarded, does (RFC
            # 9112 §3.2).
            forwarded.append(b"Host: \r\n")
        prefix = b"%b: " % self._policy.names.user.encode()
        return RequestMetadata(
            trust_result=trust_result,
            deferred=deferred,
            forward=b"".join((*forwarded, framing_lines(length), *lines)),
            tokens=tokens,
            user_prefix=prefix,
            host=host,
            length=length,
            close=b"close" in options,
            keep_alive=b"keep-alive" in options,
            connection_listed=connection_listed,
            upgrade=b"upgrade" in options and self._offers_websocket(),
            websocket=self._websocket(length),
            expect_continue=self._expects_continue(),
            cross_site=self._is_cross_site(host),
            client=client,
            removed=(
                *identity,
                *self._fields(Kind.DROP, Kind.CONNECTION, Kind.UPGRADE, Kind.EXPECT),
                *(() if self._source.trusted else forwarding),
                *(
                    f
                    for f in (*self._fields(Kind.TOKEN), *inspected)
                    if f.name in connection_listed
                ),
            ),
        )

    def _fields(self, *kinds: Kind) -> list[Field]:
        return [field for kind in kinds for field in self._by_kind.get(kind, ())]

    def _host(self) -> bytes | None:
        hosts = self._by_kind.get(Kind.HOST)
        if hosts is None:
            return None
        if len(hosts) > 1 or not is_host(hosts[0].value):
            # RFC 9112 §3.2: more than one, or an invalid one, is rejected with 400.
            raise RequestRejected(
                Reason.AMBIGUOUS_HOST, "Host must occur once, as a name with or without a port"
            )
        return hosts[0].value

    def _length(self) -> int:
        lengths = self._by_kind.get(Kind.LENGTH)
        codings = self._by_kind.get(Kind.CODING)
        if codings is not None:
            # RFC 9112 §6.1 and §6.3: any coding other than a single chunked allows request smuggling.
            if lengths is not None or len(codings) > 1 or codings[0].value.lower() != b"chunked":
                raise RequestRejected(
                    Reason.AMBIGUOUS_FRAMING, "Transfer-Encoding must be chunked, once and alone"
                )
            return CHUNKED
        if lengths is None:
            return NO_BODY
        if len(lengths) > 1:
            raise RequestRejected(Reason.AMBIGUOUS_FRAMING, "Content-Length occurs twice")
        try:
            return parse_content_length(lengths[0].value)
        except ValueError as error:
            raise RequestRejected(Reason.AMBIGUOUS_FRAMING, str(error)) from None

    def _options(self) -> frozenset[bytes]:
        fields = self._by_kind.get(Kind.CONNECTION)
        if fields is None:
            return frozenset()
        try:
            return connection_options(b",".join([field.value for field in fields]))
        except ValueError as error:
            raise RequestRejected(Reason.AMBIGUOUS_FRAMING, str(error)) from None

    def _expects_continue(self) -> bool:
        fields = self._by_kind.get(Kind.EXPECT, ())
        if any(field.value.lower() != b"100-continue" for field in fields):
            raise RequestRejected(Reason.AMBIGUOUS_FRAMING, "Expect is not 100-continue")
        return bool(fields)

    def _offers_websocket(self) -> bool:
        # RFC 9110 §7.8: an upgrade may be ignored. Java's client and curl offer h2c with every request,
        # and some edges send only the option of `Connection`.
        fields = self._by_kind.get(Kind.UPGRADE, ())
        return any(_WEBSOCKET.search(field.value) is not None for field in fields)

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

    def _is_cross_site(self, host: bytes | None) -> str:
        """Return the header values that show a request from another site, for the log; empty if there are
        none.
        """
        sites = self._by_kind.get(Kind.FETCH_SITE, ())
        if sites:
            # Browsers send Sec-Fetch-Site with every request to https and to localhost, and no page can
            # forge it.
            if len(sites) == 1 and sites[0].value.lower() in _SAME_SITE:
                return ""
            return f"Sec-Fetch-Site is {_quoted_values(*(field.value for field in sites))}"
        hosts = [host or b""]
        if self._source.trusted and Kind.FORWARDED_HOST in self._by_kind:
            first = self._by_kind[Kind.FORWARDED_HOST][0].value
            hosts.append(first.partition(b",")[0].strip(BLANKS))
        origins = [field.value for field in self._by_kind.get(Kind.ORIGIN, ())]
        if all(_origin_is_host(origin, hosts) for origin in origins):
            return ""
        found = f"Origin is {_quoted_values(*origins)}, Host is {_quoted_values(hosts[0])}"
        return (
            found if len(hosts) == 1 else f"{found}, X-Forwarded-Host is {_quoted_values(hosts[1])}"
        )


def _origin_is_host(origin: bytes, hosts: Sequence[bytes]) -> bool:
    """Return whether an origin matches one of these hosts, ignoring the default port of its scheme.

    The origin `null` matches none.
    """
    match = _ORIGIN.fullmatch(origin.lower())
    if match is None:
        return False
    port = b":443" if match[1] == b"https" else b":80"
    return match[2].removesuffix(port) in [host.lower().removesuffix(port) for host in hosts]


def _quoted_values(*values: bytes) -> str:
    """Format values for the log: quoted, escaped and truncated."""
    texts = [value[:100].decode("utf-8", "backslashreplace") for value in values[:3]]
    return ", ".join(map(repr, texts))
