"""Navidrome's own tokens in Jellyfin's API and in forms, and the removal of void ones."""

from __future__ import annotations

import json
import re
from urllib.parse import parse_qsl, quote, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.trust.decision import Decision, decide
from shim.trust.navidrome_tokens import MAX_TOKENS, NavidromeClaims, filter_form, read_claims
from shim.trust.reasons import Reason, Verdict
from tests.support.decisions import ADA, EDGE, POLICY, UNTRUSTED, head
from tests.support.jwt_minting import encoded
from tests.unit.trust.test_navidrome_tokens import ID, MINE, ND, OLD, of

JELLYFIN = "GET /jellyfin/items HTTP/1.1"


def is_adas(claims: NavidromeClaims) -> bool:
    return claims.username == "ada"


def checked(line: str, *fields: str | bytes) -> Decision:
    """Decide a request without an identity, where ada's tokens are valid and all others void."""
    return decide(head(line, *fields), UNTRUSTED, POLICY).without_void_tokens(is_adas)


PLACES = [
    (JELLYFIN, 'Authorization: MediaBrowser Client="x", Token="{}", Version="1"'),
    (JELLYFIN, 'authorization: emby Token="{}"'),
    (JELLYFIN, 'Authorization: MediaBrow\u017fer Token="{}"'),
    (JELLYFIN, 'X-Emby-Authorization: Emby UserId="", Token="{}"'),
    (JELLYFIN, 'x-emby-authorization: MediaBrowser Device="a"Token="{}"'),
    (JELLYFIN, 'X-Emby-Authorization: MediaBrowser Device="Token="Token="{}"'),
    (JELLYFIN, "X-Emby-Token: {}"),
    (JELLYFIN, "x-mediabrowser-token: {}"),
    ("GET /jellyfin/items?api_key={} HTTP/1.1", "A: b"),
    ("GET /jellyfin/items?ApiKey={} HTTP/1.1", "A: b"),
    ("GET /jellyfin/items?a=b&API%5FKEY={} HTTP/1.1", "A: b"),
    ("GET /jellyfin/items?api%E2%84%AAey={} HTTP/1.1", "A: b"),
    ("GET /jellyfin/items?%61p%C4%B0key={} HTTP/1.1", "A: b"),
    ("GET /music/jellyfin/items?apikey={} HTTP/1.1", "A: b"),
    ("GET /rest/ping?jwt={} HTTP/1.1", "A: b"),
    ("GET /rest/ping HTTP/1.1", "Cookie: jwt={}"),
    ("GET /share/x HTTP/1.1", "X-ND-Authorization: Bearer {}"),
]


@pytest.mark.parametrize(("line", "field"), PLACES)
def test_void_tokens_are_removed_in_every_location_and_valid_ones_are_forwarded(
    line: str, field: str
) -> None:
    for encode in (str, lambda text: text.replace(".", "%2E")):
        valid = encode(MINE) if "{}" in line or "uthorization: " in field else MINE
        if field.startswith("X-ND"):
            valid = MINE
        decision = checked(line.format(valid), field.format(valid))
        assert decision.has_navidrome_tokens and not decision.void
        assert decision.claims == (NavidromeClaims("ada", ID, 1_700_000_000.0),)
        assert valid.encode() in decision.render_head()
    for void in (OLD, "junk", of("ada", iat=None), of("ada", iat=True), of("ada", iat="1"), of("")):
        decision = checked(line.format(void), field.format(void))
        assert void.encode() not in decision.render_head()
        assert decision.void and not decision.has_navidrome_tokens and not decision.claims
        assert decision.outcome.verdict is Verdict.STRIPPED
        assert decision.outcome.reason is Reason.NAVIDROME_TOKEN_VOID
        (note,) = decision.notes
        assert "navidrome_token_void" in note and "eyJ" not in note


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("GET /rest/ping?apiKey=abc&api_key=x HTTP/1.1", "A: b"),
        (JELLYFIN, "Authorization: Basic abc"),
        (JELLYFIN, 'X-Emby-Authorization: MediaBrowser Client="x", Device="y"'),
        (JELLYFIN, "X-Emby-Token: "),
        ("GET /jellyfin/x?apikeys=1&xapi_key=2&api__key=3&key=4 HTTP/1.1", "A: b"),
    ],
)
def test_a_request_without_a_token_is_unchanged(line: str, field: str) -> None:
    decision = checked(line, field)
    assert decision.outcome.reason is Reason.NO_IDENTITY
    assert decision.render_head() == decide(head(line, field), UNTRUSTED, POLICY).render_head()


