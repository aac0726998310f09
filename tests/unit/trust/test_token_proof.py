"""Provider tokens and secrets in a complete request: what an identity requires, and where."""

from __future__ import annotations

import gc
import random
from dataclasses import replace
from typing import Any

import pytest

from shim.trust.cached_decisions import DecisionCache
from shim.trust.decision import Decision, decide
from shim.trust.fields import Field, FieldNames
from shim.trust.identity import Identity, IdentityRules, Role, UidSource, UsernameFromEmail
from shim.trust.jwks import Key, read_key_set
from shim.trust.jwt import ClaimNames, TokenRules
from shim.trust.policy import AUTHENTIK_HEADERS, Policy, Proof
from shim.trust.reasons import Reason, Verdict
from shim.trust.token_proof import TokenProof
from tests.support.decisions import EDGE, POLICY, UNTRUSTED, cache_for, explained, head
from tests.support.jwt_minting import AUDIENCE, ISSUER, NOW, claims, jwk, key_set, rsa_key, token

RULES = TokenRules(
    keys=read_key_set(key_set(jwk(rsa_key(), "rsa-0"))),
    fetched=True,
    issuer=ISSUER,
    audiences=frozenset({AUDIENCE}),
)
OPTIONAL = replace(POLICY, tokens=RULES)
REQUIRED = replace(POLICY, tokens=replace(RULES, required=True))
BEARER = replace(
    REQUIRED,
    names=FieldNames(
        AUTHENTIK_HEADERS, ("X-authentik-",), "Remote-User", "X-Shim-Proxy-Secret", bearer=True
    ),
)
IDENTITY_FIELDS = [
    "X-authentik-username: ada",
    "X-authentik-name: Ada Lovelace",
    "X-authentik-email: ada@example.org",
    "X-authentik-groups: family|admins",
    "X-authentik-uid: 5a1c",
]
ADA = Identity("ada", "Ada Lovelace", "ada@example.org", ("family", "admins"), "5a1c")


def by_token(text: str = "", **changes: Any) -> str:
    return f"X-authentik-jwt: {text or token(claims(**changes))}"


def decide_on(
    *fields: str,
    policy: Policy = REQUIRED,
    now: float | None = NOW,
    line: str = "GET /app/ HTTP/1.1",
    peer: Any = EDGE,
) -> Decision:
    """The decision, fresh and from a cache that all the tests share."""
    whole = head(line, *fields)
    fresh = decide(whole, peer, policy, b"http", now)
    cache = cache_for(policy)
    context = cache.connection_context(peer, b"http")
    text, _, block = whole[:-2].partition(b"\r\n")
    for _ in range(4):
        from_cache = cache.decide(text, block, context, cache.cached_headers(block, context), now)
        assert explained(from_cache) == explained(fresh)
    return fresh


def reason(*fields: str, **options: Any) -> Reason:
    return decide_on(*fields, **options).outcome.reason


def test_the_claims_become_the_identity() -> None:
    for fields in ([by_token()], [*IDENTITY_FIELDS, by_token()]):
        decision = decide_on(*fields)
        assert decision.outcome.reason is Reason.VERIFIED_JWT
        assert decision.identity == ADA
        assert b"\r\nRemote-User: ada\r\n" in decision.render_head()
        assert b"eyJ" not in decision.render_head()


def test_headers_alone_are_not_verified() -> None:
    decision = decide_on(*IDENTITY_FIELDS, policy=OPTIONAL)
    assert decision.outcome.reason is Reason.TRUSTED_PEER
    assert decision.identity == ADA
    for empty in ([], ["X-authentik-jwt: "], ["X-authentik-jwt:   "]):
        assert reason(*IDENTITY_FIELDS, *empty) is Reason.JWT_MISSING
        assert reason(*IDENTITY_FIELDS, *empty, policy=OPTIONAL) is Reason.TRUSTED_PEER


