"""Navidrome's own tokens: found in every encoding that Navidrome accepts, and bound to one account."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qsl, quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.trust.decision import Decision, decide
from shim.trust.reasons import Reason, Verdict
from tests.support.decisions import ADA, EDGE, POLICY, UNTRUSTED, head
from tests.support.jwt_minting import SECRET, encoded, token

ID = "0a1b2c"


def of(sub: object = "ada", uid: object = ID, **more: object) -> str:
    """A token as Navidrome issues it."""
    claims = {"iss": "ND", "sub": sub, "uid": uid, "adm": False, "iat": 1_700_000_000, **more}
    return token(claims, key=SECRET, algorithm="HS256", kid=None)


MINE, OLD = of(), of("bob", "b0b")


def decide_on(line: str, *fields: str | bytes, identity: bool = True) -> Decision:
    all_fields = (ADA, *fields) if identity else fields
    return decide(head(line, *all_fields), EDGE, POLICY)


def bound(line: str, *fields: str | bytes, name: str = "ada", uid: str | None = ID) -> Decision:
    decision = decide_on(line, *fields)
    assert decision.outcome.verdict is Verdict.AUTHENTICATED
    assert decision.has_navidrome_tokens
    return decision.with_tokens_bound_to(name.encode(), uid)


def forwarded(line: str, *fields: str | bytes, uid: str | None = ID) -> bool:
    """Return whether the tokens were forwarded; in either case the user header is sent once."""
    decision = bound(line, *fields, uid=uid)
    assert decision.render_head().count(b"\r\nRemote-User: ada\r\n") == 1
    if decision.removed_tokens:
        assert OLD.encode() not in decision.render_head()
        return False
    assert decision.render_head() == decide_on(line, *fields).render_head()
    return True


APP = "GET /api/song HTTP/1.1"
ND = "X-ND-Authorization: Bearer "


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (APP, [ND + MINE]),
        (APP, [f"x-nd-authorization: bEaReR {MINE}"]),
        (APP, [f"X-ND-Authorization: bearerx{MINE}"]),
        (APP, [f"Cookie: jwt={MINE}"]),
        (APP, [f'Cookie: a=1; jwt="{MINE}"; b=2']),
        (APP, [f"Cookie: jwt={MINE}", f"Cookie: jwt={MINE}"]),
        (f"GET /api/events?jwt={MINE} HTTP/1.1", []),
        (f"GET /api/events?a=1&%6Awt={MINE}&b=2 HTTP/1.1", []),
        (f"GET /api/events?jwt={quote(MINE, safe='').replace('.', '%2E')} HTTP/1.1", []),
        (f"GET /api/events?jwt={MINE} HTTP/1.1", [ND + MINE, f"Cookie: jwt={MINE}"]),
    ],
)
def test_the_accounts_own_token_is_forwarded_in_every_location(
    line: str, fields: list[str]
) -> None:
    assert forwarded(line, *fields)


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (APP, [ND + OLD]),
        (APP, [f"X-Nd-Authorization: BEARER\t{OLD}"]),
        (APP, [f"X-ND-Authorization: bEaReRx{OLD}"]),
        (APP, [f"X-ND-Authorization: {OLD}"]),
        (APP, [f"X-ND-Authorization: Bearer  {MINE}"]),
        (APP, [ND + MINE, ND + OLD]),
        (APP, [ND + OLD, ND + MINE]),
        (APP, [f"Cookie: jwt={OLD}"]),
        (APP, [f'Cookie: jwt="{OLD}"']),
        (APP, [f"Cookie:a=b;jwt={OLD};c=d"]),
        (APP, [f"Cookie: a=b ;\t jwt \t= {OLD}"]),
        (APP, [f"Cookie: jwt={MINE}; jwt={OLD}"]),
        (APP, [f"Cookie: jwt={MINE}", f"Cookie: x=y; jwt={OLD}"]),
        (f"GET /api/events?jwt={OLD} HTTP/1.1", []),
        (f"GET /api/events?a=b&jwt={OLD}&c=d HTTP/1.1", []),
        (f"GET /api/events?%6Awt={OLD} HTTP/1.1", []),
        (f"GET /api/events?%6a%77%74={OLD} HTTP/1.1", []),
        (f"GET /api/events?j%77t={OLD} HTTP/1.1", []),
        (f"GET /api/events?jwt={MINE}&jwt={OLD} HTTP/1.1", []),
        (f"GET /api/events?jwt={OLD}&jwt={MINE} HTTP/1.1", []),
        (f"GET /api/events?a=1;jwt={OLD} HTTP/1.1", []),
        (f"GET /api/events?jwt={OLD};a=1 HTTP/1.1", []),
        (f"GET /api/events?jwt={MINE}%zz HTTP/1.1", []),
        (f"GET /api/events?jwt={MINE}+ HTTP/1.1", []),
        (f"GET /api/events?jwt={MINE} HTTP/1.1", [ND + OLD]),
        (f"GET /api/events?jwt={OLD} HTTP/1.1", [ND + MINE]),
        (f"GET /api/events?jwt={MINE} HTTP/1.1", [ND + MINE, f"Cookie: jwt={OLD}"]),
        ("GET /api/events?jwt HTTP/1.1", []),
        ("GET /api/events?jwt= HTTP/1.1", []),
        (APP, ["Cookie: jwt"]),
        (APP, ["X-ND-Authorization: "]),
    ],
)
def test_a_token_of_another_account_is_removed(line: str, fields: list[str]) -> None:
    assert not forwarded(line, *fields)


@pytest.mark.parametrize(
    "text",
    [
        of("Ada"),
        of("ada "),
        of("ada", "0A1B2C"),
        of("ada", None),
        of("ada", 5),
        of(None),
        of(["ada"]),
        of(""),
        MINE + "=",
        MINE + ".x",
        MINE.rpartition(".")[0],
        f"{MINE.partition('.')[0]}..x",
        f"eyJ.{encoded(b'[]')}.eyJ",
        "eyJhIjoxfQ." + encoded(b'{"sub":"bob","sub":"ada","uid":"0a1b2c"}') + ".eyJ",
        "eyJ" + '{"payload":"x"}',
        "eyJé",
    ],
)
def test_a_token_that_does_not_match_the_account_exactly_is_removed(text: str) -> None:
    for line, fields in (
        (APP, [ND + text]),
        (APP, [f"Cookie: jwt={text}"]),
        (f"GET /api/x?jwt={quote(text)} HTTP/1.1", []),
    ):
        assert not forwarded(line, *fields)
        assert b"eyJ" not in bound(line, *fields).render_head()


def test_without_a_known_account_id_no_token_is_forwarded() -> None:
    assert not forwarded(APP, ND + MINE, uid=None)
    assert not forwarded(APP, ND + of("ada", None), uid=None)


def test_a_token_is_compared_with_the_account_name_and_not_the_identitys() -> None:
    assert bound(APP, ND + of("Ada L."), name="Ada L.").removed_tokens == ()
    assert bound(APP, ND + MINE, name="Ada L.").removed_tokens == ("X-ND-Authorization",)


def test_the_data_beside_a_token_is_unchanged() -> None:
    decision = bound(
        f"GET /api/events?a=%20b&jwt={OLD}&&c=;d HTTP/1.1",
        'Cookie: theme=dark; a="b"',
        f"Cookie: session=x; jwt={OLD};  other=y",
        ND + OLD,
        "Accept: */*",
    )
    rendered = decision.render_head()
    assert rendered.startswith(b"GET /api/events?a=%20b&&c=;d HTTP/1.1\r\n")
    assert b'\r\nCookie: theme=dark; a="b"\r\n' in rendered
    assert b"\r\nCookie: session=x;  other=y\r\n" in rendered
    assert b"\r\nAccept: */*\r\n" in rendered
    assert decision.removed_tokens == ("cookie jwt", "X-ND-Authorization", "query jwt") or set(
        decision.removed_tokens
    ) == {"cookie jwt", "X-ND-Authorization", "query jwt"}
    bare = bound(f"GET /api/events?jwt={OLD} HTTP/1.1", f"Cookie: jwt={OLD}").render_head()
    assert bare.startswith(b"GET /api/events HTTP/1.1\r\n")
    assert b"ookie" not in bare


def test_only_the_header_that_navidrome_reads_is_treated_as_a_token() -> None:
    line = ND + OLD
    decision = bound(APP, f"X-Note: {line}", f"X-{line}", line, f"Z-{line}")
    rendered = decision.render_head()
    assert f"\r\n{line}\r\n".encode() not in rendered
    for other in (f"X-Note: {line}", f"X-{line}", f"Z-{line}"):
        assert f"\r\n{other}\r\n".encode() in rendered


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("GET /api/x?njwt=1 HTTP/1.1", []),
        ("GET /api/x?jwts=1&q=jwt&JWT=x HTTP/1.1", []),
        ("GET /api/x?q=%6Awt HTTP/1.1", []),
        ("GET /api/jwt HTTP/1.1", []),
        ("GET /api/x?url=/a?jwt=b HTTP/1.1", []),
        (APP, ["Cookie: njwt=x; jwts=y; a=jwt; JWT=z"]),
        (APP, ["X-Authorization: Bearer x", "Authorization: Bearer y"]),
    ],
)
def test_a_value_that_navidrome_does_not_read_as_a_token_is_unchanged(
    line: str, fields: list[str]
) -> None:
    decision = decide_on(line, *fields)
    assert not decision.has_navidrome_tokens


def test_a_token_listed_in_connection_is_already_removed() -> None:
    decision = decide_on(
        APP, ND + OLD, "Connection: X-ND-Authorization, cookie", f"Cookie: jwt={OLD}"
    )
    assert not decision.has_navidrome_tokens
    assert b"eyJ" not in decision.render_head()


@pytest.mark.parametrize("line", ["GET /rest/ping?jwt={} HTTP/1.1", "GET /share/x?jwt={} HTTP/1.1"])
def test_tokens_on_public_paths_are_unchanged_where_no_account_is_known(line: str) -> None:
    fields = (ND + OLD, f"Cookie: jwt={OLD}")
    decision = decide(head(line.format(OLD), *fields), EDGE, POLICY)
    assert decision.has_navidrome_tokens
    assert decision.render_head().count(OLD.encode()) == 3
    assert decision.notes == ()


def test_a_token_on_a_protected_path_without_an_identity_is_forwarded_and_logged() -> None:
    for peer in (EDGE, UNTRUSTED):
        decision = decide(head(f"GET /api/x?jwt={OLD} HTTP/1.1", ND + OLD), peer, POLICY)
        assert decision.outcome.reason is Reason.NO_IDENTITY
        assert decision.has_navidrome_tokens
        assert decision.token_locations == ("X-ND-Authorization", "query jwt")
        assert decision.render_head().count(OLD.encode()) == 2
        (note,) = decision.notes
        assert "Navidrome token" in note and "eyJ" not in note


def test_explain_shows_the_removal_of_another_accounts_token() -> None:
    rendered = decide_on(f"GET /api/x?jwt={OLD} HTTP/1.1", ND + OLD).explain()
    assert "eyJ" not in str(rendered)
    assert "X-ND-Authorization" in str(rendered["removed_headers"])
    assert "token_mismatch" in str(rendered["notes"])


def test_binding_tokens_twice_gives_the_same_result() -> None:
    once = bound(APP, ND + OLD)
    assert once.with_tokens_bound_to(b"ada", ID) is once
    same = bound(APP, ND + MINE)
    assert same.with_tokens_bound_to(b"ada", ID) is same
    assert same.with_tokens_bound_to(b"ada", "another").removed_tokens


def _as_go_reads(query: str) -> list[str]:
    """Like url.ParseQuery: a part with a semicolon or an invalid escape is skipped."""
    found = []
    for part in query.split("&"):
        if ";" in part:
            continue
        for key, value in parse_qsl(part, keep_blank_values=True, separator="&"):
            if key == "jwt":
                found.append(value)
    return found


_PIECES = st.sampled_from(
    ["jwt", "j", "w", "t", "%6A", "%6a", "%77", "%74", "%", "=", "&", ";", "+", "%3D", "%26", "x",
     MINE, OLD, "%2E", "JWT", "?", "/"]
)  # fmt: skip


@given(st.lists(_PIECES, max_size=12).map("".join))
def test_no_query_passes_another_accounts_token_to_navidrome(query: str) -> None:
    decision = decide(head(f"GET /api/x?{query} HTTP/1.1", ADA), EDGE, POLICY)
    if decision.outcome.verdict is Verdict.REJECTED:
        return
    target = decision.with_tokens_bound_to(b"ada", ID).render_head().split(b" ")[1].decode()
    assert all(value == MINE for value in _as_go_reads(target.partition("?")[2]))
    without_id = decision.with_tokens_bound_to(b"ada", None).render_head().split(b" ")[1].decode()
    assert _as_go_reads(without_id.partition("?")[2]) == []


_FRAGMENTS = st.sampled_from(
    ["jwt", "jwt=", '"', ";", " ", "\t", "=", "x", MINE, OLD, "a=b", ",",
     f"jwt={MINE}", f"; jwt={OLD}", f'jwt="{MINE}"']
)  # fmt: skip


@given(st.lists(st.lists(_FRAGMENTS, max_size=8).map("".join), min_size=1, max_size=3))
def test_no_cookie_passes_another_accounts_token_to_navidrome(values: list[str]) -> None:
    decision = decide(head(APP, ADA, *(f"Cookie: {v}" for v in values)), EDGE, POLICY)
    # Navidrome verifies the signature.
    signed_text = MINE.rpartition(".")[0]
    for uid, allowed in ((ID, {signed_text}), (None, set())):
        rendered = decision.with_tokens_bound_to(b"ada", uid).render_head().decode()
        for line in rendered.split("\r\n"):
            name, _, value = line.partition(":")
            if name.lower() != "cookie":
                continue
            for part in value.split(";"):
                key, _, text = part.strip(" \t").partition("=")
                if key.strip(" \t") == "jwt":
                    assert text.strip('"').rpartition(".")[0] in allowed


def test_the_token_flag_is_off_for_most_requests() -> None:
    policy = replace(POLICY, require_identity=True)
    decision = decide(head("GET /api/x?_start=0&q=%20 HTTP/1.1", ADA, "Cookie: a=b"), EDGE, policy)
    assert not decision.has_navidrome_tokens
