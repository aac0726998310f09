"""Parse and classify one header line.

A line must match one strict grammar (token, colon, value of visible characters, blanks and bytes from
0x80), which is never laxer than llhttp's. Three groups of names are interpreted. They differ in how names
are compared:

- identity headers, the user header and the secret's: matched by their *normalized* name (lower case,
  every character outside a-z0-9 becomes "-"), trusted only under their *exact* name, in any case;
- framing and hop-by-hop fields: matched by their exact name only, an alias of one is an attack;
- fields that carry the client's address: removed under any alias.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum, auto

from shim.http1.grammar import BLANKS, TEXT, TOKEN
from shim.trust.identity import Role, decode_name, parse_value
from shim.trust.known_headers import is_known_identity
from shim.trust.reasons import Reason
from shim.trust.rejection import RequestRejected

# Maps every character that no value may have to NUL. A translation is several times as fast as a deletion.
_NUL = 0
_CONTROLS_TO_NUL = bytes(c if c in TEXT else _NUL for c in range(256))
_NORMALIZE = bytes(
    c + 32 if 65 <= c <= 90 else c if 97 <= c <= 122 or 48 <= c <= 57 else 45 for c in range(256)
)


class Kind(IntEnum):
    """How the shim handles a field."""

    PASS = auto()  # end-to-end: forwarded as it is
    DROP = auto()  # hop-by-hop, an untrusted client address, or a provider's header
    HOST = auto()
    LENGTH = auto()
    CODING = auto()  # Transfer-Encoding
    CONNECTION = auto()
    UPGRADE = auto()
    EXPECT = auto()
    WEBSOCKET = auto()  # Sec-WebSocket-Key and -Version: forwarded, and checked for an upgrade
    ORIGIN = auto()
    FETCH_SITE = auto()
    FORWARDED_FOR = auto()
    FORWARDED_PROTO = auto()
    FORWARDED_HOST = auto()
    FORWARDED = auto()
    FORWARDED_OTHER = auto()  # X-Forwarded-Port, -Prefix …: kept from trusted peers only
    IDENTITY = auto()
    USER = auto()  # Navidrome's user header
    SECRET = auto()
    BEARER = auto()  # Authorization: Bearer, if the policy reads the provider's token there
    TOKEN = auto()  # may carry a Navidrome token
    ALIAS = auto()  # of an identity header, the user header or the secret's
    FRAMING_ALIAS = auto()


_PASS = Kind.PASS


@dataclass(slots=True, eq=False)
class Field:
    """A parsed header line. Treated as frozen.

    A field is equal only to itself, so that the metadata of a few cached lines can be cached by these
    objects.
    `name` is lower case, `value` is trimmed, `wire` is the line as it is forwarded, with its line end.
    `forward_line` is the same if the field passes regardless of the other fields, else empty.
    On an identity header that the policy reads, `role` is set, and `parsed_value` is its text, or the
    rejection if it is invalid.
    On the provider's token, `token_placeholder` is the field that replaces every token where only its
    presence matters; None for an unusual spelling of the header name.
    """

    kind: Kind
    name: bytes
    value: bytes
    wire: bytes
    forward_line: bytes = b""
    role: Role | None = None
    parsed_value: str | RequestRejected | None = None
    token_placeholder: Field | None = None

    @property
    def sent_name(self) -> str:
        """Return the name in the case in which it was sent."""
        return self.wire.partition(b":")[0].decode("ascii")


_EXACT: dict[bytes, Kind] = {
    b"host": Kind.HOST,
    b"content-length": Kind.LENGTH,
    b"transfer-encoding": Kind.CODING,
    b"connection": Kind.CONNECTION,
    b"upgrade": Kind.UPGRADE,
    b"expect": Kind.EXPECT,
    # RFC 9110 §7.6.1, and what older proxies use
    b"keep-alive": Kind.DROP,
    b"proxy-connection": Kind.DROP,
    b"proxy-authorization": Kind.DROP,
    b"te": Kind.DROP,
    b"trailer": Kind.DROP,
    b"http2-settings": Kind.DROP,
    b"sec-websocket-key": Kind.WEBSOCKET,
    b"sec-websocket-version": Kind.WEBSOCKET,
    b"origin": Kind.ORIGIN,
    b"sec-fetch-site": Kind.FETCH_SITE,
    b"x-forwarded-for": Kind.FORWARDED_FOR,
    b"x-forwarded-proto": Kind.FORWARDED_PROTO,
    b"x-forwarded-host": Kind.FORWARDED_HOST,
    b"forwarded": Kind.FORWARDED,
    b"x-nd-authorization": Kind.TOKEN,
    b"x-emby-authorization": Kind.TOKEN,
    b"x-emby-token": Kind.TOKEN,
    b"x-mediabrowser-token": Kind.TOKEN,
}
# Navidrome's own cookie is matched by its exact name. Cookies are split as net/http does it, also after a
# ";".
_MAX_COOKIE_CANDIDATES = 32  # occurrences of "jwt" that a cookie header may have
# Jellyfin's header fields, as Navidrome's expression matches them; `(?<!\w)` keeps it linear.
EMBY_FIELD = re.compile(rb'(?<!\w)(?:Token="(?P<token>[^"]*)"|\w+="[^"]*")')
# A header without this text has no token.
_EMBY_TOKEN = b'Token="'
_EMBY_AUTHORIZATION = (b"authorization", b"x-emby-authorization")
_EMBY_TOKEN_HEADERS = (b"x-emby-token", b"x-mediabrowser-token")
_BEARER = re.compile(rb"(?i:bearer)[ \t]+(.*)")  # RFC 6750 §2.1
_FRAMING = frozenset(
    {
        b"content-length",
        b"transfer-encoding",
        b"host",
        b"connection",
        b"upgrade",
        b"expect",
        b"te",
        b"trailer",
    }
)
# Navidrome trusts the first two of them; other proxies use the rest for the same purpose.
_CLIENT_ADDRESS = frozenset(
    {b"true-client-ip", b"x-real-ip", b"cf-connecting-ip", b"x-client-ip", b"x-cluster-client-ip"}
)
_FORWARDED_FAMILY = (b"x-forwarded-", b"forwarded")
# The most frequent headers of browsers and apps, in their usual spelling: if such a name passes, it is not
# classified again.
_COMMON = b"""
Accept Accept-Encoding Accept-Language Cache-Control Content-Type Cookie DNT If-Modified-Since If-None-Match
If-Range Pragma Priority Range Referer Sec-CH-UA Sec-CH-UA-Mobile Sec-CH-UA-Platform Sec-Fetch-Dest
Sec-Fetch-Mode Sec-Fetch-User Sec-GPC Upgrade-Insecure-Requests User-Agent
X-ND-Client-Unique-Id X-Request-Id X-Requested-With
""".split()
# The headers that browsers, Navidrome's web app, Subsonic and Jellyfin clients need. Only these pass until
# Navidrome is known to obey the user header, because any other header may be the one it obeys.
_ALLOWED = frozenset(
    b"""