def test_a_token_must_be_valid_even_where_none_is_required() -> None:
    forged = by_token(token(key=rsa_key(1)))
    for policy in (OPTIONAL, REQUIRED):
        assert reason(*IDENTITY_FIELDS, forged, policy=policy) is Reason.JWT_INVALID
        assert reason(*IDENTITY_FIELDS, by_token("x"), policy=policy) is Reason.JWT_INVALID
        assert reason(forged, policy=policy) is Reason.JWT_INVALID


def test_a_token_is_ignored_where_verification_is_off() -> None:
    decision = decide_on(*IDENTITY_FIELDS, by_token("x"), policy=POLICY)
    assert decision.outcome.reason is Reason.TRUSTED_PEER
    assert decision.identity == ADA


@pytest.mark.parametrize(
    ("header", "changes"),
    [
        ("X-authentik-username: bob", {}),
        ("X-authentik-username: Ada", {}),
        ("X-authentik-uid: 5a1d", {}),
        ("X-authentik-groups: admins", {"groups": []}),
        ("X-authentik-groups: family|admins|root", {}),
        ("X-authentik-groups: ", {}),
    ],
)
def test_a_header_that_contradicts_the_token_is_rejected(
    header: str, changes: dict[str, Any]
) -> None:
    decision = decide_on(header, by_token(**changes))
    assert decision.outcome.reason is Reason.JWT_CLAIM_MISMATCH
    assert "eyJ" not in decision.detail


def test_a_claim_mismatch_reports_both_values() -> None:
    decision = decide_on("X-authentik-username: bob", by_token())
    assert "'bob'" in decision.detail and "'ada'" in decision.detail


@pytest.mark.parametrize(
    "header",
    [
        "X-authentik-groups: admins|family",
        "X-authentik-groups: family | admins",
        "X-authentik-groups: family||admins|",
    ],
)
def test_groups_in_another_order_are_equal(header: str) -> None:
    assert reason(header, by_token()) is Reason.VERIFIED_JWT


def test_a_group_with_the_separator_in_its_name_is_one_group() -> None:
    decision = decide_on("X-authentik-groups: a|b|c", by_token(groups=["a|b", "c"]))
    assert decision.identity is not None
    assert decision.identity.groups == ("a|b", "c")
    admin = replace(REQUIRED, admin_groups=frozenset({"a"}))
    fields = ("X-authentik-groups: a|b|c", by_token(groups=["a|b", "c"]))
    assert reason(*fields, policy=admin, line="GET /_shim/admin/ HTTP/1.1") is Reason.NOT_FOUND


def test_a_header_cannot_add_a_claim_that_the_token_lacks() -> None:
    silent = by_token(groups=None, email=None, name=None)
    decision = decide_on(*IDENTITY_FIELDS, silent)
    assert decision.identity == Identity("ada", uid="5a1c")
    needs_groups = replace(REQUIRED, required=frozenset({Role.GROUPS}))
    assert reason(*IDENTITY_FIELDS, silent, policy=needs_groups) is Reason.IDENTITY_INCOMPLETE
    assert reason(by_token(preferred_username=None)) is Reason.IDENTITY_INCOMPLETE
    assert reason(*IDENTITY_FIELDS, by_token(preferred_username=None)) is Reason.IDENTITY_INCOMPLETE


@pytest.mark.parametrize(
    "changes",
    [
        {"preferred_username": "a\nb"},
        {"preferred_username": "a\x00"},
        {"preferred_username": "a" * 256},
        {"preferred_username": "\u00a0ada"},
        {"preferred_username": "\ud800"},
        {"preferred_username": "a\u2066b"},
        {"groups": ["a\r\nRemote-User: root"]},
    ],
    ids=repr,
)
def test_a_claim_must_be_valid_as_a_header_value(changes: dict[str, Any]) -> None:
    assert reason(by_token(**changes)) is Reason.IDENTITY_INVALID


