"""Verification of the provider's token: valid tokens, and every known forgery."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.trust.jwks import read_key_set, secret_key
from shim.trust.jwt import MAX_HEADER, ClaimNames, Token, TokenRules, verify_token
from shim.trust.reasons import Reason
from shim.trust.rejection import RequestRejected
from tests.support.jwt_minting import (
    AUDIENCE,
    ISSUER,
    NOW,
    SECRET,
    b64,
    claims,
    ec_key,
    ed_key,
    encoded,
    jwk,
    key_set,
    pem,
    rsa_key,
    signature_of,
    token,
)

KEYS = read_key_set(key_set(jwk(rsa_key(), "rsa-0"), jwk(ec_key(), "ec-0"), jwk(ed_key(), "ed-0")))
RULES = TokenRules(
    keys=KEYS, fetched=True, issuer=ISSUER, audiences=frozenset({AUDIENCE, "other"}), leeway=30.0
)
BY_SECRET = replace(RULES, keys=(secret_key(SECRET),), fetched=False)


def verified(text: str, rules: TokenRules = RULES, now: float | None = NOW) -> Token:
    return verify_token(text, rules, now)


def rejection_reason(text: str, rules: TokenRules = RULES, now: float | None = NOW) -> Reason:
    with pytest.raises(RequestRejected) as rejection:
        verify_token(text, rules, now)
    parts = [part for part in text.split(".") if len(part) > 20]
    assert not any(part in rejection.value.detail for part in parts)
    return rejection.value.reason


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [
        (rsa_key(), "RS256", "rsa-0"),
        (rsa_key(), "RS256", None),
        (ec_key(), "ES256", "ec-0"),
        (ed_key(), "EdDSA", "ed-0"),
    ],
    ids=["RS256", "RS256 without a name", "ES256", "EdDSA"],
)
def test_a_token_signed_by_a_key_of_the_set_gives_the_claims(
    key: Any, algorithm: str, kid: str
) -> None:
    found = verified(token(key=key, algorithm=algorithm, kid=kid))
    assert (found.uid, found.username, found.name) == ("5a1c", "ada", "Ada Lovelace")
    assert (found.email, found.groups) == ("ada@example.org", ("family", "admins"))
    assert (found.validity.start, found.validity.end) == (NOW - 40, NOW + 330)


@pytest.mark.parametrize(
    ("path", "nested", "expected"),
    [
        ("realm_access.roles", {"realm_access": {"roles": ["a", "b"]}}, ("a", "b")),
        (
            "resource_access.music.example.org.roles",
            {"resource_access": {"music": {"roles": ["x"]}, "music.example.org": {"roles": ["a"]}}},
            ("a",),
        ),
        ("a.b.c.d", {"a": {"b": {"c": {"d": ["a"]}}}}, ("a",)),
        ("realm_access.roles", {"realm_access": {"roles": []}}, ()),
        # The exact name first, then the longest one in each object.
        ("https://example.org/groups", {"https://example.org/groups": ["a"]}, ("a",)),
        ("realm.roles", {"realm.roles": ["a"], "realm": {"roles": ["x"]}}, ("a",)),
        ("a.b.c", {"a.b": {"c": ["a"]}, "a": {"b": {"c": ["x"]}, "b.c": ["y"]}}, ("a",)),
        # Absent.
        ("realm_access.roles", {}, None),
        ("realm_access.roles", {"realm_access": {}}, None),
        ("realm_access.roles", {"realm_access": None}, None),
        ("realm_access.roles", {"realm_access": {"roles": None}}, None),
        ("realm_access.roles", {"roles": ["x"]}, None),
        ("realm_access.roles", {"realm_access": {"roles.x": ["x"]}}, None),
        ("realm_access.roles.x", {"realm_access.roles": {}}, None),
    ],
)
def test_the_path_of_a_claim(
    path: str, nested: dict[str, Any], expected: tuple[str, ...] | None
) -> None:
    rules = replace(RULES, claims=ClaimNames(groups=path))
    assert verified(token(claims(**nested)), rules).groups == expected


@pytest.mark.parametrize(
    ("nested", "detail"),
    [
        ({"realm_access": ["roles"]}, "realm_access is no object"),
        ({"realm_access": "roles"}, "realm_access is no object"),
        ({"realm_access": {"roles": "admin"}}, "realm_access.roles is not a list of texts"),
        ({"realm_access": {"roles": {"a": 1}}}, "realm_access.roles is not a list of texts"),
        ({"realm_access": {"roles": ["a", 1]}}, "realm_access.roles is not a list of texts"),
        ({"realm_access": {"roles": [["a"]]}}, "realm_access.roles is not a list of texts"),
        ({"realm_access.roles": True}, "realm_access.roles is not a list of texts"),
    ],
)
def test_a_value_of_another_type_at_a_path_is_rejected(nested: dict[str, Any], detail: str) -> None:
    rules = replace(RULES, claims=ClaimNames(groups="realm_access.roles"))
    with pytest.raises(RequestRejected, match=detail) as rejection:
        verified(token(claims(**nested)), rules)
    assert rejection.value.reason is Reason.JWT_INVALID


def test_each_claim_can_be_nested() -> None:
    names = ClaimNames(
        username="user.name", name="user.display", email="user.email", uid="user.ids.permanent"
    )
    user = {"name": "ada", "display": "Ada", "email": "ada@x.org", "ids": {"permanent": "7"}}
    found = verified(token(claims(user=user)), replace(RULES, claims=names))
    assert (found.username, found.name, found.email, found.uid) == ("ada", "Ada", "ada@x.org", "7")
    with pytest.raises(RequestRejected, match=r"user\.name is not text"):
        verified(token(claims(user={"name": ["ada"]})), replace(RULES, claims=names))


def test_a_name_that_stands_twice_in_a_nested_object_is_rejected() -> None:
    entries = json.dumps(claims())[:-1] + ', "realm_access": {"roles": ["a"], "roles": ["admin"]}}'
    assert rejection_reason(token(entries.encode())) is Reason.JWT_INVALID


@pytest.mark.parametrize("kid", [None, "whatever"])
def test_a_token_signed_with_the_configured_secret_is_valid_for_any_kid(kid: str | None) -> None:
    text = token(key=SECRET, algorithm="HS256", kid=kid)
    assert verified(text, BY_SECRET).username == "ada"
    both = replace(RULES, keys=(*BY_SECRET.keys, *KEYS))
    assert verified(text, both).username == "ada"
    assert verified(token(), both).username == "ada"


# Attacks, named after their usual names.


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", ""])
def test_alg_none(name: str) -> None:
    text = f"{encoded({'alg': name, 'typ': 'JWT'})}.{encoded(claims())}."
    assert rejection_reason(text) is Reason.JWT_INVALID
    assert rejection_reason(token(algorithm=name)) is Reason.JWT_INVALID
    assert rejection_reason(text, BY_SECRET) is Reason.JWT_INVALID


def test_a_public_key_used_as_the_secret_of_hs256() -> None:
    for secret in (
        pem(rsa_key()),
        json.dumps(jwk(rsa_key(), "rsa-0")).encode(),
        jwk(rsa_key())["n"].encode(),
        rsa_key().public_key().public_numbers().n.to_bytes(256, "big"),
    ):
        for kid in ("rsa-0", None):
            text = token(key=secret, algorithm="HS256", kid=kid)
            assert rejection_reason(text) is Reason.JWT_INVALID
            assert (
                rejection_reason(text, replace(RULES, keys=(*BY_SECRET.keys, *KEYS)))
                is Reason.JWT_INVALID
            )


@pytest.mark.parametrize(
    "header",
    [
        {"jku": "https://evil.example/jwks"},
        {"x5u": "https://evil.example/cert"},
        {"jwk": jwk(rsa_key(1), "rsa-0")},
        {"x5c": ["AAAA"]},
        {"jku": "https://evil.example/jwks", "kid": "evil"},
        {"jwk": jwk(rsa_key(1), "evil"), "kid": "evil"},
    ],
    ids=" ".join,
)
def test_a_key_inside_the_token_is_not_used(header: dict[str, Any]) -> None:
    expected = Reason.JWT_UNKNOWN_KEY if header.get("kid") == "evil" else Reason.JWT_INVALID
    assert rejection_reason(token(key=rsa_key(1), **header)) is expected
    # The same entries beside a good signature change nothing.
    if "kid" not in header:
        assert verified(token(**header)).username == "ada"


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [
        (rsa_key(), "ES256", "rsa-0"),
        (rsa_key(), "EdDSA", "rsa-0"),
        (rsa_key(), "RS512", "rsa-0"),
        (rsa_key(), "PS256", "rsa-0"),
        (ec_key(), "RS256", "ec-0"),
        (ed_key(), "RS256", "ed-0"),
        (SECRET, "HS512", None),
        (SECRET, "RS256", "rsa-0"),
    ],
)
def test_an_algorithm_that_is_not_the_keys_is_rejected(key: Any, algorithm: str, kid: str) -> None:
    for rules in (RULES, replace(RULES, keys=(*BY_SECRET.keys, *KEYS))):
        assert (
            rejection_reason(token(key=key, algorithm=algorithm, kid=kid), rules)
            is Reason.JWT_INVALID
        )


def test_a_token_of_another_key_with_a_known_kid_is_rejected() -> None:
    assert rejection_reason(token(key=rsa_key(1))) is Reason.JWT_INVALID


def test_a_token_without_a_kid_is_tried_with_a_limited_number_of_keys() -> None:
    entries = [jwk(rsa_key(number), None) for number in range(1, 5)]
    four_keys = replace(RULES, keys=read_key_set(key_set(*entries[:3], jwk(rsa_key(), None))))
    assert verified(token(kid=None), four_keys).username == "ada"
    five_keys = replace(RULES, keys=read_key_set(key_set(*entries, jwk(rsa_key(), None))))
    with pytest.raises(
        RequestRejected, match="5 keys may have signed it, and none of the first 4 did"
    ):
        verify_token(token(kid=None), five_keys, NOW)


@pytest.mark.parametrize("algorithm", ["EdDSA", "Ed25519"])
def test_both_algorithm_names_of_ed25519_are_accepted(algorithm: str) -> None:
    head = b64(json.dumps({"alg": algorithm, "kid": "ed-0"}).encode())
    body = b64(json.dumps(claims()).encode())
    text = f"{head}.{body}.{b64(ed_key().sign(f'{head}.{body}'.encode()))}"
    assert verified(text).username == "ada"
    assert (
        rejection_reason(text, replace(RULES, keys=KEYS[:2], fetched=False)) is Reason.JWT_INVALID
    )


def test_a_token_of_a_key_that_is_not_in_the_set_yet_requests_a_refresh() -> None:
    assert rejection_reason(token(key=rsa_key(1), kid="rsa-1")) is Reason.JWT_UNKNOWN_KEY
    assert (
        rejection_reason(token(key=rsa_key(1), kid=None), replace(RULES, keys=()))
        is Reason.JWT_UNKNOWN_KEY
    )
    # Where no key set is fetched, there is nothing to wait for; nor for a secret.
    assert rejection_reason(token(kid="rsa-1"), BY_SECRET) is Reason.JWT_INVALID
    assert rejection_reason(token(key=SECRET, algorithm="HS256", kid="x")) is Reason.JWT_INVALID


@pytest.mark.parametrize("entry", ["crit", "b64", "zip", "enc"])
def test_a_header_with_a_critical_extension_is_rejected(entry: str) -> None:
    header: dict[str, Any] = {entry: ["exp"]}
    assert rejection_reason(token(**header)) is Reason.JWT_INVALID


@pytest.mark.parametrize("kind", ["logout+jwt", "application/logout+jwt", "secevent+jwt", "JWE", 7])
def test_a_token_of_another_type_is_rejected(kind: Any) -> None:
    assert rejection_reason(token(typ=kind)) is Reason.JWT_INVALID


@pytest.mark.parametrize("kind", [None, "jwt", "JWT", "at+jwt", "application/at+jwt"])
def test_a_token_of_a_type_that_names_a_user_is_accepted(kind: str | None) -> None:
    assert verified(token(typ=kind)).username == "ada"


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://evil.example/"},
        {"iss": ISSUER.rstrip("/")},
        {"iss": None},
        {"iss": [ISSUER]},
        {"aud": "another-client"},
        {"aud": ["another-client"]},
        {"aud": None},
        {"aud": {AUDIENCE: 1}},
        {"aud": [[AUDIENCE]]},
        {"exp": None},
        {"exp": "1900000000"},
        {"exp": True},
        {"exp": -1},
        {"exp": 1e300},
        {"nbf": "soon"},
        {"iat": []},
        {"sub": None},
        {"sub": 5},
        {"preferred_username": ["ada"]},
        {"groups": "admins"},
        {"groups": ["admins", 7]},
        {"groups": {"admins": True}},
        {"email": {}},
    ],
    ids=repr,
)
def test_a_signed_token_for_another_audience_or_without_required_claims_is_rejected(
    changes: dict[str, Any],
) -> None:
    assert rejection_reason(token(claims(**changes))) is Reason.JWT_INVALID


def test_one_matching_audience_of_several_is_enough() -> None:
    assert verified(token(claims(aud=["else", AUDIENCE]))).username == "ada"


@pytest.mark.parametrize(
    ("changes", "now", "reason"),
    [
        ({"exp": NOW - 29}, NOW, None),
        ({"exp": NOW - 30}, NOW, Reason.JWT_EXPIRED),
        ({"exp": 0}, NOW, Reason.JWT_EXPIRED),
        ({"nbf": NOW + 30}, NOW, None),
        ({"nbf": NOW + 31}, NOW, Reason.JWT_NOT_YET_VALID),
        ({"iat": NOW + 31}, NOW, Reason.JWT_NOT_YET_VALID),
        ({"iat": NOW + 31, "nbf": 0}, NOW, Reason.JWT_NOT_YET_VALID),
        ({"iat": None, "nbf": None}, NOW, None),
        ({}, None, Reason.JWT_EXPIRED),
        ({}, float("nan"), Reason.JWT_EXPIRED),
    ],
    ids=repr,
)
def test_clock_skew_is_tolerated_up_to_the_leeway(
    changes: dict[str, Any], now: float | None, reason: Reason | None
) -> None:
    text = token(claims(**changes))
    if reason is None:
        verified(text, now=now)
    else:
        assert rejection_reason(text, now=now) is reason


@pytest.mark.parametrize(
    "changes",
    [{}, {"exp": 1}, {"nbf": NOW + 99}, {"iss": "x"}, {"aud": "x"}, {"sub": None}],
    ids=repr,
)
def test_claims_of_a_forged_token_never_appear_in_the_result(changes: dict[str, Any]) -> None:
    forged = token(claims(**changes), key=rsa_key(1))
    with pytest.raises(RequestRejected, match="the signature does not match the key"):
        verify_token(forged, RULES, NOW)


def test_no_signature_is_verified_without_a_candidate_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from shim.trust.jwks import Key

    def never(*_: object) -> bool:
        raise AssertionError("a signature was verified")

    monkeypatch.setattr(Key, "verify", never)
    for text in (token(kid="unknown"), token(algorithm="none"), "a.b.c", "x" * 20000):
        rejection_reason(text)


@pytest.mark.parametrize("changes", [{"exp": 1}, {"iss": "x"}, {"aud": "x"}], ids=repr)
def test_the_key_set_is_not_refreshed_for_a_token_that_would_be_rejected(
    changes: dict[str, Any],
) -> None:
    assert rejection_reason(token(kid="unknown")) is Reason.JWT_UNKNOWN_KEY
    assert rejection_reason(token(claims(**changes), kid="unknown")) is not Reason.JWT_UNKNOWN_KEY


def test_a_token_header_gives_the_same_result_when_it_is_parsed_again() -> None:
    long: dict[str, Any] = {"x5c": ["A" * 2000]}
    headers: list[dict[str, Any]] = [{}, long, {"crit": ["x"]}, {**long, "crit": ["x"]}]
    for header in headers:
        results = []
        for _ in range(3):
            try:
                verified(token(**header))
                results.append("holds")
            except RequestRejected as rejection:
                results.append(rejection.detail)
        assert results == [results[0]] * 3
        assert (results[0] == "holds") is ("crit" not in header)


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "a.b", "a.b.c.d", "....", " . . ", "é.é.é", "{}", "null.null.null", "=.=.=",
     '{"payload":"","signatures":[]}'],
)  # fmt: skip
def test_a_malformed_token_is_rejected(text: str) -> None:
    assert rejection_reason(text) is Reason.JWT_INVALID


def _signed(head: bytes, body: bytes) -> str:
    text = f"{b64(head)}.{b64(body)}"
    return f"{text}.{b64(signature_of(text.encode(), 'RS256', rsa_key()))}"


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b'{"alg":"none","alg":"RS256"}', None),
        (b'{"alg":"RS256","kid":"rsa-0","kid":"rsa-0"}', None),
        (b'["RS256"]', None),
        (b'{"alg":"RS256"', None),
        (b'\xff{"alg":"RS256"}', None),
        (b'{"alg":"RS256","kid":7}', None),
        (None, b'{"sub":"a","sub":"b"}'),
        (None, b"[]"),
        (None, b"7"),
        (None, b'{"exp":NaN}'),
        (None, b'{"exp":Infinity}'),
        (None, b"[" * 50_00),
        (None, b'{"exp":' + b"9" * 5000 + b"}"),
    ],
)
def test_ambiguous_json_is_rejected(head: bytes | None, body: bytes | None) -> None:
    good_head = b'{"alg":"RS256","kid":"rsa-0"}'
    good_body = json.dumps(claims()).encode()
    assert verified(_signed(good_head, good_body)).username == "ada"
    assert rejection_reason(_signed(head or good_head, body or good_body)) is Reason.JWT_INVALID


def test_a_token_may_be_long_but_not_its_header() -> None:
    groups = [f"{number:0120}" for number in range(152)]
    assert verified(token(claims(groups=groups))).groups == tuple(groups)
    head = json.dumps({"alg": "RS256", "kid": "rsa-0", "x": "x" * MAX_HEADER}).encode()
    assert rejection_reason(_signed(head, json.dumps(claims()).encode())) is Reason.JWT_INVALID


def test_the_claims_of_a_long_token_are_parsed_only_after_its_signature() -> None:
    def reason(**changes: Any) -> Reason | None:
        return rejection_reason(token(claims(exp=NOW - 60, **changes), key=rsa_key(1), kid="new"))

    assert reason() is Reason.JWT_EXPIRED
    assert reason(x="x" * 16384) is Reason.JWT_UNKNOWN_KEY


GOOD = token()


@given(st.integers(0, len(GOOD) - 1), st.characters(codec="utf-8"))
@settings(max_examples=400, deadline=None)
def test_no_changed_character_in_a_token_is_accepted(at: int, other: str) -> None:
    mutated = GOOD[:at] + other + GOOD[at + 1 :]
    if mutated != GOOD:
        rejection_reason(mutated)


@given(st.integers(0, len(GOOD)), st.text(min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_no_inserted_character_in_a_token_is_accepted(at: int, more: str) -> None:
    rejection_reason(GOOD[:at] + more + GOOD[at:])


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_no_removed_character_in_a_token_is_accepted(at: int, count: int) -> None:
    rejection_reason(GOOD[:at] + GOOD[at + count :])


def test_no_other_last_character_is_accepted() -> None:
    # It has two unused bits: four characters decode to the same bytes.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/="
    for text in (GOOD, token(key=ec_key(), algorithm="ES256", kid="ec-0")):
        passed = [c for c in alphabet if _passes(text[:-1] + c)]
        assert passed == [text[-1]]
        assert not _passes(text + "=")
        assert not _passes(text + "==")


def _passes(text: str) -> bool:
    try:
        verify_token(text, RULES, NOW)
    except RequestRejected:
        return False
    return True