def test_a_value_of_such_a_header_that_is_not_a_token_is_unchanged() -> None:
    field = f'X-Emby-Authorization: MediaBrowser Client="x", XToken="{OLD}", Token="{OLD}", V="1"'
    rendered = checked(JELLYFIN, field).render_head().decode()
    assert f'MediaBrowser Client="x", XToken="{OLD}", Token="", V="1"' in rendered
    assert checked(JELLYFIN, 'X-Emby-Authorization: M XToken="a"').void == ()


def test_removing_a_void_token_does_not_change_the_verdict() -> None:
    decision = decide(head("GET /api/x HTTP/1.1", ADA, ND + OLD), EDGE, POLICY)
    stripped = decision.without_void_tokens(is_adas)
    assert stripped.outcome is decision.outcome
    assert stripped.void == ("X-ND-Authorization",)
    assert b"\r\nRemote-User: ada\r\n" in stripped.render_head()


def test_a_request_with_too_many_tokens_loses_all_of_them() -> None:
    few, many = f"jwt={MINE}&" * MAX_TOKENS, f"jwt={MINE}&" * (MAX_TOKENS + 1)
    assert len(checked(f"GET /x?{few} HTTP/1.1").claims) == MAX_TOKENS
    assert b"eyJ" not in checked(f"GET /x?{many} HTTP/1.1").render_head()
    assert b"eyJ" not in checked(f"GET /x?{few} HTTP/1.1", ND + MINE).render_head()
    cookie = f"Cookie: {'jwt=a;' * (MAX_TOKENS + 1)} jwt={MINE}"
    assert b"ookie" not in checked("GET /x HTTP/1.1", cookie).render_head()
    emby = "X-Emby-Authorization: Emby " + 'a="b",' * 200 + f'Token="{MINE}"'
    assert b"Emby" not in checked("GET /x HTTP/1.1", emby).render_head()


@pytest.mark.parametrize(
    ("target", "fields", "location"),
    [
        (f"/x?{'&apikex' * 600}&apikey={MINE}", [], "query jwt"),
        (f"/x?{'&%' * 600}&jwt={MINE}", [], "query jwt"),
        (f"/rest/x?{'&j' * 600}&jwt={MINE}", [], "query jwt"),
        ("/x", [f"Cookie: {'jwtx;' * 40}jwt={MINE}"], "cookie jwt"),
        ("/x", [f"Cookie: jwt={MINE}"] * 17, "cookie jwt"),
        ("/x", [f'Authorization: Emby {"a=" * 9000}Token="{MINE}"'], "Authorization"),
        (
            "/x",
            [f'X-Emby-Authorization: Emby a="{number}",Token="{MINE}"' for number in range(17)],
            "X-Emby-Authorization",
        ),
    ],
)
def test_a_request_with_too_many_token_locations_loses_its_tokens(
    target: str, fields: list[str], location: str
) -> None:
    decision = checked(f"GET {target} HTTP/1.1", *fields)
    assert decision.void == (location,)
    assert b"eyJ" not in decision.render_head()


def test_a_form_with_too_many_token_locations_loses_all_of_its_fields() -> None:
    body = b"a=1" + b"&j" * 600 + b"&jwt=" + MINE.encode()
    assert filter_form(body, is_adas) == (b"", True, ())


def test_other_parameters_do_not_count_as_token_locations() -> None:
    songs = "&".join(f"songId={number:032d}" for number in range(1500))
    decision = checked(f"GET /rest/createPlaylist?{songs}&jwt={MINE} HTTP/1.1")
    assert not decision.void
    assert len(decision.claims) == 1


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "ada", "uid": ID},
        {"sub": "ada", "uid": ID, "iat": 10**400},
        {"sub": "ada", "uid": "", "iat": 1},
        {"sub": "ada", "iat": 1},
        {"uid": ID, "iat": 1},
        {"sub": ["ada"], "uid": ID, "iat": 1},
        [],
    ],
)
def test_a_token_without_its_claims_is_void(claims: object) -> None:
    text = f"e30.{encoded(json.dumps(claims).encode())}.e30"
    assert read_claims(text.encode()) is None


def test_a_token_with_invalid_times_is_void() -> None:
    for number in ("1e999", "-1e999", "NaN", "Infinity"):
        payload = encoded(f'{{"sub":"ada","uid":"{ID}","iat":{number}}}'.encode())
        assert read_claims(f"e30.{payload}.e30".encode()) is None
    assert read_claims(b"e30." + encoded(b"[" * 6000).encode() + b".e30") is None
    assert read_claims(MINE.encode() + b"." + b"a" * 8192) is None


# as Navidrome reads them


_FIELD = re.compile(r'(\w+)="([^"]*)"', re.ASCII)
_ESCAPES = re.compile(rb"(?:[^%]|%[0-9A-Fa-f]{2})*")


def _path_unescape(value: str) -> str:
    raw = value.encode()
    return unquote_to_bytes(raw).decode("latin-1") if _ESCAPES.fullmatch(raw) else value


