"""The request line: what is rejected, and which class a path has."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from urllib.parse import quote, unquote, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.http1.request_line import COMMON_LINE, METHODS
from shim.http1.request_line import unquote as unquote_path
from shim.trust.path_zones import (
    Paths,
    PathZone,
    RequestLine,
    _parse_uncommon,
    parse_request_line,
)
from shim.trust.policy import Policy
from shim.trust.reasons import PathClass, Reason, Verdict
from shim.trust.rejection import RequestRejected
from tests.support.decisions import ADA, decided, head, trusting
from tests.support.request_strategies import POLICIES

AMBIGUOUS = [
    # dot segments, plain and escaped
    "/rest/../api/user",
    "/rest/./ping",
    "/..",
    "/.",
    "/api/user/..",
    "/rest/%2e%2e/api/user",
    "/rest/.%2E/api/user",
    "/rest/%2e/ping",
    # empty segments
    "//",
    "//rest/ping",
    "/rest//ping",
    "/api//",
    # slashes, backslashes, NULs and path parameters, plain and escaped
    "/rest%2fping",
    "/rest%2Fping",
    "/api\\user",
    "/rest/..\\api",
    "/api%5cuser",
    "/api%00",
    "/api%0d%0aRemote-User:%20admin",
    "/api%7f",
    "/rest;/ping",
    "/rest/..;/api/user",
    "/api;jsessionid=1/user",
    "/api%3buser",
    "/api%3Fx",
    "/api%23x",
    # decoded before the match by one parser and not by the other
    "/%72est/ping",
    "/%61pi/user",
    "/api%2duser",
    "/api%2Euser",
    "/api%5Fuser",
    "/api%7Euser",
    # double encoding
    "/rest%252fping",
    "/%2572est/",
    # invalid escapes
    "/api%",
    "/api%2",
    "/api%zz",
    "/api%u002f",
    "/api%%32%66",
    # invalid UTF-8
    "/api/%ff",
    "/api/%c0%af",
    "/api/%ed%a0%80",
    # bytes that are not allowed in a target
    "/api#fragment",
    "/api?x#fragment",
    "/api/\u00e9",
    # other forms
    "*",
    "",
    "api/user",
    "example.com:443",
    "ftp://music.example.com/",
    "http:///api",
    "http://user@music.example.com/api",
    "http://music.example.com?x",
    "http://music.example.com#x",
    "http:/music.example.com/api",
    "://music.example.com/",
    "http://music.example.com\\@evil.example/api",
    "http://music.example.com//api",
    "http://music.example.com/rest/../api",
]


@pytest.mark.parametrize("target", AMBIGUOUS)
def test_an_ambiguous_target_is_rejected(target: str) -> None:
    decision = decided(head(f"GET {target} HTTP/1.1", ADA))
    assert decision.outcome.reason is Reason.AMBIGUOUS_TARGET
    assert decision.outcome.status == 400
    assert decision.detail


@pytest.mark.parametrize(
    ("byte", "place"),
    [(byte, b"/rest/%bx") for byte in (*range(0x21), 0x23, *range(0x7F, 0x100))]
    + [(byte, b"/api?x=%by") for byte in (*range(0x21), 0x23, 0x7F)],
)
def test_a_target_is_visible_ascii_except_in_its_query(byte: int, place: bytes) -> None:
    line = b"GET " + place % bytes([byte]) + b" HTTP/1.1"
    with pytest.raises(RequestRejected) as rejection:
        parse_request_line(line, Paths())
    # A blank makes a fourth word.
    words = byte == 0x20
    assert rejection.value.reason is (Reason.MALFORMED_HEAD if words else Reason.AMBIGUOUS_TARGET)


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/app/",
        "/app/sw.js",
        "/.well-known/x",
        "/api/song/a.b..c",
        "/app/...",
        "/share/img/eyJ.x-y_z~",
        "/api/%E2%82%AC",
        "/api/a%20b",
        "/api/a%40b%22",
        "/api/%C3%A9",
        "/api/@user:1,2=3!$&'()*+",
        "/api?_start=0&x=%2e%2e%2f//..;\\",
        "/rest/stream?id=1&f=%",
    ],
)
def test_a_plain_target_is_forwarded_unchanged(target: str) -> None:
    decision = decided(head(f"GET {target} HTTP/1.1"))
    assert decision.outcome.verdict is Verdict.ANONYMOUS
    assert decision.render_head().startswith(f"GET {target} HTTP/1.1\r\n".encode())


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/", PathZone.PROTECTED),
        ("/api/user", PathZone.PROTECTED),
        ("/api/rest/", PathZone.PROTECTED),
        ("/res", PathZone.PROTECTED),
        ("/restaurant/", PathZone.PUBLIC),
        ("/restx", PathZone.PUBLIC),
        ("/rest.", PathZone.PUBLIC),
        ("/RESTX/ping", PathZone.PUBLIC),
        ("/rest%20/ping", PathZone.PUBLIC),
        ("/jellyfins", PathZone.PUBLIC),
        ("/shared/", PathZone.SHARE),
        ("/rest/", PathZone.PUBLIC),
        ("/rest", PathZone.PUBLIC),
        ("/REST/ping", PathZone.PUBLIC),
        ("/Rest", PathZone.PUBLIC),
        ("/rest/ping.view", PathZone.PUBLIC),
        ("/jellyfin/socket", PathZone.PUBLIC),
        ("/JellyFin", PathZone.PUBLIC),
        ("/share/img/x", PathZone.SHARE),
        ("/share", PathZone.SHARE),
        ("/SHARE/x", PathZone.SHARE),
        ("/_shim/", PathZone.PERSONAL),
        ("/_shim", PathZone.PERSONAL),
        ("/_shim/devices/1/revoke", PathZone.PERSONAL),
        ("/_shim/STATIC/x", PathZone.PERSONAL),
        ("/_shim/admin/devices/", PathZone.INTERNAL),
        ("/_shim/devices%2f..%2fadmin/", PathZone.PERSONAL),
        ("/_shim/devicesx", PathZone.INTERNAL),
        ("/_shim/api/devices", PathZone.INTERNAL),
        ("/_SHIM/metrics", PathZone.INTERNAL),
        ("/_shimmer", PathZone.PROTECTED),
        ("/app", PathZone.PROTECTED),
        ("/app/", PathZone.PROTECTED),
        ("/app/index.html", PathZone.PROTECTED),
        ("/app/sw.js", PathZone.PROTECTED),
        ("/app/manifest", PathZone.PROTECTED),
        ("/app/manifest.webmanifest", PathZone.SHARE),
        ("/APP/Manifest.webmanifest", PathZone.SHARE),
        ("/app/favicon.ico", PathZone.SHARE),
        ("/app/favicon-32x32.png", PathZone.SHARE),
        ("/app/apple-touch-icon-180x180.png", PathZone.SHARE),
        ("/app/android-chrome-512x512.png", PathZone.SHARE),
        ("/app/mstile-70x70.png", PathZone.SHARE),
        ("/app/safari-pinned-tab.svg", PathZone.SHARE),
        ("/app/browserconfig.xml", PathZone.SHARE),
    ],
)
def test_public_prefixes_match_without_case_trailing_slash_and_boundary(
    path: str, place: PathZone
) -> None:
    assert Paths().zone(path.encode()) is place
    assert Paths("/music").zone(b"/music" + path.encode()) is place


def test_a_public_prefix_is_compared_with_the_decoded_path() -> None:
    paths = Paths(public=("/a@b/",))
    assert (
        paths.zone(b"/a@b/x") is paths.zone(b"/a%40b/x") is paths.zone(b"/A%40B") is PathZone.PUBLIC
    )


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/re%C5%BFt/x", PathZone.NON_ASCII),
        ("/jellyf%C4%B0n/x", PathZone.NON_ASCII),
        ("/api/%C3%A9", PathZone.NON_ASCII),
        ("/_shim/%C3%A9", PathZone.NON_ASCII),
        ("/rest/%C3%A9", PathZone.SHARE),
        ("/rest%C3%A9", PathZone.SHARE),
        ("/share/%C3%A9", PathZone.SHARE),
        ("/api/a%20b", PathZone.PROTECTED),
    ],
)
def test_a_path_with_a_non_ascii_byte_carries_no_identity(path: str, place: PathZone) -> None:
    assert Paths().zone(path.encode()) is place
    assert Paths("/music").zone(b"/music" + path.encode()) is place


@pytest.mark.parametrize(
    ("target", "reason"),
    [("/api/%C3%A9", Reason.NON_ASCII_PATH), ("/rest/%C3%A9", Reason.PUBLIC_PATH)],
)
def test_an_identity_on_a_non_ascii_path_is_stripped(target: str, reason: Reason) -> None:
    for policy in POLICIES[:4]:
        secret = "X-Shim-Proxy-Secret: swordfish"
        decision = decided(head(f"GET {target} HTTP/1.1", ADA, secret), policy=policy)
        expected = reason if policy.whitelist.entries else Reason.UNTRUSTED_PEER
        assert decision.outcome.reason is expected
        assert b"Remote-User" not in decision.render_head()


def test_a_non_ascii_path_is_rejected_where_an_identity_is_required() -> None:
    policy = Policy(whitelist=trusting("127.0.0.2"), require_identity=True, local_login=True)
    for line in ("GET /api/%C3%A9", "POST /%C3%A9/auth/login"):
        for fields in ((), (ADA,)):
            decision = decided(head(f"{line} HTTP/1.1", *fields), policy=policy)
            assert decision.outcome.reason is Reason.IDENTITY_REQUIRED
            assert decision.detail


@pytest.mark.parametrize(
    ("line", "local_login", "expected"),
    [
        ("POST /auth/login", True, Reason.NO_IDENTITY),
        ("POST /auth/login", False, Reason.IDENTITY_REQUIRED),
        ("GET /auth/login", True, Reason.IDENTITY_REQUIRED),
        ("POST /auth/other", True, Reason.IDENTITY_REQUIRED),
    ],
)
def test_navidromes_own_login_is_open_without_an_identity_only_with_its_setting(
    line: str, local_login: bool, expected: Reason
) -> None:
    policy = Policy(whitelist=trusting("127.0.0.2"), require_identity=True, local_login=local_login)
    assert decided(head(f"{line} HTTP/1.1"), policy=policy).outcome.reason is expected


# Characters that an edge may match with a public prefix: Go's (?i) folds ſ to s and the Kelvin sign
# to k, Caddy lowers the whole path, and İ becomes an i with a dot above.
_FOLDED = {"s": "sSſ", "k": "kK\u212a", "i": "iIİı"}
_PREFIXES = ("/rest", "/share", "/jellyfin")


def _folds(letter: str) -> st.SearchStrategy[str]:
    return st.sampled_from(_FOLDED.get(letter, letter + letter.upper()))


def _open_at_an_edge(path: str) -> bool:
    read = unquote(path)
    forms = {read.lower(), read.casefold(), unicodedata.normalize("NFKC", read).casefold()}
    forms |= {form.replace("\u0307", "").replace("ı", "i") for form in forms}
    return any(form.startswith(_PREFIXES) for form in forms)


@given(
    st.sampled_from(_PREFIXES).flatmap(lambda prefix: st.tuples(*map(_folds, prefix))).map("".join),
    st.sampled_from(("", "/", ".", "x", "/ping", "%20/x", "/é")),
)
def test_a_path_that_an_edge_may_treat_as_public_carries_no_identity(
    prefix: str, rest: str
) -> None:
    path = quote(prefix, safe="/") + quote(rest, safe="/%")
    assert _open_at_an_edge(path)
    for base in ("", "/music"):
        policy = Policy(whitelist=trusting("127.0.0.2"), paths=Paths(base))
        decision = decided(head(f"GET {base}{path} HTTP/1.1", ADA), policy=policy)
        assert decision.identity is None


@pytest.mark.parametrize(
    "path",
    ["/", "/rest/ping", "/app/", "/musical/", "/MUSIC/app/", "/Music", "/x/music/app/", "/_shim/"],
)
def test_paths_outside_the_base_path_have_their_own_zone(path: str) -> None:
    paths = Paths("/music/")
    assert paths.zone(path.encode()) is PathZone.OUTSIDE
    line = parse_request_line(f"GET {path} HTTP/1.1".encode(), paths)
    assert line.path_class is PathClass.PUBLIC


@pytest.mark.parametrize("base", ["/music", "/music/", "music", "//music//"])
def test_the_base_path_can_be_written_with_and_without_slashes(base: str) -> None:
    assert Paths(base).base == b"/music/"
    assert Paths(base).zone(b"/music") is PathZone.PROTECTED
    assert Paths("").base == Paths("/").base == b"/"


def test_shares_are_public_even_if_the_settings_do_not_name_them() -> None:
    paths = Paths(public=("/rest/",))
    assert paths.zone(b"/share/x") is PathZone.SHARE
    assert paths.zone(b"/jellyfin/x") is PathZone.PROTECTED


@pytest.mark.parametrize("prefix", ["/rest", "rest/", "REST"])
def test_a_public_prefix_can_be_written_with_and_without_slashes(prefix: str) -> None:
    paths = Paths(public=(prefix,))
    assert paths.zone(b"/rest") is paths.zone(b"/rest/x") is PathZone.PUBLIC
    assert paths.zone(b"/restx") is PathZone.PUBLIC
    assert paths.zone(b"/res") is PathZone.PROTECTED


def test_the_root_as_public_prefix_makes_every_path_public() -> None:
    paths = Paths("/music", public=("/", "/rest/"))
    for path in (b"/music", b"/music/", b"/music/api/user", b"/music/_shim/"):
        assert paths.zone(path) in (PathZone.PUBLIC, PathZone.SHARE), path


@pytest.mark.parametrize(
    ("target", "below"),
    [
        ("/music/_shim/", b"/"),
        ("/music/_shim", b"/without-slash"),
        ("/music/_shim/api/audit?x=1", b"/api/audit?x=1"),
        ("/music/_SHIM/metrics", b"/metrics"),
        ("/music/_shim?metrics", b"/without-slash"),
        ("/music/_shim/?x", b"/?x"),
    ],
)
def test_the_control_plane_gets_paths_below_its_own_root(target: str, below: bytes) -> None:
    paths = Paths("/music")
    line = parse_request_line(f"GET {target} HTTP/1.1".encode(), paths)
    assert line.zone in (PathZone.INTERNAL, PathZone.PERSONAL)
    assert paths.control_target(line.target) == below


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_methods_of_navidrome_are_forwarded(method: bytes) -> None:
    assert decided(head(f"{method.decode()} /app/ HTTP/1.1")).outcome.verdict is Verdict.ANONYMOUS


@pytest.mark.parametrize(
    "method", ["CONNECT", "TRACE", "QUERY", "PROPFIND", "PRI", "get", "Post", "GETS"]
)
def test_any_other_method_is_rejected_with_501(method: str) -> None:
    decision = decided(head(f"{method} /app/ HTTP/1.1", ADA))
    assert decision.outcome.reason is Reason.METHOD_NOT_IMPLEMENTED
    assert decision.outcome.status == 501


@pytest.mark.parametrize(
    "line",
    [
        "",
        "GET",
        "GET /",
        "GET / ",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        " GET / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET\t/ HTTP/1.1",
        "GET /\tHTTP/1.1",
        "GET / HTTP/1.1\r",
        "GET / x HTTP/1.1",
        "GET / HTTP/0.9",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / HTTP/1.10",
        "GET / HTTP/01.1",
        "GET / http/1.1",
        "GET / RTSP/1.0",
        "GET / ICE/1.0",
        "PRI * HTTP/2.0",
        "G(T / HTTP/1.1",
        "GET\x00 / HTTP/1.1",
        "G\u00cbT / HTTP/1.1",
    ],
)
def test_a_request_line_is_three_words_with_http_version_1(line: str) -> None:
    assert decided(head(line, ADA)).outcome.reason is Reason.MALFORMED_HEAD


@pytest.mark.parametrize(
    ("target", "host", "passes"),
    [
        ("http://music.example.com/app/?x", "music.example.com", True),
        ("HTTPS://Music.Example.com/app/", "mUSIC.example.com", True),
        ("http://music.example.com:8080/app/", "music.example.com:8080", True),
        ("http://music.example.com", "music.example.com", True),
        ("http://music.example.com/app/", "other.example.com", False),
        ("http://music.example.com:81/app/", "music.example.com", False),
        ("http://music.example.com./app/", "music.example.com", False),
    ],
)
def test_an_absolute_target_must_name_the_same_host_as_host(
    target: str, host: str, passes: bool
) -> None:
    decision = decided(head(f"GET {target} HTTP/1.1", host=host))
    if passes:
        assert decision.outcome.verdict is Verdict.ANONYMOUS
        assert decision.render_head().startswith(b"GET /")
    else:
        assert decision.outcome.reason is Reason.AMBIGUOUS_TARGET


def test_an_absolute_target_is_classified_by_its_path() -> None:
    line = f"GET http://{'music.example.com'}/REST/getUsers HTTP/1.1"
    decision = decided(head(line, ADA))
    assert decision.outcome.reason is Reason.PUBLIC_PATH


@pytest.mark.parametrize(
    ("path", "closed"),
    [
        ("/auth/createAdmin", True),
        ("/auth/CREATEadmin/", True),
        ("/auth/createAdmins", False),
        ("/music/auth/createAdmin", True),
        ("/auth/login", False),
    ],
)
def test_the_call_that_creates_the_first_admin_is_detected(path: str, closed: bool) -> None:
    assert Paths().creates_admin(path.encode()) is closed
    assert Paths("/music").creates_admin(b"/music" + path.encode()) is closed


_PIECES = """GET HEAD get / // /. .. rest %2e %41 %C3%A9 ? a; \\ # : @ " ~ HTTP/1.1 HTTP/1.0 HTTP/1. http://a"""
_SPACES = (" ", "  ", "\t", "\r", "\n", "\x7f", "\u00e9")