def test_an_empty_name_or_subject_of_a_token_is_absent() -> None:
    assert reason(by_token(preferred_username="")) is Reason.IDENTITY_INCOMPLETE
    bound = replace(REQUIRED, required=frozenset({Role.UID}))
    assert reason(by_token(sub=""), policy=bound) is Reason.IDENTITY_INCOMPLETE


@pytest.mark.parametrize(
    ("header", "changes", "identity"),
    [
        # The token's value is used, whatever the header contains.
        ("X-authentik-email: eve@example.org", {}, ADA),
        ("X-authentik-name: Eve", {}, ADA),
        ("X-authentik-name: ", {}, ADA),
        ("X-authentik-name: Jo\u0308rg", {"name": "J\u00f6rg"}, replace(ADA, name="J\u00f6rg")),
        # An invalid one is dropped, and the header does not replace it.
        ("X-authentik-name: Ada", {"name": "\x1b[0m"}, replace(ADA, name=None)),
        ("X-authentik-name: Ada", {"name": "\ud800"}, replace(ADA, name=None)),
        ("X-authentik-name: Ada", {"email": "a" * 321}, replace(ADA, email=None)),
    ],
)
def test_a_display_name_or_e_mail_never_decides(
    header: str, changes: dict[str, Any], identity: Identity
) -> None:
    decision = decide_on(header, by_token(**changes))
    assert decision.outcome.reason is Reason.VERIFIED_JWT
    assert decision.identity == identity


@pytest.mark.parametrize("unverified", [False, "false", 0, "no"])
@pytest.mark.parametrize(
    ("names", "by_email"),
    [
        (ClaimNames(email="user.email"), True),
        (ClaimNames(username="user.email"), False),
        (ClaimNames(username="user.email", email="user.email"), False),
        (ClaimNames(uid="user.email"), False),
    ],
)
def test_a_deciding_e_mail_in_an_object_must_not_be_called_unverified_there(
    names: ClaimNames, by_email: bool, unverified: object
) -> None:
    rules = IdentityRules(username_from_email=UsernameFromEmail.FULL) if by_email else POLICY.rules
    policy = replace(POLICY, tokens=replace(RULES, required=True, claims=names), rules=rules)
    user: dict[str, object] = {"email": "ada@example.org"}
    for stated in ({}, {"email_verified": True}, {"email_verified": "true"}):
        nested = by_token(user={**user, **stated})
        assert reason(nested, policy=policy) is Reason.VERIFIED_JWT, stated
    for changes in (
        {"user": {**user, "email_verified": unverified}},
        {"user": {**user, "email_verified": True}, "email_verified": unverified},
        {"user": {**user, "email_verified": unverified}, "email_verified": True},
    ):
        assert reason(by_token(**changes), policy=policy) is Reason.EMAIL_NOT_VERIFIED, changes


def test_an_e_mail_that_is_called_unverified_does_not_matter_where_it_does_not_decide() -> None:
    names = ClaimNames(username="user.name", email="user.email")
    policy = replace(POLICY, tokens=replace(RULES, required=True, claims=names))
    user = {"name": "ada", "email": "ada@example.org", "email_verified": False}
    assert reason(by_token(user=user), policy=policy) is Reason.VERIFIED_JWT


def test_a_reserved_name_in_a_token_is_reserved() -> None:
    policy = replace(REQUIRED, reserved=frozenset({"navidrome-shim"}))
    fields = by_token(preferred_username="Navidrome-Shim")
    assert reason(fields, policy=policy) is Reason.RESERVED_ACCOUNT


def test_a_token_from_an_untrusted_peer_is_ignored() -> None:
    decision = decide_on(by_token(), policy=BEARER, peer=UNTRUSTED)
    assert decision.outcome.reason is Reason.UNTRUSTED_PEER
    decision = decide_on(f"Authorization: Bearer {token()}", policy=BEARER, peer=UNTRUSTED)
    assert decision.outcome.reason is Reason.UNTRUSTED_PEER
    assert b"eyJ" not in decision.render_head()