_FRAGMENTS = st.sampled_from(
    ["Token", "Token=", '"', '="', '"x"', " ", ",", "=", "x", "%", "%2E", MINE, OLD, 'a="', "_"]
)


@given(st.lists(_FRAGMENTS, max_size=12).map("".join), st.booleans())
def test_no_authorization_passes_a_void_token_to_jellyfin(value: str, deprecated: bool) -> None:
    name = "X-Emby-Authorization" if deprecated else "Authorization"
    rendered = checked(JELLYFIN, f"{name}: MediaBrowser {value}").render_head().decode()
    for line in rendered.split("\r\n"):
        if not line.startswith(name):
            continue
        for key, text in _FIELD.findall(line.partition(" ")[2].partition(" ")[2]):
            if key == "Token":
                assert _path_unescape(text) in ("", MINE)


_KEYS = ["api", "_", "Key", "key", "%4b", "%E2%84%AA", "ey", "%59", "ap", "%C4%B0", "jwt", "%6A"]
_PIECES = st.sampled_from([*_KEYS, "=", "&", ";", "%", "+", "x", MINE, OLD, quote(OLD, safe="")])


def _lower(text: str) -> str:
    return text.replace("\u212a", "k").replace("\u0130", "i").lower()


def _read_by_go(query: str, keys: set[str]) -> list[str]:
    parts = (part for part in query.split("&") if ";" not in part)
    pairs = [p for part in parts for p in parse_qsl(part, keep_blank_values=True, separator="&")]
    return [value for key, value in pairs if _lower(key) in keys]


@given(st.lists(_PIECES, max_size=12).map("".join))
def test_no_query_passes_a_void_token_to_jellyfin(query: str) -> None:
    decision = checked(f"GET /jellyfin/items?{query} HTTP/1.1")
    if decision.outcome.verdict is not Verdict.REJECTED:
        rest = decision.render_head().split(b" ")[1].decode().partition("?")[2]
        assert all(v in ("", MINE) for v in _read_by_go(rest, {"api_key", "apikey"}))


@given(st.lists(_PIECES, max_size=12).map("".join))
def test_no_form_passes_a_void_token_to_navidrome(form: str) -> None:
    body, removed, claims = filter_form(form.encode(), is_adas)
    read = [
        value
        for part in body.decode().split("&")
        if ";" not in part
        for key, value in parse_qsl(part, keep_blank_values=True, separator="&")
        if key == "jwt"
    ]
    assert all(value == MINE for value in read)
    assert removed or body == form.encode()
    assert len(claims) >= len(read)


@pytest.mark.parametrize(
    ("method", "target", "content_type", "is_form"),
    [
        ("POST", "/rest/ping", "application/x-www-form-urlencoded", True),
        ("PUT", "/rest/ping", "Application/X-WWW-Form-Urlencoded; charset=utf-8", True),
        ("PATCH", "/music/rest/ping", "appl\u0130cation/x-www-form-urlencoded", True),
        ("POST", "/rest/ping", "application/json", False),
        ("DELETE", "/rest/ping", "application/x-www-form-urlencoded", False),
        ("POST", "/api/x", "application/x-www-form-urlencoded", False),
    ],
)
def test_bodies_that_can_contain_tokens_are_buffered(
    method: str, target: str, content_type: str, is_form: bool
) -> None:
    fields = ("Content-Length: 4", f"Content-Type: {content_type}")
    decision = decide(head(f"{method} {target} HTTP/1.1", *fields), UNTRUSTED, POLICY)
    assert decision.form is is_form
    if is_form:
        read = decision.with_form(7, (), void=True)
        assert not read.form and read.void == ("form jwt",)
        assert b"\r\nContent-Length: 7\r\n" in read.render_head()
        assert b"Content-Length: 4" not in read.render_head()
        assert read.outcome.reason is Reason.NAVIDROME_TOKEN_VOID
    bare = decide(head(f"{method} {target} HTTP/1.1", fields[1]), UNTRUSTED, POLICY)
    assert not bare.form


@pytest.mark.parametrize(
    ("method", "target", "length", "status"),
    [
        ("PUT", "/api/user/1", 65536, 200),
        ("PUT", "/api/user/1", 65537, 413),
        ("POST", "/music/API/users", 65537, 413),
        ("POST", "/api/playlist", 65537, 200),
        ("GET", "/api/user", 65537, 200),
    ],
)
def test_bodies_for_the_user_api_are_limited(
    method: str, target: str, length: int, status: int
) -> None:
    line = f"{method} {target} HTTP/1.1"
    decision = decide(head(line, f"Content-Length: {length}"), UNTRUSTED, POLICY)
    assert decision.outcome.status == status