@given(
    st.lists(st.sampled_from((*_PIECES.split(), *_SPACES)), max_size=8).map("".join), st.booleans()
)
def test_the_fast_path_for_common_lines_equals_the_full_parser(text: str, framed: bool) -> None:
    line = (f"GET /{text} HTTP/1.1" if framed else text).encode()

    def outcome(read: Callable[[bytes, Paths], RequestLine]) -> RequestLine | Reason:
        try:
            return read(line, Paths())
        except RequestRejected as rejection:
            return rejection.reason

    assert outcome(parse_request_line) == outcome(_parse_uncommon)


@given(
    st.lists(
        st.sampled_from(["/", "/", "a", "api", ".", "..", "?", "%2e", "~", "x", ";", "//"]),
        max_size=9,
    ),
    st.sampled_from(["GET", "POST", "OPTIONS"]),
    st.sampled_from(["1.1", "1.0"]),
)
def test_a_common_request_line_gives_the_result_of_the_single_steps(
    parts: list[str], method: str, version: str
) -> None:
    line = f"{method} /{''.join(parts)} HTTP/{version}".encode()
    if COMMON_LINE.fullmatch(line):
        assert _outcome(parse_request_line, line) == _outcome(_parse_uncommon, line)


def _outcome(
    read: Callable[[bytes, Paths], RequestLine], line: bytes
) -> RequestLine | tuple[Reason, str]:
    try:
        return read(line, Paths())
    except RequestRejected as rejection:
        return rejection.reason, rejection.detail