def test_a_token_under_an_alias_of_its_header_is_rejected() -> None:
    assert reason(f"X_authentik_jwt: {token()}") is Reason.HEADER_ALIAS
    assert reason(by_token(), f"X_authentik_jwt: {token()}") is Reason.HEADER_ALIAS
    assert reason(by_token(), by_token()) is Reason.IDENTITY_DUPLICATE


def test_keys_inside_the_token_are_not_used() -> None:
    meta = "X-authentik-meta-jwks: https://evil.example/jwks"
    assert reason(by_token(), meta) is Reason.VERIFIED_JWT
    forged = by_token(token(key=rsa_key(1)))
    assert reason(forged, meta) is Reason.JWT_INVALID


# Time


def test_the_expiry_of_a_token_is_checked_on_every_request_despite_the_cache() -> None:
    cache = DecisionCache(REQUIRED)
    context = cache.connection_context(EDGE, b"http")
    line, _, block = head("GET /app/ HTTP/1.1", by_token())[:-2].partition(b"\r\n")

    def at(now: float | None) -> Reason:
        known = cache.cached_headers(block, context)
        return cache.decide(line, block, context, known, now).outcome.reason

    assert [at(NOW) for _ in range(4)] == [Reason.VERIFIED_JWT] * 4
    assert cache.cached_headers(block, context) is not None
    assert at(NOW + 329) is Reason.VERIFIED_JWT
    assert at(NOW + 330) is Reason.JWT_EXPIRED
    assert at(None) is Reason.JWT_EXPIRED
    assert at(NOW - 41) is Reason.JWT_NOT_YET_VALID
    assert at(NOW) is Reason.VERIFIED_JWT, "the clock was corrected"


def test_a_token_that_was_too_early_is_accepted_later() -> None:
    cache = DecisionCache(REQUIRED)
    context = cache.connection_context(EDGE, b"http")
    line, _, block = head("GET /app/ HTTP/1.1", by_token(nbf=NOW + 100))[:-2].partition(b"\r\n")
    for _ in range(4):
        early = cache.decide(line, block, context, cache.cached_headers(block, context), NOW)
        assert early.outcome.reason is Reason.JWT_NOT_YET_VALID
    later = cache.decide(line, block, context, None, NOW + 100)
    assert later.outcome.reason is Reason.VERIFIED_JWT


@pytest.mark.parametrize(
    ("kid", "name", "at_first"),
    [
        ("rsa-0", None, Reason.IDENTITY_INCOMPLETE),
        ("rsa-0", "a\tb", Reason.IDENTITY_INVALID),
        ("rsa-1", "ada", Reason.JWT_UNKNOWN_KEY),
    ],
)
def test_an_expired_token_is_reported_as_expired_whatever_else_was_wrong(
    kid: str, name: str | None, at_first: Reason
) -> None:
    cache = DecisionCache(REQUIRED)
    context = cache.connection_context(EDGE, b"http")
    field = by_token(token(claims(preferred_username=name), kid=kid))
    line, _, block = head("GET /app/ HTTP/1.1", field)[:-2].partition(b"\r\n")

    def at(now: float) -> Reason:
        return cache.decide(line, block, context, None, now).outcome.reason

    assert [at(NOW) for _ in range(4)] == [at_first] * 4
    assert at(NOW + 330) is Reason.JWT_EXPIRED


def test_a_hundred_requests_of_one_page_cost_one_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0
    signed = Key.verify

    def counted(key: Key, text: bytes, signature: bytes) -> bool:
        nonlocal count
        count += 1
        return signed(key, text, signature)

    monkeypatch.setattr(Key, "verify", counted)
    cache = DecisionCache(REQUIRED)
    context = cache.connection_context(EDGE, b"http")
    text = by_token()
    for number in range(100):
        # Each with a header block of its own.
        fields = (text, f"Range: bytes={number}-", f"X-Forwarded-For: 192.0.2.{number}")
        line, _, block = head(f"GET /api/{number} HTTP/1.1", *fields)[:-2].partition(b"\r\n")
        decision = cache.decide(line, block, context, cache.cached_headers(block, context), NOW)
        assert decision.outcome.reason is Reason.VERIFIED_JWT
    assert count == 1


