"""Each preset reads its provider's headers, and is as resistant to attacks as authentik's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import pytest

from shim.app.factories import build_policy
from shim.settings.providers import PRESETS
from shim.trust.decision import Decision, decide
from shim.trust.identity import Identity
from shim.trust.peers import Peer
from tests.support.decisions import EDGE, UNTRUSTED, head
from tests.support.jwt_minting import rsa_key, token
from tests.support.provider_headers import (
    SENDS,
    Sent,
    access_assertion,
    keys,
    pomerium_assertion,
)

NO_SETTINGS: Mapping[str, str] = {}
SECRET = "of-the-edges-authenticated-route"
PROOF = f"X-Shim-Proxy-Secret: {SECRET}"
BY_NAME = {sent.provider: sent for sent in SENDS}
each_provider = pytest.mark.parametrize("sent", SENDS, ids=lambda sent: sent.provider)
ADMIN = "admin@example.org"


def decided(
    sent: Sent,
    *fields: str,
    peer: Peer = EDGE,
    path: str = "/api/user",
    settings: Mapping[str, str] = NO_SETTINGS,
) -> Decision:
    policy = build_policy(sent.load(**settings), keys=keys())
    now = time.time()
    decision = decide(head(f"GET {path} HTTP/1.1", *fields), peer, policy, b"http", now)
    assert (decision.identity is None) is (decision.outcome.verdict != "authenticated")
    return decision


def reason(
    sent: Sent,
    *fields: str,
    peer: Peer = EDGE,
    path: str = "/api/user",
    settings: Mapping[str, str] = NO_SETTINGS,
) -> str:
    decision = decided(sent, *fields, peer=peer, path=path, settings=settings)
    return str(decision.outcome.reason)


def test_every_preset_is_tested() -> None:
    assert BY_NAME.keys() == PRESETS.keys()


@each_provider
def test_the_providers_headers_name_the_user(sent: Sent) -> None:
    decision = decided(sent, *sent.fields)
    assert decision.identity == sent.identity
    forwarded = decision.render_head().decode().partition("\r\n\r\n")[0].split("\r\n")[2:]
    assert forwarded[-1] == f"Remote-User: {sent.identity.username}"
    names = {line.partition(":")[0].lower() for line in sent.fields}
    assert not names & {line.partition(":")[0].lower() for line in forwarded[:-1]}


@each_provider
def test_the_takeover_fails(sent: Sent) -> None:
    admin = f"{sent.name_field}: {ADMIN}"
    assert reason(sent, admin, path="/rest/getUsers") == "public_path"
    assert not decided(sent, admin, path="/rest/getUsers").identity
    assert reason(sent, *sent.fields, path="/rest/getUsers") == "public_path"
    assert reason(sent, *sent.fields, path="/share/x") == "public_path"
    assert reason(sent, *sent.fields, path="/restx") == "public_path"
    assert reason(sent, *sent.fields, path="/re%C5%BFt/x") == "non_ascii_path"
    assert reason(sent, *sent.fields, peer=UNTRUSTED) == "untrusted_peer"


@each_provider
def test_a_route_without_authentication_requires_the_proof(sent: Sent) -> None:
    signed = sent.settings.get("JWKS_URL") is not None
    fields = [f for f in sent.fields if "Assertion" not in f] if signed else sent.fields
    expected = sent.without_token if signed else "trusted_peer"
    assert reason(sent, *fields) == expected
    unproven = reason(sent, *sent.fields, settings={"PROXY_SECRET": SECRET})
    assert unproven == "secret_missing"
    proven = reason(sent, *sent.fields, PROOF, settings={"PROXY_SECRET": SECRET})
    assert proven == ("verified_jwt" if signed else "proxy_secret")


@each_provider
def test_an_alias_of_every_header_is_rejected(sent: Sent) -> None:
    for name in dict.fromkeys(line.partition(":")[0] for line in sent.fields):
        if name.startswith("Tailscale-Headers"):
            continue  # not an identity header
        alias = name.replace("-", "_", 1)
        assert reason(sent, *sent.fields, f"{alias}: {ADMIN}") == "header_alias", name
        assert reason(sent, *sent.fields, f"{name}: {ADMIN}") == "identity_duplicate", name


@each_provider
def test_another_header_of_the_provider_is_never_forwarded(sent: Sent) -> None:
    prefix = sent.load().identity_prefixes[0]
    decision = decided(sent, *sent.fields, f"{prefix}Unknown: {ADMIN}")
    assert decision.identity == sent.identity
    assert b"Unknown" not in decision.render_head()


@each_provider
def test_empty_headers_claim_no_identity(sent: Sent) -> None:
    fields = [f"{line.partition(':')[0]}:" for line in sent.fields if "Headers-Info" not in line]
    assert reason(sent, *fields) == "no_identity"


@pytest.mark.parametrize("name", ["pomerium", "cloudflare-access"])
def test_a_signed_preset_uses_the_signed_values_only(name: str) -> None:
    sent = BY_NAME[name]
    header = sent.load().jwt_header
    assertion = pomerium_assertion if name == "pomerium" else access_assertion
    others = [line for line in sent.fields if not line.startswith(header)]
    assert (
        reason(sent, *others, f"{header}: {assertion(iss='https://evil.example')}") == "jwt_invalid"
    )
    assert reason(sent, *others, f"{header}: {assertion(exp=1)}") == "jwt_expired"
    assert reason(sent, *others, f"{header}: {assertion(sub='')}") == "identity_incomplete"
    assert reason(sent, *others, f"{header}: {assertion(email='')}") == "identity_incomplete"
    assert reason(sent, *others, f"{header}: {assertion(email='not one')}") == "identity_invalid"
    for unverified in (False, "false", None, 0, "no"):
        text = assertion(email_verified=unverified)
        assert reason(sent, *others, f"{header}: {text}") == "email_not_verified"
    for verified in (True, "true"):
        assert reason(sent, *others, f"{header}: {assertion(email_verified=verified)}") == (
            "verified_jwt"
        )


def test_a_header_beside_the_token_must_agree_with_a_deciding_email() -> None:
    sent = BY_NAME["cloudflare-access"]
    fields = [f"Cf-Access-Authenticated-User-Email: {ADMIN}", sent.fields[1]]
    assert reason(sent, *fields) == "jwt_claim_mismatch"


def test_the_token_must_have_an_algorithm_of_the_preset() -> None:
    sent = BY_NAME["pomerium"]
    now = int(time.time())
    entries = {"iss": "music.example.org", "aud": "music.example.org", "sub": "x", "exp": now + 60}
    by_rsa = token({**entries, "email": ADMIN}, key=rsa_key())
    header = "X-Pomerium-Jwt-Assertion"
    assert reason(sent, f"{header}: {by_rsa}") == "jwt_invalid"
    assert (
        reason(sent, f"{header}: {by_rsa}", settings={"JWT_ALGORITHMS": "RS256"}) == "verified_jwt"
    )


def test_oauth2_proxys_id_token_is_read_as_a_bearer_token() -> None:
    sent = BY_NAME["oauth2-proxy"]
    now = int(time.time())
    entries = {
        "iss": "https://idp.example.org",
        "aud": "navidrome",
        "sub": "idp-7",
        "exp": now + 60,
        "preferred_username": "ada",
        "email": "ada@example.org",
        "groups": list(sent.identity.groups or ()),
    }
    settings = {
        "JWT_VERIFY": "required",
        "JWT_BEARER": "true",
        "JWKS_URL": "https://idp.example.org/jwks",
        "JWT_ISSUER": "https://idp.example.org",
        "JWT_AUDIENCE": "navidrome",
    }
    bearer = f"Authorization: Bearer {token(entries)}"
    decision = decided(sent, *sent.fields, bearer, settings=settings)
    assert decision.identity == sent.identity
    other = (*sent.fields[:1], "X-Auth-Request-Preferred-Username: admin")
    assert reason(sent, *other, bearer, settings=settings) == "jwt_claim_mismatch"
    assert reason(sent, *sent.fields, settings=settings) == "jwt_missing"


def test_the_roles_of_keycloak_behind_oauth2_proxy_are_read_from_the_token() -> None:
    """`X-Auth-Request-Groups` has them under other names (`role:music-users`), so it is not read."""
    sent = BY_NAME["oauth2-proxy"]
    entries = {
        "iss": "https://id.example.org/realms/home",
        "aud": "navidrome",
        "sub": "idp-7",
        "exp": int(time.time()) + 60,
        "preferred_username": "ada",
        "email": "ada@example.org",
        "realm_access": {"roles": ["offline_access", "music-users"]},
        "resource_access": {"navidrome": {"roles": ["music-admins"]}},
    }
    settings = {
        "JWT_VERIFY": "required",
        "JWT_BEARER": "true",
        "JWKS_URL": "https://id.example.org/realms/home/protocol/openid-connect/certs",
        "JWT_ISSUER": "https://id.example.org/realms/home",
        "JWT_AUDIENCE": "navidrome",
        "GROUPS_HEADER": "",
        "ALLOWED_GROUPS": "music-users,music-admins",
    }
    fields = (*sent.fields, f"Authorization: Bearer {token(entries)}")
    for path, groups in {
        "realm_access.roles": ("offline_access", "music-users"),
        "resource_access.navidrome.roles": ("music-admins",),
    }.items():
        decision = decided(sent, *fields, settings={**settings, "JWT_GROUPS_CLAIM": path})
        assert decision.identity == replace(sent.identity, groups=groups, name=None)
    for path, expected in {
        "resource_access.other.roles": "identity_incomplete",
        "realm_access": "jwt_invalid",
        "preferred_username.roles": "jwt_invalid",
    }.items():
        assert reason(sent, *fields, settings={**settings, "JWT_GROUPS_CLAIM": path}) == expected
    none = {**settings, "JWT_GROUPS_CLAIM": "resource_access.other.roles", "MISSING_GROUPS": "none"}
    identity = decided(sent, *fields, settings=none).identity
    assert identity is not None and not identity.groups


@pytest.mark.parametrize("name", ["authelia", "oauth2-proxy", "tailscale", "tinyauth"])
def test_local_part_is_the_name_before_the_at(name: str) -> None:
    sent = BY_NAME[name]
    settings = {"USERNAME_FROM_EMAIL": "local-part", "EMAIL_DOMAINS": "Example.ORG"}
    identity = decided(sent, *sent.fields, settings=settings).identity
    assert identity is not None
    uid = sent.identity.uid if name == "oauth2-proxy" else "ada"
    assert (identity.username, identity.uid) == ("ada", uid)
    email_field = next(f.partition(":")[0] for f in sent.fields if f.endswith("ada@example.org"))
    others = [field for field in sent.fields if not field.startswith(email_field)]
    for email, expected in {
        "ada@example.com": "email_not_allowed",
        "ada@EXAMPLE.org": "trusted_peer",
        "ada@example.org.evil.example": "email_not_allowed",
        "ada@\u212aexample.org": "identity_invalid",
        "ada@exampl\u0435.org": "identity_invalid",
        "ada@evil.example@example.org": "identity_invalid",
        "@example.org": "identity_invalid",
        "ada@": "identity_invalid",
        "ada": "identity_invalid",
        " ada @example.org": "identity_invalid",
        "ad\u202ea@example.org": "identity_invalid",
        "a" * 250 + "@example.org": "identity_invalid",
        "=?utf-8?q?j=C3=B6rg@example.org?=": "identity_invalid",
        "": "identity_incomplete",
    }.items():
        field = f"{email_field}: {email}"
        assert reason(sent, *others, field, settings=settings) in (
            (expected, "no_identity") if not email else (expected,)
        ), email


def test_names_that_look_equal_are_different_users() -> None:
    """Case, Unicode forms and the Turkish i are never folded: the uid is the exact text."""
    sent = BY_NAME["authelia"]
    names = [
        "Ada",
        "ada",
        "ADA",
        "jos\u00e9",
        "jose\u0301",
        "\u0130pek",
        "ipek",
        "Ipek",
        "\u0131pek",
    ]
    identities = [decided(sent, f"Remote-User: {name}").identity for name in names]
    assert [identity and identity.uid for identity in identities] == names
    emails = [f"{name}@example.org" for name in names]
    found = [
        decided(
            sent, "Remote-User: x", f"Remote-Email: {email}", settings={"UID_SOURCE": "email"}
        ).identity
        for email in emails
    ]
    assert found == [
        Identity("x", None, email, None, email, "e-mail of authelia") for email in emails
    ]


@pytest.mark.parametrize(
    ("form", "text", "groups"),
    [
        ("json", '["family", "a,b", "/music/admins"]', ("family", "a,b", "/music/admins")),
        ("json", "[]", ()),
        ("json", '["a"', None),
        ("json", '{"a": 1}', None),
        ("json", '["a", 1]', None),
        ("json", "[" * 5000, None),
        ("quoted", '"family","a,b"', ("family", "a,b")),
        ("quoted", '"family" , "b"', ("family", "b")),
        ("quoted", "family,admins", None),
        ("quoted", '"family",admins', None),
        ("quoted", '"family","adm', None),
        ("quoted", '"family",', None),
        ("quoted", "", ()),
        ("plain", "/music,/music/admins", ("/music", "/music/admins")),
    ],
)
def test_the_format_of_a_group_list(form: str, text: str, groups: tuple[str, ...] | None) -> None:
    sent = BY_NAME["authelia"]
    fields = ("Remote-User: ada", f"Remote-Groups: {text}")
    decision = decided(sent, *fields, settings={"GROUPS_FORMAT": form})
    if groups is None:
        assert str(decision.outcome.reason) == "identity_invalid"
    else:
        assert decision.identity == replace(sent.identity, name=None, email=None, groups=groups)