_RAW = st.text("abAZ09-_.!$&'()*+,=:@~/", max_size=4).map(str.encode)
_ESCAPED = st.integers(0, 255).map(lambda byte: b"%%%02x" % byte)


@given(st.lists(_RAW | _ESCAPED | _ESCAPED.map(bytes.upper)).map(b"".join))
def test_escapes_are_decoded_like_the_standard_library(text: bytes) -> None:
    assert unquote_path(text) == unquote_to_bytes(text)


def test_raw_bytes_of_a_query_are_forwarded_percent_encoded() -> None:
    line = parse_request_line("GET /rest/search3?query=Björk&a=b%20c\\ HTTP/1.1".encode(), Paths())
    assert line.target == b"/rest/search3?query=Bj%C3%B6rk&a=b%20c\\"
    assert line.path == b"/rest/search3"


@given(
    st.binary(max_size=300).map(lambda data: data.translate(None, bytes(range(0x21)) + b"#\x7f"))
)
def test_every_query_of_visible_and_high_bytes_is_encoded_the_same(query: bytes) -> None:
    line = parse_request_line(b"GET /x?" + query + b" HTTP/1.1", Paths())
    assert line.target == b"/x?" + b"".join(
        b"%%%02X" % byte if byte >= 0x80 else bytes([byte]) for byte in query
    )


@pytest.mark.parametrize(
    "line", ["GET /Björk HTTP/1.1", "GET /Björk?a HTTP/1.1", "GET /?ö# HTTP/1.1"]
)
def test_raw_bytes_elsewhere_are_rejected(line: str) -> None:
    with pytest.raises(RequestRejected):
        parse_request_line(line.encode(), Paths())


@pytest.mark.parametrize(
    ("target", "host", "accepted"),
    [
        ("http://a/x", "a", True),
        ("http://a:80/x", "a", True),
        ("http://a/x", "a:80", True),
        ("http://A:/x", "a:", True),
        ("https://a:443/x", "a", True),
        ("https://a:80/x", "a", False),
        ("http://a:443/x", "a", False),
        ("http://a:8080/x", "a", False),
        ("http://a:8080/x", "a:8080", True),
        ("http://[::1]:80/x", "[::1]", True),
        ("http://a/x", "b", False),
    ],
)
def test_an_absolute_form_matches_host_with_and_without_the_default_port(
    target: str, host: str, accepted: bool
) -> None:
    decision = decided(head(f"GET {target} HTTP/1.1", host=host))
    assert (decision.outcome.reason is not Reason.AMBIGUOUS_TARGET) is accepted
