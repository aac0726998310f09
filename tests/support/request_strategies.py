"""Requests from realistic to hostile, composed of fragments, and policies to decide them by.

Fragments, since random bytes never get past the first line: the combination matters.
`single_fragment_requests` lists the requests that contain one fragment each; `test_properties`
checks that these reach every verdict and reason. `requests` draws combinations of the same
fragments.
"""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import strategies as st

from shim.trust.identity import Role
from shim.trust.path_zones import Paths
from shim.trust.policy import Policy, Proof
from tests.support.decisions import trusting

_WHITELIST = trusting("127.0.0.2")
_ADMINS = frozenset({"admins"})

POLICIES: tuple[Policy, ...] = (
    Policy(whitelist=_WHITELIST),
    Policy(),
    Policy(whitelist=_WHITELIST, secrets=(b"swordfish",)),
    Policy(
        whitelist=_WHITELIST,
        secrets=(b"swordfish", b"mackerel"),
        public_path_proof=Proof.SECRET,
        admin_groups=_ADMINS,
    ),
    Policy(whitelist=_WHITELIST, require_identity=True, create_admin_disabled=False),
    Policy(whitelist=_WHITELIST, reject_untrusted=True, admin_groups=_ADMINS),
    Policy(whitelist=_WHITELIST, required=frozenset({Role.UID, Role.GROUPS})),
    Policy(whitelist=_WHITELIST, paths=Paths("/music"), admin_groups=_ADMINS),
    Policy(whitelist=_WHITELIST, suspended=True),
    Policy(whitelist=_WHITELIST, real_ip_proxies=trusting("10.0.0.0/8"), max_fields=12),
)

_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get", "G\tET", "")
_PATHS = (
    "/",
    "/app/",
    "/api/user?_start=0",
    "/auth/createAdmin",
    "/rest/getUsers?v=1&c=x",
    "/REST/ping",
    "/rest",
    "/restx",
    "/app/manifest.webmanifest",
    "/re%C5%BFt/x",
    "/share/abc",
    "/jellyfin/socket",
    "/_shim/",
    "/_shim/metrics",
    "/music/app/",
    "/music/rest/ping",
    "/music/_shim/",
    "http://music.example.com/api/x",
    "http://evil.example/rest/x",
    "/rest/../api/user",
    "//rest/ping",
    "/%72est/ping",
    "/api/%2e%2e/x",
    "/api;x/y",
    "*",
)
_VERSIONS = ("HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.1 ")

_VALUES = (
    "ada",
    "admin ",
    "\tadmin",
    "\u00c4da",
    "",
    " ",
    "a\x00b",
    "a\u0085b",
    "a\xa0",
    "x" * 300,
)
_IDENTITY_NAMES = (
    "X-authentik-username",
    "x-AUTHENTIK-username",
    "X-authentik-uid",
    "X-authentik-groups",
    "X-authentik-email",
    "X-authentik-jwt",
    "X-authentik-meta-jwks",
    "Remote-User",
)
_ALIASES = (
    "X_authentik_username",
    "X.Authentik.Groups",
    "X~authentik-x",
    "Remote_User",
    "X_Shim_Proxy_Secret",
    "X-authentik-username ",
    " X-authentik-username",
)
_CLAIMS = (
    "X-authentik-username: ada",
    "X-authentik-username: ada\r\nX-authentik-uid: 7\r\nX-authentik-groups: admins|users",
    "X-authentik-username: ada\r\nX-authentik-groups: admins\r\nX-Shim-Proxy-Secret: swordfish",
    "X-authentik-username: ada\r\nX-Shim-Proxy-Secret: mackerel",
    "X-authentik-username: ada\r\nSec-Fetch-Site: cross-site",
    "X-authentik-username: ada\r\nOrigin: https://music.example.com",
    "X-authentik-groups: admins",
    "X-Shim-Proxy-Secret: swordfish",
    "X-authentik-username: ada\r\nX-Shim-Proxy-Secret: wrong",
    "X-authentik-username: a\u0085b",
    "X_authentik_username: ada",
    "Remote-User: admin",
)
_HANDSHAKE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Key: abc\r\nSec-WebSocket-Version: 13"
)
_OTHERS = (
    "Accept: */*",
    "Cookie:a=b \t ",
    "User-Agent: x",
    "Content-Length: 5",
    "Content-Length: 05",
    "Content-Length: 5, 5",
    "Content_Length: 69",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer_Encoding: chunked",
    "Expect: 100-continue",
    "Connection: close, X-authentik-username",
    "Connection: keep-alive, X-authentik-uid, Remote-User, Host, Cookie",
    "Connection: Upgrade",
    "Upgrade: h2c",
    _HANDSHAKE,
    "Connection: Upgrade\r\nUpgrade: websocket",
    "Sec-Fetch-Site: cross-site",
    "Sec-Fetch-Site: same-origin",
    "Origin: https://evil.example",
    "Origin: https://music.example.com",
    "X-Forwarded-For: 198.51.100.7, 10.0.0.9",
    "X-Forwarded-For: 127.0.0.2",
    "x-forwarded-for: unknown",
    "X-Forwarded-Host: evil.example",
    "X-Forwarded-Uri: /app/",
    "X_Forwarded_For: 6.6.6.6",
    "Forwarded: for=6.6.6.6",
    "True-Client-IP: 6.6.6.6",
    "X-Real-IP: 6.6.6.6",
    "X-WebAuth-User: admin",
    "x_webauth_user: admin",
    "X-Forwarded-User: admin",
    "Remote_Groups: admins",
    "Cf-Access-Jwt-Assertion: x",
    "Host: evil.example",
    " folded: x",
    "\tRemote-User: admin",
    "X: a\nRemote-User: admin",
    "X: a\rRemote-User: admin",
    "no colon",
    ": no name",
    "\u00e9: x",
)