def test_no_verification_under_other_keys_is_reused() -> None:
    cache = DecisionCache(REQUIRED)
    context = cache.connection_context(EDGE, b"http")
    line, _, block = head("GET /app/ HTTP/1.1", by_token())[:-2].partition(b"\r\n")
    for _ in range(3):
        assert cache.decide(line, block, context, None, NOW).outcome.reason is Reason.VERIFIED_JWT
    rotated = replace(RULES, keys=read_key_set(key_set(jwk(rsa_key(1), "rsa-1"))), required=True)
    renewed = DecisionCache(REQUIRED.next_version(tokens=rotated))
    context = renewed.connection_context(EDGE, b"http")
    decision = renewed.decide(line, block, context, renewed.cached_headers(block, context), NOW)
    assert decision.outcome.reason is Reason.JWT_UNKNOWN_KEY


# Where it applies

APP = "GET /app/ HTTP/1.1"
PUBLIC = "GET /rest/ping HTTP/1.1"


def test_a_token_is_used_on_a_public_path_only_if_the_settings_say_so() -> None:
    with_jwt = replace(REQUIRED, public_path_proof=Proof.JWT)
    assert reason(by_token(), line=PUBLIC) is Reason.PUBLIC_PATH
    assert reason(by_token(), policy=with_jwt, line=PUBLIC) is Reason.VERIFIED_JWT
    assert reason(*IDENTITY_FIELDS, policy=with_jwt, line=PUBLIC) is Reason.PUBLIC_PATH
    forged = by_token(token(key=rsa_key(1)))
    assert reason(forged, policy=with_jwt, line=PUBLIC) is Reason.JWT_INVALID
    for line in ("GET /share/abc HTTP/1.1", "GET /SHARE HTTP/1.1"):
        assert reason(by_token(), policy=with_jwt, line=line) is Reason.PUBLIC_PATH
    optional = replace(OPTIONAL, public_path_proof=Proof.JWT)
    assert reason(*IDENTITY_FIELDS, policy=optional, line=PUBLIC) is Reason.PUBLIC_PATH


def test_a_forged_token_costs_nothing_where_it_could_not_be_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object) -> bool:
        raise AssertionError("a signature was verified")

    monkeypatch.setattr(Key, "verify", never)
    forged = by_token(token(key=rsa_key(1)))
    assert reason(forged, line=PUBLIC) is Reason.PUBLIC_PATH
    assert reason(forged, line="GET /share/x HTTP/1.1") is Reason.PUBLIC_PATH
    assert reason(forged, peer=UNTRUSTED) is Reason.UNTRUSTED_PEER
    secret = replace(REQUIRED, secrets=(b"s3cret-s3cret-s3cret",))
    assert reason(forged, policy=secret) is Reason.SECRET_MISSING


def test_secret_and_token_are_both_required_where_both_are_set() -> None:
    both = replace(REQUIRED, secrets=(b"s3cret", b"older"))
    good, wrong = "X-Shim-Proxy-Secret: s3cret", "X-Shim-Proxy-Secret: s3cre"
    assert reason(by_token(), good, policy=both) is Reason.VERIFIED_JWT
    assert reason(by_token(), wrong, policy=both) is Reason.SECRET_MISMATCH
    assert reason(by_token(), policy=both) is Reason.SECRET_MISSING
    assert reason(*IDENTITY_FIELDS, good, policy=both) is Reason.JWT_MISSING
    assert reason(by_token(), good, good, policy=both) is Reason.SECRET_MISMATCH
    jwt = replace(both, public_path_proof=Proof.JWT)
    assert reason(by_token(), policy=jwt, line=PUBLIC) is Reason.PUBLIC_PATH
    assert reason(by_token(), good, policy=jwt, line=PUBLIC) is Reason.VERIFIED_JWT
    secret = replace(both, public_path_proof=Proof.SECRET)
    assert reason(by_token(), good, policy=secret, line=PUBLIC) is Reason.VERIFIED_JWT
    assert reason(*IDENTITY_FIELDS, good, policy=secret, line=PUBLIC) is Reason.JWT_MISSING
    assert reason(by_token(), wrong, policy=secret, line=PUBLIC) is Reason.PUBLIC_PATH


