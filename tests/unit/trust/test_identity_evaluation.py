"""Which identities are trusted, where, and why not: every verdict of the decision."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace

import pytest

from shim.trust.decision import decide
from shim.trust.fields import FieldNames
from shim.trust.identity import Identity, Role
from shim.trust.path_zones import Paths
from shim.trust.policy import AUTHENTIK_HEADERS, Policy, Proof
from shim.trust.reasons import Reason, Verdict
from tests.support.decisions import ADA, EDGE, POLICY, UNTRUSTED, decided, head, trusting
from tests.support.reference_parsers import read_by_llhttp

SECRET = "X-Shim-Proxy-Secret: swordfish"
WHITELIST = trusting("127.0.0.2")
PROOF = Policy(
    whitelist=WHITELIST, secrets=(b"swordfish", b"mackerel"), public_path_proof=Proof.SECRET
)
ADMINS = Policy(whitelist=WHITELIST, secrets=(b"swordfish",), admin_groups=frozenset({"admins"}))
FAMILY_ADMINS = ADMINS.next_version(allowed_groups=frozenset({"family"}))
GROUPS = "X-authentik-groups: admins"


def users(decided: bytes) -> list[bytes]:
    read = read_by_llhttp(decided)
    assert read is not None
    return read.values("Remote-User")


def reason(
    *fields: str | bytes, path: str = "/app/", policy: Policy = POLICY, untrusted: bool = False
) -> Reason:
    peer = UNTRUSTED if untrusted else EDGE
    return decided(head(f"GET {path} HTTP/1.1", *fields), peer, policy).outcome.reason


@pytest.mark.parametrize("sent", ["swordfish", "mackerel", "herring"])
def test_a_secret_is_compared_with_every_configured_one_in_constant_time(
    sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr("shim.trust.token_proof.hmac", SimpleNamespace(compare_digest=compare))
    policy = replace(PROOF, public_path_proof=None)
    text = head("GET /app/ HTTP/1.1", ADA, f"X-Shim-Proxy-Secret: {sent}")
    found = decide(text, EDGE, policy).outcome.reason
    assert (found is Reason.PROXY_SECRET) is (sent != "herring")
    assert compared == [(sent.encode(), secret) for secret in policy.secrets]


@pytest.mark.parametrize(
    ("fields", "untrusted", "expected_detail"),
    [
        ((), False, "the path needs an identity"),
        ((ADA,), True, "the path needs an identity, and what was sent is none: untrusted_peer"),
        (("Remote-User: ada",), False, "the path needs an identity, and what was sent is none: "
        "spoofed_user_header"),
    ],
)  # fmt: skip
def test_a_path_that_requires_an_identity_reports_why_it_has_none(
    fields: tuple[str, ...], untrusted: bool, expected_detail: str
) -> None:
    policy = replace(POLICY, require_identity=True)
    decision = decided(
        head("GET /app/ HTTP/1.1", *fields), UNTRUSTED if untrusted else EDGE, policy
    )
    assert decision.outcome.reason is Reason.IDENTITY_REQUIRED
    assert decision.detail == expected_detail


# trusted identities


def test_a_trusted_peer_can_send_an_identity_on_a_protected_path() -> None:
    decision = decided(
        head(
            "GET /app/ HTTP/1.1",
            ADA,
            "x-authentik-NAME: Ada Lovelace",
            "X-authentik-email: ",
            "X-authentik-groups: admins| musicians |",
            "X-authentik-uid: 0815",
            "X-authentik-jwt: a.b.c",
            "X-authentik-meta-app: navidrome",
        )
    )
    assert decision.outcome.verdict is Verdict.AUTHENTICATED
    assert decision.outcome.reason is Reason.TRUSTED_PEER
    assert decision.identity == Identity("ada", "Ada Lovelace", "", ("admins", "musicians"), "0815")
    assert users(decision.render_head()) == [b"ada"]
    assert b"authentik" not in decision.render_head().lower()


def test_the_user_header_carries_the_account_name_where_it_differs() -> None:
    decision = decided(head("GET /app/ HTTP/1.1", ADA))
    assert users(decision.render_head("\u00c4da".encode())) == ["\u00c4da".encode()]
    assert users(decided(head("GET /app/ HTTP/1.1")).render_head(b"ada")) == []


def test_the_user_header_has_the_configured_name() -> None:
    policy = Policy(whitelist=WHITELIST)
    names = type(policy.names)(policy.names.roles, ("X-authentik-",), "X-WebAuth-User", "X-Edge")
    named = Policy(whitelist=WHITELIST, names=names)
    decision = decided(head("GET /app/ HTTP/1.1", ADA, "X-WebAuth-User: eve"), policy=named)
    read = read_by_llhttp(decision.render_head())
    assert read is not None
    assert read.values("X-WebAuth-User") == [b"ada"]
    assert read.values("Remote-User") == []


@pytest.mark.parametrize("value", ["ada", " ada", "ada ", "\tada \t"])
def test_blanks_around_a_name_are_removed(value: str) -> None:
    decision = decided(head("GET /app/ HTTP/1.1", f"X-authentik-username:{value}"))
    assert decision.identity == Identity("ada")
    assert b"\r\nRemote-User: ada\r\n" in decision.render_head()


# untrusted identities


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ((), Reason.NO_IDENTITY),
        ((SECRET,), Reason.NO_IDENTITY),
        ((ADA,), Reason.UNTRUSTED_PEER),
        (("Remote-User: admin",), Reason.UNTRUSTED_PEER),
        (("X_authentik_username: admin",), Reason.UNTRUSTED_PEER),
        (("X-authentik-username: \x01",), Reason.MALFORMED_HEAD),
        (("X-authentik-username:",), Reason.UNTRUSTED_PEER),
        ((ADA, "X-authentik-username: bob"), Reason.UNTRUSTED_PEER),
        (("X-Forwarded-For: 127.0.0.2", ADA), Reason.UNTRUSTED_PEER),
        ((ADA, SECRET), Reason.UNTRUSTED_PEER),
    ],
)
@pytest.mark.parametrize("path", ["/app/", "/rest/ping", "/share/x"])
def test_the_identity_of_an_untrusted_peer_is_stripped(
    fields: tuple[str, ...], expected: Reason, path: str
) -> None:
    for policy in (POLICY, PROOF, Policy()):
        assert reason(*fields, path=path, policy=policy, untrusted=True) is expected


@pytest.mark.parametrize("path", ["/app/", "/rest/ping", "/share/x", "/_shim/"])
@pytest.mark.parametrize("fields", [(), (ADA,), (ADA, SECRET)])
def test_an_identity_of_an_untrusted_peer_can_be_rejected(
    path: str, fields: tuple[str, ...]
) -> None:
    policy = Policy(whitelist=WHITELIST, reject_untrusted=True, secrets=(b"swordfish",))
    decision = decided(head(f"GET {path} HTTP/1.1", *fields), UNTRUSTED, policy)
    assert (decision.outcome.reason, decision.outcome.status) == (
        Reason.UNTRUSTED_PEER_REJECTED,
        403,
    )
    assert reason(ADA, SECRET, policy=policy) is Reason.PROXY_SECRET


def test_an_empty_whitelist_trusts_no_peer() -> None:
    for peer in (EDGE, UNTRUSTED):
        decision = decided(head("GET /app/ HTTP/1.1", ADA), peer, Policy())
        assert decision.outcome.reason is Reason.UNTRUSTED_PEER
        assert users(decision.render_head()) == []


@pytest.mark.parametrize(
    ("fields", "expected", "status"),
    [
        # two values for one header
        ((ADA, ADA), Reason.IDENTITY_DUPLICATE, 400),
        ((ADA, "x-AUTHENTIK-username: bob"), Reason.IDENTITY_DUPLICATE, 400),
        ((ADA, "X-authentik-groups: a", "X-authentik-groups: b"), Reason.IDENTITY_DUPLICATE, 400),
        ((ADA, "X-authentik-meta: a", "X-authentik-meta: b"), Reason.IDENTITY_DUPLICATE, 400),
        # invalid values
        ((b"X-authentik-username: \xff",), Reason.IDENTITY_INVALID, 400),
        (("X-authentik-username: a\tb",), Reason.IDENTITY_INVALID, 400),
        (("X-authentik-username: \u00a0ada",), Reason.IDENTITY_INVALID, 400),
        (("X-authentik-username: a\u0085b",), Reason.IDENTITY_INVALID, 400),
        ((f"X-authentik-username: {'a' * 256}",), Reason.IDENTITY_INVALID, 400),
        ((ADA, b"X-authentik-groups: \xff"), Reason.IDENTITY_INVALID, 400),
        (("X-authentik-username: a\u202eb",), Reason.IDENTITY_INVALID, 400),
        # an alias, alone and beside the exact name
        (("X_authentik_username: ada",), Reason.HEADER_ALIAS, 400),
        ((ADA, "X_authentik_groups: admins"), Reason.HEADER_ALIAS, 400),
        ((ADA, "X.authentik.anything: x"), Reason.HEADER_ALIAS, 400),
        ((ADA, "Remote_User: ada"), Reason.HEADER_ALIAS, 400),
        ((ADA, "X_Shim_Proxy_Secret: x"), Reason.HEADER_ALIAS, 400),
        ((ADA, "X~authentik~jwt: x"), Reason.HEADER_ALIAS, 400),
        # a name is required
        (("X-authentik-email: ada@example.com",), Reason.IDENTITY_INCOMPLETE, 403),
        (("X-authentik-groups: admins", "X-authentik-uid: 1"), Reason.IDENTITY_INCOMPLETE, 403),
    ],
)
def test_an_ambiguous_identity_is_rejected(
    fields: tuple[str | bytes, ...], expected: Reason, status: int
) -> None:
    decision = decided(head("GET /app/ HTTP/1.1", *fields))
    assert (decision.outcome.reason, decision.outcome.status) == (expected, status)
    assert decision.identity is None
    assert decision.detail


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (("Remote-User: admin",), Reason.SPOOFED_USER_HEADER),
        (("X-authentik-meta-app: navidrome",), Reason.SPOOFED_USER_HEADER),
        ((ADA, "Remote-User: admin"), Reason.TRUSTED_PEER),
        ((ADA, "Remote-User: admin", "Remote-User: root"), Reason.TRUSTED_PEER),
    ],
)
def test_the_user_header_itself_carries_no_identity(
    fields: tuple[str, ...], expected: Reason
) -> None:
    decision = decided(head("GET /app/ HTTP/1.1", *fields))
    assert decision.outcome.reason is expected
    assert b"admin" not in decision.render_head()
    assert b"root" not in decision.render_head()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ((ADA,), Reason.IDENTITY_INCOMPLETE),
        ((ADA, "X-authentik-uid: 1"), Reason.IDENTITY_INCOMPLETE),
        ((ADA, "X-authentik-groups: a"), Reason.IDENTITY_INCOMPLETE),
        ((ADA, "X-authentik-uid: 1", "X-authentik-groups:"), Reason.TRUSTED_PEER),
        (
            (ADA, "X-authentik-uid: 1", "Connection: X-authentik-uid, X-authentik-groups"),
            Reason.IDENTITY_INCOMPLETE,
        ),
    ],
)
def test_a_required_header_may_be_empty_but_not_absent(
    fields: tuple[str, ...], expected: Reason
) -> None:
    policy = Policy(whitelist=WHITELIST, required=frozenset({Role.UID, Role.GROUPS}))
    assert reason(*fields, policy=policy) is expected


@pytest.mark.parametrize(
    "field",
    [
        b"X-authentik-name: J\xf6rg",  # Latin-1
        b"X-authentik-name: Ada\tLovelace",
        "X-authentik-name: Ada\u2028Lovelace".encode(),
        b"X-authentik-name: " + b"x" * 1025,
        b"X-authentik-name: =?utf-8?q?Ada=0ALovelace?=",
        b"X-authentik-name: =?utf-8?q?=FF?=",
        b"X-authentik-email: " + b"a" * 321,
        b"X-authentik-email: \xff",
    ],
)
def test_an_invalid_display_name_or_e_mail_is_dropped_with_a_note(field: bytes) -> None:
    decision = decided(head("GET /app/ HTTP/1.1", ADA, "X-authentik-uid: 7", field))
    assert decision.identity == Identity("ada", uid="7")
    name = field.partition(b":")[0].decode()
    (note,) = decision.notes
    assert note.startswith(f"{name} is not used: the ")
    twice = decided(head("GET /app/ HTTP/1.1", ADA, field, field))
    assert twice.outcome.reason is Reason.IDENTITY_DUPLICATE
    assert reason(field) is Reason.SPOOFED_USER_HEADER


def test_only_the_display_name_is_decoded() -> None:
    encoded_word = "=?utf-8?q?J=C3=B6rg?="
    fields = (
        f"X-authentik-username: {encoded_word}",
        f"X-authentik-name: {encoded_word}",
        f"X-authentik-groups: {encoded_word}",
    )
    decision = decided(head("GET /app/ HTTP/1.1", *fields))
    assert decision.identity == Identity(encoded_word, "Jörg", groups=(encoded_word,))


def test_a_display_name_can_be_percent_encoded() -> None:
    names = FieldNames(
        AUTHENTIK_HEADERS, ("X-authentik-",), "Remote-User", "X-Edge", percent_names=True
    )
    policy = Policy(whitelist=WHITELIST, names=names)
    fields = ("X-authentik-username: J%C3%B6rg", "X-authentik-name: J%C3%B6rg")
    decision = decided(head("GET /app/ HTTP/1.1", *fields), policy=policy)
    assert decision.identity == Identity("J%C3%B6rg", "Jörg")
    control = decided(head("GET /app/ HTTP/1.1", ADA, "X-authentik-name: a%0Ab"), policy=policy)
    assert control.identity == Identity("ada")


def test_a_long_group_list_is_accepted() -> None:
    groups = tuple(f"{number:0120}" for number in range(152))
    decision = decided(head("GET /app/ HTTP/1.1", ADA, f"X-authentik-groups: {'|'.join(groups)}"))
    assert decision.identity == Identity("ada", groups=groups)


@pytest.mark.parametrize("sent", ["Remote-User", "remote-user", "REMOTE-USER"])
def test_navidromes_user_header_can_be_configured_as_the_source_of_the_name(sent: str) -> None:
    roles = {**AUTHENTIK_HEADERS, Role.USERNAME: "Remote-User"}
    policy = Policy(
        whitelist=WHITELIST, names=FieldNames(roles, ("X-authentik-",), "Remote-User", "X-Edge")
    )
    decision = decided(head("GET /app/ HTTP/1.1", f"{sent}: ada"), policy=policy)
    assert decision.identity == Identity("ada")
    assert users(decision.render_head(b"Ada L")) == [b"Ada L"]
    assert decision.explain()["removed_headers"] == [sent]
    assert decision.notes == ()
    fields = (f"{sent}: ada", "Remote-User: root")
    assert reason(*fields, policy=policy) is Reason.IDENTITY_DUPLICATE
    assert reason("Remote_User: root", policy=policy) is Reason.HEADER_ALIAS
    assert reason(f"{sent}: ada", policy=policy, path="/rest/ping") is Reason.PUBLIC_PATH
    stripped = decided(head("GET /app/ HTTP/1.1", f"{sent}: ada"), UNTRUSTED, policy)
    assert stripped.outcome.reason is Reason.UNTRUSTED_PEER
    assert users(stripped.render_head()) == []


EMPTY = tuple(f"X-authentik-{role}:" for role in ("username", "uid", "groups", "name", "jwt"))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # All identity headers are empty: no identity is claimed.
        (EMPTY, Reason.NO_IDENTITY),
        (EMPTY[:1], Reason.NO_IDENTITY),
        (("X-authentik-username: \t ", "X-authentik-meta-app:"), Reason.NO_IDENTITY),
        ((*EMPTY, "Remote-User:"), Reason.NO_IDENTITY),
        ((*EMPTY, SECRET), Reason.NO_IDENTITY),
        ((*EMPTY, "Remote-User: admin"), Reason.SPOOFED_USER_HEADER),
        ((*EMPTY, "X-authentik-meta-app: navidrome"), Reason.SPOOFED_USER_HEADER),
        # An empty header is sent once, and an alias stays one.
        ((*EMPTY, "X-authentik-username:"), Reason.IDENTITY_DUPLICATE),
        ((ADA, "X-authentik-username:"), Reason.IDENTITY_DUPLICATE),
        (("X-authentik-groups:", "x-AUTHENTIK-groups:"), Reason.IDENTITY_DUPLICATE),
        ((*EMPTY, "X_authentik_username:"), Reason.HEADER_ALIAS),
        # Beside one that is not empty, an empty name, uid or token counts as absent.
        (("X-authentik-username:", "X-authentik-groups: admins"), Reason.IDENTITY_INCOMPLETE),
        (("X-authentik-username:", "X-authentik-uid: 1"), Reason.IDENTITY_INCOMPLETE),
        (("X-authentik-username:", "X-authentik-jwt: a.b.c"), Reason.IDENTITY_INCOMPLETE),
        ((ADA, "X-authentik-uid:"), Reason.TRUSTED_PEER),
        ((ADA, *EMPTY[1:]), Reason.TRUSTED_PEER),
    ],
)
def test_empty_identity_headers_claim_no_identity(
    fields: tuple[str, ...], expected: Reason
) -> None:
    decision = decided(head("GET /app/ HTTP/1.1", *fields))
    assert decision.outcome.reason is expected
    if expected is Reason.NO_IDENTITY:
        assert reason(*fields, path="/rest/ping") is Reason.NO_IDENTITY
        assert reason(*fields, policy=replace(POLICY, require_identity=True)) is (
            Reason.IDENTITY_REQUIRED
        )
        assert b"uthentik" not in decision.render_head()
        assert users(decision.render_head()) == []
    if expected is Reason.TRUSTED_PEER:
        assert decision.identity is not None
        assert decision.identity.uid is None


def test_an_empty_uid_is_absent_where_accounts_are_bound_by_uid() -> None:
    policy = Policy(whitelist=WHITELIST, required=frozenset({Role.UID, Role.GROUPS}))
    groups = "X-authentik-groups:"
    assert reason(ADA, "X-authentik-uid:", groups, policy=policy) is Reason.IDENTITY_INCOMPLETE
    assert reason(ADA, "X-authentik-uid: 1", policy=policy) is Reason.IDENTITY_INCOMPLETE
    assert reason(ADA, "X-authentik-uid: 1", groups, policy=policy) is Reason.TRUSTED_PEER
    assert reason(*EMPTY, policy=policy) is Reason.NO_IDENTITY


@pytest.mark.parametrize("option", ["X-Authentik-Username", "x-authentik-uid", "Remote-User"])
def test_connection_options_neither_remove_nor_keep_an_identity(option: str) -> None:
    decision = decided(
        head("GET /app/ HTTP/1.1", ADA, "X-authentik-uid: 7", f"Connection: close, {option}")
    )
    assert decision.identity == Identity("ada", uid="7")
    assert users(decision.render_head()) == [b"ada"]


# proofs


@pytest.mark.parametrize(
    ("fields", "expected", "status"),
    [
        ((SECRET,), Reason.PROXY_SECRET, 200),
        (("x-shim-proxy-SECRET: mackerel",), Reason.PROXY_SECRET, 200),
        (("X-Shim-Proxy-Secret: swordfish ",), Reason.PROXY_SECRET, 200),
        ((), Reason.SECRET_MISSING, 401),
        (("X-Shim-Proxy-Secret:",), Reason.SECRET_MISSING, 401),
        (("X-Shim-Proxy-Secret: Swordfish",), Reason.SECRET_MISMATCH, 401),
        (("X-Shim-Proxy-Secret: swordfis",), Reason.SECRET_MISMATCH, 401),
        (("X-Shim-Proxy-Secret: swordfish,mackerel",), Reason.SECRET_MISMATCH, 401),
        (("X-Shim-Proxy-Secret: sw\u00f6rdfish",), Reason.SECRET_MISMATCH, 401),
        ((SECRET, SECRET), Reason.SECRET_MISMATCH, 401),
        ((SECRET, "X-Shim-Proxy-Secret: x"), Reason.SECRET_MISMATCH, 401),
        (("X_Shim_Proxy_Secret: swordfish",), Reason.HEADER_ALIAS, 400),
    ],
)
def test_a_configured_secret_must_accompany_an_identity(
    fields: tuple[str, ...], expected: Reason, status: int
) -> None:
    decision = decided(head("GET /app/ HTTP/1.1", ADA, *fields), policy=PROOF)
    assert (decision.outcome.reason, decision.outcome.status) == (expected, status)
    assert "swordfish" not in str(decision.explain())
    if expected is Reason.PROXY_SECRET:
        assert b"swordfish" not in decision.render_head()


def test_the_secret_is_never_forwarded_to_navidrome() -> None:
    for policy in (POLICY, PROOF):
        for peer in (EDGE, UNTRUSTED):
            decision = decided(head("GET /app/ HTTP/1.1", SECRET), peer, policy)
            assert decision.outcome.reason is Reason.NO_IDENTITY
            assert b"swordfish" not in decision.render_head()


PUBLIC: Mapping[str, tuple[tuple[str, ...], Policy, Reason]] = {
    "by default never": ((ADA,), POLICY, Reason.PUBLIC_PATH),
    "a secret that is not asked for": ((ADA, SECRET), POLICY, Reason.PUBLIC_PATH),
    "proven": ((ADA, SECRET), PROOF, Reason.PROXY_SECRET),
    "without the proof": ((ADA,), PROOF, Reason.PUBLIC_PATH),
    "with a wrong proof": ((ADA, "X-Shim-Proxy-Secret: x"), PROOF, Reason.PUBLIC_PATH),
    "with two proofs": ((ADA, SECRET, SECRET), PROOF, Reason.PUBLIC_PATH),
    "with an alias of the proof": (
        (ADA, "X_Shim_Proxy_Secret: swordfish"),
        PROOF,
        Reason.PUBLIC_PATH,
    ),
    "proven and ambiguous": ((ADA, ADA, SECRET), PROOF, Reason.IDENTITY_DUPLICATE),
    "ambiguous": ((ADA, ADA), POLICY, Reason.PUBLIC_PATH),
    "an alias": (("X_authentik_username: ada",), POLICY, Reason.PUBLIC_PATH),
    "the user header": (("Remote-User: ada",), POLICY, Reason.PUBLIC_PATH),
    "nothing": ((), POLICY, Reason.NO_IDENTITY),
    "a proof that this build can not check": (
        (ADA, SECRET),
        Policy(whitelist=WHITELIST, secrets=(b"swordfish",), public_path_proof=Proof.JWT),
        Reason.PUBLIC_PATH,
    ),
    "a proof that is not set": (
        (ADA, "X-Shim-Proxy-Secret:"),
        Policy(whitelist=WHITELIST, public_path_proof=Proof.SECRET),
        Reason.PUBLIC_PATH,
    ),
}


@pytest.mark.parametrize("case", PUBLIC)
@pytest.mark.parametrize("path", ["/rest/ping", "/REST/ping", "/rest", "/jellyfin/socket"])
def test_a_public_path_carries_an_identity_only_with_the_configured_proof(
    case: str, path: str
) -> None:
    fields, policy, expected = PUBLIC[case]
    decision = decided(head(f"GET {path} HTTP/1.1", *fields), policy=policy)
    assert decision.outcome.reason is expected
    if decision.outcome.verdict is Verdict.STRIPPED:
        assert users(decision.render_head()) == []


@pytest.mark.parametrize(
    "path",
    ["/share/abc", "/SHARE", "/share/img/x", "/app/manifest.webmanifest", "/app/favicon.ico"],
)
@pytest.mark.parametrize("policy", [POLICY, PROOF])
def test_shares_and_the_web_apps_icons_never_carry_an_identity(path: str, policy: Policy) -> None:
    assert reason(ADA, SECRET, path=path, policy=policy) is Reason.PUBLIC_PATH


@pytest.mark.parametrize("path", ["/app/", "/rest/ping", "/_shim/", "/MUSIC/app/", "/share/x"])
def test_no_identity_is_trusted_outside_the_base_path(path: str) -> None:
    policy = Policy(
        whitelist=WHITELIST,
        paths=Paths("/music"),
        secrets=(b"swordfish",),
        public_path_proof=Proof.SECRET,
        admin_groups=frozenset({"admins"}),
    )
    fields = (ADA, SECRET, "X-authentik-groups: admins")
    assert reason(*fields, path=path, policy=policy) is Reason.OUTSIDE_BASE_PATH
    assert reason(path=path, policy=policy) is Reason.NO_IDENTITY
    assert reason(*fields, path="/music/app/", policy=policy) is Reason.PROXY_SECRET


def test_no_identity_is_trusted_while_navidromes_base_path_differs() -> None:
    policy = PROOF.next_version(suspended=True, admin_groups=frozenset({"admins"}))
    fields = (ADA, SECRET, "X-authentik-groups: admins")
    assert reason(*fields, policy=policy) is Reason.BASE_PATH_MISMATCH
    assert reason(*fields, path="/rest/ping", policy=policy) is Reason.BASE_PATH_MISMATCH
    assert reason(*fields, path="/share/x", policy=policy) is Reason.BASE_PATH_MISMATCH
    assert reason(*fields, path="/_shim/", policy=policy) is Reason.NOT_FOUND
    assert reason(policy=policy) is Reason.NO_IDENTITY


# without an identity


@pytest.mark.parametrize("untrusted", [False, True])
@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        ("/app/", (), Reason.IDENTITY_REQUIRED),
        ("/app/", ("Remote-User: ada",), Reason.IDENTITY_REQUIRED),
        ("/rest/ping", (), Reason.NO_IDENTITY),
        ("/share/x", (), Reason.NO_IDENTITY),
        ("/app/manifest.webmanifest", (), Reason.NO_IDENTITY),
        ("/app/apple-touch-icon.png", (), Reason.NO_IDENTITY),
        ("/_shim/", (), Reason.NOT_FOUND),
    ],
)
def test_protected_paths_can_require_an_identity(
    path: str, fields: tuple[str, ...], expected: Reason, untrusted: bool
) -> None:
    policy = Policy(whitelist=WHITELIST, require_identity=True)
    assert reason(*fields, path=path, policy=policy, untrusted=untrusted) is expected


def test_a_trusted_identity_passes_where_one_is_required() -> None:
    policy = Policy(whitelist=WHITELIST, require_identity=True)
    assert reason(ADA, policy=policy) is Reason.TRUSTED_PEER
    assert reason(ADA, policy=policy, untrusted=True) is Reason.IDENTITY_REQUIRED
    assert reason(ADA, path="/rest/ping", policy=policy) is Reason.PUBLIC_PATH
    assert reason(ADA, ADA, policy=policy) is Reason.IDENTITY_DUPLICATE
    suspended = policy.next_version(suspended=True)
    assert reason(ADA, policy=suspended) is Reason.IDENTITY_REQUIRED


# the control plane's pages


@pytest.mark.parametrize(
    ("fields", "policy", "expected"),
    [
        ((ADA, SECRET, "X-authentik-groups: users|admins"), ADMINS, Reason.PROXY_SECRET),
        ((ADA, SECRET, "X-authentik-groups: users"), ADMINS, Reason.NOT_FOUND),
        ((ADA, SECRET, "X-authentik-groups: Admins"), ADMINS, Reason.NOT_FOUND),
        ((ADA, SECRET, "X-authentik-groups: not admins"), ADMINS, Reason.NOT_FOUND),
        ((ADA, SECRET, "X-authentik-groups:"), ADMINS, Reason.NOT_FOUND),
        ((ADA, SECRET), ADMINS, Reason.NOT_FOUND),
        ((SECRET,), ADMINS, Reason.NOT_FOUND),
        ((SECRET, "Remote-User: admin"), ADMINS, Reason.NOT_FOUND),
        ((ADA, SECRET, GROUPS), PROOF, Reason.NOT_FOUND),
        ((ADA, SECRET, "X-authentik-groups:"), PROOF, Reason.NOT_FOUND),
        ((ADA, ADA, SECRET, GROUPS), ADMINS, Reason.NOT_FOUND),
        (
            (ADA, SECRET, "X-authentik-groups: users", "X_authentik_groups: admins"),
            ADMINS,
            Reason.NOT_FOUND,
        ),
        # The proof: a request without it, and a policy that requires none.
        ((ADA, GROUPS), ADMINS, Reason.NOT_FOUND),
        ((ADA, GROUPS), ADMINS.next_version(secrets=()), Reason.NOT_FOUND),
        ((ADA, SECRET, GROUPS), ADMINS.next_version(secrets=()), Reason.NOT_FOUND),
        # The account policy.
        ((ADA, SECRET, GROUPS), FAMILY_ADMINS, Reason.NOT_FOUND),
        ((ADA, SECRET, "X-authentik-groups: admins|family"), FAMILY_ADMINS, Reason.PROXY_SECRET),
        ((ADA, SECRET, GROUPS), ADMINS.next_version(reserved=frozenset({"ada"})), Reason.NOT_FOUND),
        (
            (ADA, SECRET, GROUPS),
            ADMINS.next_version(required=frozenset({Role.UID})),
            Reason.NOT_FOUND,
        ),
    ],
)
def test_the_console_is_for_trusted_admins_only(
    fields: tuple[str, ...], policy: Policy, expected: Reason
) -> None:
    for path in ("/_shim/admin/", "/_shim/devicesx", "/_shim/api/devices", "/_SHIM/metrics"):
        assert reason(*fields, path=path, policy=policy) is expected
        assert reason(*fields, path=path, policy=policy, untrusted=True) is Reason.NOT_FOUND


FAMILY = ADMINS.next_version(allowed_groups=frozenset({"family"}))


@pytest.mark.parametrize(
    ("fields", "policy", "expected"),
    [
        ((ADA, SECRET, "X-authentik-groups: users"), ADMINS, Reason.PROXY_SECRET),
        ((ADA, SECRET), ADMINS, Reason.PROXY_SECRET),
        ((ADA,), ADMINS.next_version(secrets=()), Reason.TRUSTED_PEER),
        ((ADA, SECRET, "X-authentik-groups: users|family"), FAMILY, Reason.PROXY_SECRET),
        # Without an identity that may have an account.
        ((ADA, SECRET, "X-authentik-groups: users"), FAMILY, Reason.NOT_FOUND),
        ((ADA, SECRET, GROUPS), FAMILY, Reason.NOT_FOUND),
        ((ADA, SECRET, GROUPS), ADMINS.next_version(reserved=frozenset({"ada"})), Reason.NOT_FOUND),
        ((ADA, SECRET), ADMINS.next_version(required=frozenset({Role.UID})), Reason.NOT_FOUND),
        ((ADA,), ADMINS, Reason.NOT_FOUND),
        ((ADA, ADA, SECRET), ADMINS, Reason.NOT_FOUND),
        ((SECRET, "Remote-User: ada"), ADMINS, Reason.NOT_FOUND),
        ((SECRET,), ADMINS, Reason.NOT_FOUND),
        ((), ADMINS, Reason.NOT_FOUND),
        # Administrative changes could not be recorded, so nobody signs in.
        ((ADA, SECRET), ADMINS.next_version(audit_available=False), Reason.AUDIT_UNAVAILABLE),
    ],
)
def test_a_persons_own_pages_are_there_for_every_identity_that_may_have_an_account(
    fields: tuple[str, ...], policy: Policy, expected: Reason
) -> None:
    for path in ("/_shim/", "/_shim", "/_SHIM/devices/add", "/_shim/static/x.css"):
        assert reason(*fields, path=path, policy=policy) is expected
        assert reason(*fields, path=path, policy=policy, untrusted=True) is Reason.NOT_FOUND


def test_the_control_pages_get_the_name_once_and_a_proof_of_the_channel() -> None:
    decision = decided(
        head("GET /_shim/api/audit?x=1 HTTP/1.1", ADA, "X-authentik-uid: 7", SECRET, GROUPS),
        policy=ADMINS,
    )
    lines = (
        b"X-Shim-Channel: s3cret\r\nX-Shim-User: %b\r\nX-Shim-Uid: %b\r\nX-Shim-Admin: %b\r\n"
        b"X-Shim-Identity: %b\r\n"
    )
    rendered = decision.render_control_head(ADMINS.paths, lines)
    read = read_by_llhttp(rendered)
    assert read is not None
    assert read.target == b"/api/audit?x=1"
    assert read.values("X-Shim-User") == [b"ada"]
    assert read.values("X-Shim-Uid") == [b"7"]
    assert read.values("X-Shim-Admin") == [b"1"]
    assert json.loads(read.values("X-Shim-Identity")[0])["groups"] == ["admins"]
    assert read.values("X-Shim-Channel") == [b"s3cret"]
    assert read.values("Remote-User") == []