def single_fragment_requests() -> Iterator[bytes]:
    """Yield the head of each request that has one of the fragments, without and beside an identity."""
    usual, write = "GET /app/ HTTP/1.1", "POST /app/ HTTP/1.1"
    lines = [
        *(f"{method} /app/ HTTP/1.1" for method in _METHODS),
        *(f"{method} {path} HTTP/1.1" for path in _PATHS for method in ("GET", "POST")),
        *(f"GET /app/ {version}" for version in dict.fromkeys(_VERSIONS)),
    ]
    fields = [
        *_CLAIMS,
        *_OTHERS,
        *(f"{name}: {value}" for name in _IDENTITY_NAMES for value in _VALUES),
        *(f"{name}: ada" for name in _ALIASES),
    ]
    host, identity = "Host: music.example.com", _CLAIMS[0]
    for rest in ((host,), (host, identity)):
        yield from (_head(line, *rest) for line in lines)
        yield from (_head(line, *rest, field) for field in fields for line in (usual, write))
    yield _head(usual, identity)


def policies() -> st.SearchStrategy[Policy]:
    """One of `POLICIES`; the default one more often."""
    return st.sampled_from((POLICIES[0], POLICIES[0], POLICIES[0], *POLICIES))


_USUAL = st.tuples(
    st.sampled_from(("GET", "GET", "HEAD", "POST")),
    st.sampled_from(_PATHS[:18]),
    st.just("HTTP/1.1"),
)
_UNUSUAL = st.tuples(st.sampled_from(_METHODS), st.sampled_from(_PATHS), st.sampled_from(_VERSIONS))


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request's head. It ends in its only empty line, as the heads that a connection passes on."""
    hostile = draw(st.sampled_from((0, 0, 1, 1, 2, 3)))
    line = draw(_UNUSUAL if hostile == 3 and draw(st.booleans()) else _USUAL)
    kinds = [_sent(_CLAIMS), _sent(_OTHERS[:4])]
    if hostile > 0:
        kinds.append(_sent(_OTHERS[:29]))
    if hostile > 1:
        kinds += [_named(_IDENTITY_NAMES), _sent(_OTHERS)]
    if hostile > 2:
        kinds += [_named(_ALIASES), st.binary(max_size=12)]
    lines = [" ".join(line).encode()]
    if hostile < 3 or draw(st.booleans()):
        lines.append(b"Host: music.example.com")
    if hostile < 2 or draw(st.booleans()):
        lines.append(draw(_sent(_CLAIMS)))
    lines += draw(st.lists(st.one_of(kinds[hostile > 0 :]), max_size=3))
    # An empty line within would end the head there.
    text = b"\r\n".join(each for each in lines if each)
    while b"\r\n\r\n" in text:
        text = text.replace(b"\r\n\r\n", b"\r\n")
    return text.strip(b"\r\n") + b"\r\n\r\n"


def _head(*lines: str) -> bytes:
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def _sent(lines: tuple[str, ...]) -> st.SearchStrategy[bytes]:
    return st.sampled_from(lines).map(str.encode)


def _named(names: tuple[str, ...]) -> st.SearchStrategy[bytes]:
    values = st.one_of(_sent(_VALUES), st.binary(max_size=8))
    return st.builds(lambda name, value: name + b": " + value, _sent(names), values)