def test_where_only_tokens_name_users_headers_without_one_lack_the_secret_or_the_token() -> None:
    by_claim = replace(
        REQUIRED,
        secrets=(b"s3cret",),
        rules=IdentityRules(uid_source=UidSource.CLAIM),
        required=frozenset({Role.UID}),
    )
    name, good = "X-authentik-username: ada", "X-Shim-Proxy-Secret: s3cret"
    assert reason(name, policy=by_claim) is Reason.SECRET_MISSING
    assert reason(name, f"{good}x", policy=by_claim) is Reason.SECRET_MISMATCH
    assert reason(name, good, policy=by_claim) is Reason.JWT_MISSING
    # Otherwise the missing uid is the reason.
    by_header = replace(by_claim, rules=IdentityRules())
    assert reason(name, policy=by_header) is Reason.IDENTITY_INCOMPLETE


def test_the_console_requires_an_admin_named_by_the_token() -> None:
    policy = replace(REQUIRED, admin_groups=frozenset({"admins"}))
    line = "GET /_shim/admin/ HTTP/1.1"
    assert reason(by_token(), policy=policy, line=line) is Reason.VERIFIED_JWT
    assert reason(by_token(groups=["family"]), policy=policy, line=line) is Reason.NOT_FOUND
    spoofed = (*IDENTITY_FIELDS, by_token(groups=None))
    assert reason(*spoofed, policy=policy, line=line) is Reason.NOT_FOUND
    forged = by_token(token(key=rsa_key(1)))
    assert reason(forged, policy=policy, line=line) is Reason.NOT_FOUND


def test_a_persons_own_pages_need_a_token_that_is_verified() -> None:
    line = "GET /_shim/ HTTP/1.1"
    assert reason(by_token(groups=["family"]), line=line) is Reason.VERIFIED_JWT
    assert reason(*IDENTITY_FIELDS, line=line) is Reason.NOT_FOUND
    assert reason(by_token(token(key=rsa_key(1))), line=line) is Reason.NOT_FOUND


# Authorization: Bearer


def test_a_native_client_sends_its_token_as_bearer() -> None:
    for scheme in ("Bearer", "bearer", "BEARER"):
        decision = decide_on(f"Authorization: {scheme} {token()}", policy=BEARER)
        assert decision.identity == ADA
        assert b"uthorization" not in decision.render_head()
    public = replace(BEARER, public_path_proof=Proof.JWT)
    decision = decide_on(f"Authorization: Bearer {token()}", policy=public, line=PUBLIC)
    assert decision.identity == ADA


@pytest.mark.parametrize("value", ["Bearer ", "Bearer", "Bearer x", "Bearer a.b.c"])
def test_an_invalid_bearer_token_is_not_accepted(value: str) -> None:
    expected = Reason.NO_IDENTITY if value.strip() == "Bearer" else Reason.JWT_INVALID
    assert reason(f"Authorization: {value}", policy=BEARER) is expected


def test_other_authorization_is_forwarded_unchanged() -> None:
    for value in ("Basic YTpi", "MediaBrowser Token=x", f"Token {token()}"):
        decision = decide_on(f"Authorization: {value}", policy=BEARER)
        assert decision.outcome.reason is Reason.NO_IDENTITY
        assert f"Authorization: {value}\r\n".encode() in decision.render_head()
    decision = decide_on(f"Authorization: Bearer {token()}")
    assert decision.outcome.verdict is Verdict.ANONYMOUS, "the setting is off"