accept accept-charset accept-encoding accept-language accept-ranges
access-control-request-headers access-control-request-method authorization cache-control
content-disposition content-encoding content-language content-range content-type cookie date device-memory
dnt downlink ect if-match if-modified-since if-none-match if-range if-unmodified-since last-event-id
origin pragma priority range referer rtt save-data service-worker upgrade-insecure-requests user-agent via
x-nd-authorization x-nd-client-unique-id x-playback-session-id x-request-id x-requested-with
x-forwarded-port x-forwarded-prefix x-forwarded-scheme x-forwarded-server x-forwarded-ssl
traceparent tracestate
""".split()
)
_ALLOWED_FAMILIES = (b"sec-", b"x-emby-", b"x-mediabrowser-")


def normalize_header_name(name: bytes) -> bytes:
    """Return the name as the laxest of the stacks behind the shim could read it."""
    return name.translate(_NORMALIZE)


class FieldNames:
    """The names that carry an identity, compiled once from a policy.

    `roles` maps each role that the policy reads to the name of its header. `prefixes` begin the names of
    all other identity headers. `user` is Navidrome's user header, `secret` the header of the shared
    secret.
    `bearer`: the provider's token may also come in `Authorization: Bearer`. `percent_names`: the display
    name is percent-encoded. `email_decides`: the e-mail address is the user name or the uid.
    `restricted`: only headers on the allow-list pass, and never `obeyed`, the header that Navidrome obeys
    instead of `user`.
    `common_names` maps frequent names, as they are spelled, to their lower case, if they pass.
    The user name may come in Navidrome's user header: it is read, removed, and written again.
    """

    __slots__ = (
        "_exact",
        "_normalized",
        "_other_user_header",
        "_prefixes",
        "_restricted",
        "_token_placeholders",
        "bearer",
        "common_names",
        "email_decides",
        "percent_names",
        "roles",
        "secret",
        "user",
    )

    def __init__(
        self,
        roles: Mapping[Role, str],
        prefixes: Iterable[str],
        user: str,
        secret: str,
        *,
        bearer: bool = False,
        percent_names: bool = False,
        email_decides: bool = False,
        restricted: bool = False,
        other_user_header: str = "",
    ) -> None:
        self._restricted = restricted
        self._other_user_header = normalize_header_name(other_user_header.encode())
        self.roles = dict(roles)
        self.user = user
        self.secret = secret
        self.bearer = bearer
        self.percent_names = percent_names
        self.email_decides = email_decides
        self._exact: dict[bytes, tuple[Kind, Role | None]] = {
            name.lower().encode(): (Kind.IDENTITY, role) for role, name in roles.items()
        }
        self._exact[secret.lower().encode()] = (Kind.SECRET, None)
        if roles.get(Role.USERNAME, "").lower() != user.lower():
            self._exact[user.lower().encode()] = (Kind.USER, None)
        self._normalized = frozenset(normalize_header_name(name) for name in self._exact)
        self._prefixes = tuple(normalize_header_name(prefix.encode()) for prefix in prefixes)
        self.common_names = {
            name: name.lower()
            for common in _COMMON
            for name in _spellings(common)
            if self.classify(name.lower()) == (_PASS, None)
        }
        tokens = {b"Authorization": Kind.BEARER}
        if Role.JWT in roles:
            tokens[roles[Role.JWT].encode()] = Kind.IDENTITY
        self._token_placeholders = {
            (kind, name): Field(
                kind, name.lower(), b"", b"%b: \r\n" % name, role=Role.JWT, parsed_value="a token"
            )
            for spelling, kind in tokens.items()
            for name in _spellings(spelling)
        }

    def placeholder_for(self, kind: Kind, name: bytes) -> Field | None:
        """Return the field that replaces every provider's token in the header `name`, as it was sent.

        Returns None if the spelling is unusual.
        """
        return self._token_placeholders.get((kind, name))

    def classify(self, name: bytes) -> tuple[Kind, Role | None]:
        """Return the kind of a lower-case name, and its role if the policy reads it."""
        exact = self._exact.get(name)
        if exact is not None:
            return exact
        normalized = normalize_header_name(name)
        if normalized in self._normalized:
            return Kind.ALIAS, None
        if normalized.startswith(self._prefixes):
            return (Kind.IDENTITY if name == normalized else Kind.ALIAS), None
        if self._restricted and self._may_be_user_header(name, normalized):
            return Kind.DROP, None
        kind = _EXACT.get(name)
        if kind is not None:
            return kind, None
        if normalized in _FRAMING:
            return Kind.FRAMING_ALIAS, None
        if normalized in _CLIENT_ADDRESS or is_known_identity(normalized):
            return Kind.DROP, None
        if normalized.startswith(_FORWARDED_FAMILY):
            if name != normalized:
                return Kind.DROP, None
            return (Kind.FORWARDED_OTHER if name.startswith(b"x-") else Kind.PASS), None
        return Kind.PASS, None

    def _may_be_user_header(self, name: bytes, normalized: bytes) -> bool:
        """Return whether Navidrome may obey this header as its user header.

        Headers that the shim itself interprets keep their kind, so that an attack is still rejected.
        """
        if normalized == self._other_user_header:
            return True
        if name in _EXACT or normalized in _FRAMING:
            return False
        return name not in _ALLOWED and not name.startswith(_ALLOWED_FAMILIES)


def _spellings(name: bytes) -> set[bytes]:
    """Return the name in its usual spellings: as given, in lower case (HTTP/2) and in title case (Go)."""
    return {name, name.lower(), name.title()}


def parse_line(line: bytes, names: FieldNames) -> Field:
    """Parse one header line that still has the CR of its line end.

    Raises `RequestRejected` (`malformed_head`).
    """
    # Fast path: a frequent header that passes, with one blank after the colon and no other to remove.
    name, _, end = line.partition(b": ")
    common = names.common_names.get(name)
    if common is not None:
        value = end[:-1]
        if (
            end[-1:] == b"\r"
            and _NUL not in value.translate(_CONTROLS_TO_NUL)
            and value.strip(BLANKS) is value
            and not (common == b"cookie" and b"jwt" in value)
        ):
            wire = line + b"\n"
            return Field(_PASS, common, value, wire, wire)
    if line[-1:] != b"\r":
        # RFC 9112 §2.2 lets a recipient accept LF alone; two recipients that differ in this read
        # different requests.
        raise RequestRejected(Reason.MALFORMED_HEAD, "a line of the head ends in LF without CR")
    return parse_field(line[:-1], names)


def parse_field(line: bytes, names: FieldNames) -> Field:
    """Parse one header line without its line end.

    Raises `RequestRejected` (`malformed_head`) if it is not a token, a colon and a value without control
    characters (RFC 9112 §5).
    """
    name, colon, value = line.partition(b":")
    common = names.common_names.get(name)
    if not colon or (common is None and (not name or name.translate(None, TOKEN))):
        raise RequestRejected(
            Reason.MALFORMED_HEAD, "a header line does not have a name, a colon and a value"
        )
    if value.translate(None, TEXT):
        raise RequestRejected(Reason.MALFORMED_HEAD, "a header value has a control character")
    value = value.strip(BLANKS)
    wire = b"%b: %b\r\n" % (name, value)
    if common is not None:
        if common == b"cookie" and _has_token_cookie(value):
            return Field(Kind.TOKEN, common, value, wire)
        return Field(_PASS, common, value, wire, wire)
    return _parse_uncommon(name, value, wire, names)


def _parse_uncommon(name: bytes, value: bytes, wire: bytes, names: FieldNames) -> Field:
    lowered = name.lower()
    kind, role = names.classify(lowered)
    if role is Role.JWT:
        return _token(kind, name, value, value, wire, names)
    if role is not None:
        return Field(
            kind, lowered, value, wire, role=role, parsed_value=_parse_value(role, value, names)
        )
    if kind is _PASS and lowered == b"cookie" and _has_token_cookie(value):
        return Field(Kind.TOKEN, lowered, value, wire)
    if lowered == b"authorization" and names.bearer and (match := _BEARER.fullmatch(value)):
        return _token(Kind.BEARER, name, value, match[1], wire, names)
    if lowered in _EMBY_AUTHORIZATION and kind in (_PASS, Kind.TOKEN):
        kind = Kind.TOKEN if _EMBY_TOKEN in value else _PASS
    elif kind is Kind.TOKEN and not value and lowered in _EMBY_TOKEN_HEADERS:
        kind = _PASS
    return Field(kind, lowered, value, wire, wire if kind is _PASS else b"")


def _has_token_cookie(value: bytes) -> bool:
    return b"jwt" in value and token_cookies(value) != []


def token_cookies(value: bytes) -> list[tuple[int, int]] | None:
    """Return the start and the end of each cookie named `jwt`, between its semicolons.

    Returns None if "jwt" occurs more often than is checked.
    """
    if value.count(b"jwt") > _MAX_COOKIE_CANDIDATES:
        return None
    found: list[tuple[int, int]] = []
    at = value.find(b"jwt")
    while at >= 0:
        start = value.rfind(b";", 0, at) + 1
        end = value.find(b";", at)
        if end < 0:
            end = len(value)
        if not value[start:at].strip(b" \t"):
            name_end = value[at + 3 : end].lstrip(b" \t")[:1]
            if name_end in (b"", b"="):
                found.append((start, end))
        at = value.find(b"jwt", at + 3)
    return found


def _token(
    kind: Kind, name: bytes, value: bytes, token: bytes, wire: bytes, names: FieldNames
) -> Field:
    # The line has no control characters, so ASCII needs no further check; the token parser checks the
    # whole text.
    parsed_value = (
        token.decode("ascii") if token.isascii() else _parse_value(Role.JWT, token, names)
    )
    token_placeholder = (
        names.placeholder_for(kind, name)
        if parsed_value and isinstance(parsed_value, str)
        else None
    )
    return Field(kind, name.lower(), value, wire, b"", Role.JWT, parsed_value, token_placeholder)


def _parse_value(role: Role, value: bytes, names: FieldNames) -> str | RequestRejected:
    try:
        if role is Role.NAME:
            value = decode_name(value, percent=names.percent_names)
        return parse_value(role, value, decides=names.email_decides)
    except RequestRejected as rejection:
        # A cached exception would keep the frames in which it was raised, and the objects they hold.
        return RequestRejected(rejection.reason, rejection.detail)