def test_the_edges_header_takes_precedence_over_a_bearer() -> None:
    bob = f"Authorization: Bearer {token(claims(preferred_username='bob', sub='b0b'))}"
    for fields in ([by_token(), bob], [bob, by_token()]):
        assert decide_on(*fields, policy=BEARER).identity == ADA
    assert reason(bob, bob, policy=BEARER) is Reason.IDENTITY_DUPLICATE
    assert reason(*IDENTITY_FIELDS, bob, policy=BEARER) is Reason.JWT_CLAIM_MISMATCH


def test_a_flood_of_forged_tokens_evicts_no_other_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DecisionCache(REQUIRED)
    context = cache.connection_context(EDGE, b"http")
    honest = by_token()

    def reason_with(text: str, *more: str) -> Reason:
        line, _, block = head("GET /app/ HTTP/1.1", text, *more)[:-2].partition(b"\r\n")
        known = cache.cached_headers(block, context)
        return cache.decide(line, block, context, known, NOW).outcome.reason

    for _ in range(3):
        assert reason_with(honest) is Reason.VERIFIED_JWT
    stem = honest.rpartition(".")[0]
    for number in range(5000):
        assert reason_with(f"{stem}.{number:04}AAAA") is Reason.JWT_INVALID

    def never(*_: object) -> bool:
        raise AssertionError("the valid token was verified again")

    monkeypatch.setattr(Key, "verify", never)
    assert reason_with(honest) is Reason.VERIFIED_JWT
    assert reason_with(honest, "Range: bytes=0-") is Reason.VERIFIED_JWT


def test_tokens_and_the_headers_beside_them_are_cached_separately() -> None:
    forged = by_token(token(key=rsa_key(1)))
    bob = token(claims(preferred_username="bob", sub="b0b"))
    late = token(claims(exp=int(NOW) - 100))
    identity_field_sets = [
        [by_token()], [forged], [by_token(bob)], [by_token(late)], [by_token(), by_token()],
        [by_token().replace("X-authentik-jwt", "x-AUTHENTIK-jwt")], ["X-authentik-jwt: "], [],
        [f"Authorization: Bearer {bob}"], [f"Authorization: Bearer {bob}", by_token()],
        ["X-authentik-jwt: ", f"authorization: Bearer {bob}"], ["X_authentik_jwt: x"],
        ["X-authentik-jwt: \xff"],
    ]  # fmt: skip
    beside = [
        [],
        IDENTITY_FIELDS,
        IDENTITY_FIELDS[:1],
        ["X-authentik-username: eve"],
        ["X-authentik-uid: 1"],
    ]
    requests = [
        (fields, more, line)
        for fields in identity_field_sets
        for more in beside
        for line in (APP, PUBLIC)
    ]
    shuffled = random.Random(6)
    for policy in (BEARER, OPTIONAL, POLICY):
        for _ in range(5):
            shuffled.shuffle(requests)
            for fields, more, line in requests:
                decide_on(*more, *fields, policy=policy, line=line)
                decide_on(*fields, *more, policy=policy, line=line)


@pytest.mark.parametrize("named", ["one person", "each another"])
def test_a_flood_of_forged_tokens_is_not_cached(named: str) -> None:
    cache = DecisionCache(REQUIRED)
    context = cache.connection_context(EDGE, b"http")

    def left() -> int:
        gc.collect()
        return sum(isinstance(each, TokenProof | Field) for each in gc.get_objects())

    before = left()
    for number in range(500):
        other = IDENTITY_FIELDS if named == "one person" else [f"X-authentik-username: {number}"]
        fields = [*other, by_token(f"e30.e30.{number:04}AAAA")]
        line, _, block = head(APP, *fields)[:-2].partition(b"\r\n")
        cache.decide(line, block, context, cache.cached_headers(block, context), NOW)
    assert left() < before + 30
