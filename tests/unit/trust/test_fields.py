"""Header lines: their grammar, and the kind that follows from their name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.trust.fields import (
    Field,
    FieldNames,
    Kind,
    normalize_header_name,
    parse_field,
    parse_line,
)
from shim.trust.identity import Role
from shim.trust.known_headers import USER_HEADERS
from shim.trust.policy import Policy
from shim.trust.reasons import Reason
from shim.trust.rejection import RequestRejected

NAMES = Policy().names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"X-authentik-username", Kind.IDENTITY),
        (b"x-AUTHENTIK-uid", Kind.IDENTITY),
        (b"X-Authentik-Meta-Jwks", Kind.IDENTITY),
        (b"X-authentik-", Kind.IDENTITY),
        (b"X-authentik", Kind.PASS),
        (b"X-authentikusername", Kind.PASS),
        (b"X_authentik_username", Kind.ALIAS),
        (b"X.Authentik.Username", Kind.ALIAS),
        (b"X~Authentik~Username", Kind.ALIAS),
        (b"X+authentik-meta", Kind.ALIAS),
        (b"X-authentik_anything", Kind.ALIAS),
        (b"x!authentik'groups", Kind.ALIAS),
        (b"Remote-User", Kind.USER),
        (b"REMOTE-user", Kind.USER),
        (b"Remote_User", Kind.ALIAS),
        (b"Remote-Users", Kind.PASS),
        (b"X-Shim-Proxy-Secret", Kind.SECRET),
        (b"X_Shim_Proxy_Secret", Kind.ALIAS),
        (b"X_Authentik.Jwt", Kind.ALIAS),
        (b"X-WebAuth-User", Kind.DROP),
        (b"X_WebAuth_User", Kind.DROP),
        (b"x.webauth.user", Kind.DROP),
        (b"X-Forwarded-User", Kind.DROP),
        (b"X_Forwarded_User", Kind.DROP),
        (b"X-Auth-Request-Preferred-Username", Kind.DROP),
        (b"Remote-Groups", Kind.DROP),
        (b"X-Pomerium-Claim-Nickname", Kind.DROP),
        (b"Cf-Access-Jwt-Assertion", Kind.DROP),
        (b"X-Goog-IAP-JWT-Assertion", Kind.DROP),
        (b"Tailscale-User-Login", Kind.DROP),
        (b"X-Vouch-IdP-Claims-Groups", Kind.DROP),
        (b"X-Amzn-Oidc-Data", Kind.DROP),
        (b"OIDC_CLAIM_sub", Kind.DROP),
        (b"Authorization", Kind.PASS),
        (b"X-ND-Client-Unique-Id", Kind.PASS),
        (b"X-ND-Authorization", Kind.TOKEN),
        (b"X-Emby-Authorization", Kind.PASS),
        (b"X-Emby-Token", Kind.TOKEN),
        (b"X-MediaBrowser-Token", Kind.TOKEN),
        (b"X-Forwarded-Port", Kind.FORWARDED_OTHER),
    ],
)
def test_only_the_exact_name_carries_an_identity_and_every_alias_is_found(
    name: bytes, kind: Kind
) -> None:
    assert parse_field(name + b": ada", NAMES).kind is kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"Content-Length", Kind.LENGTH),
        (b"cONTENT-lENGTH", Kind.LENGTH),
        (b"Content_Length", Kind.FRAMING_ALIAS),
        (b"Content.Length", Kind.FRAMING_ALIAS),
        (b"Transfer-Encoding", Kind.CODING),
        (b"Transfer_Encoding", Kind.FRAMING_ALIAS),
        (b"transfer~encoding", Kind.FRAMING_ALIAS),
        (b"Host", Kind.HOST),
        (b"Connection", Kind.CONNECTION),
        (b"Upgrade", Kind.UPGRADE),
        (b"Expect", Kind.EXPECT),
        (b"TE", Kind.DROP),
        (b"Trailer", Kind.DROP),
        (b"Keep-Alive", Kind.DROP),
        (b"Proxy-Connection", Kind.DROP),
        (b"Proxy-Authorization", Kind.DROP),
        (b"HTTP2-Settings", Kind.DROP),
        (b"Contentlength", Kind.PASS),
        (b"Content-Lengths", Kind.PASS),
    ],
)
def test_framing_headers_are_found_by_exact_name_and_their_aliases_are_reported(
    name: bytes, kind: Kind
) -> None:
    assert parse_field(name + b": 1", NAMES).kind is kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"True-Client-IP", Kind.DROP),
        (b"True_Client_IP", Kind.DROP),
        (b"x.real.ip", Kind.DROP),
        (b"X-Real-IP", Kind.DROP),
        (b"CF-Connecting-IP", Kind.DROP),
        (b"X-Client-IP", Kind.DROP),
        (b"X-Cluster-Client-IP", Kind.DROP),
        (b"X-Forwarded-For", Kind.FORWARDED_FOR),
        (b"X_Forwarded_For", Kind.DROP),
        (b"X-Forwarded.Host", Kind.DROP),
        (b"X-Forwarded-Proto", Kind.FORWARDED_PROTO),
        (b"X-Forwarded-Host", Kind.FORWARDED_HOST),
        (b"X-Forwarded-Uri", Kind.FORWARDED_OTHER),
        (b"Forwarded", Kind.FORWARDED),
        (b"Forwarded_", Kind.DROP),
    ],
)
def test_client_address_headers_are_found_under_any_alias(name: bytes, kind: Kind) -> None:
    assert parse_field(name + b": 192.0.2.1", NAMES).kind is kind


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b":",
        b": value",
        b"Name",
        b"Name value",
        b"Name : value",
        b"Name\t: value",
        b" Name: value",
        b"\tfolded",
        b"Na me: value",
        b"Na\x00me: value",
        b"N\xc3\xa4me: value",
        b"Name(): value",
        b'"Name": value',
        b"Name: va\x00lue",
        b"Name: va\nlue",
        b"Name: va\rlue",
        b"Name: value\r",
        b"Name: value\x0b",
        b"Name: \x7f",
        b"Name: \x1b[31m",
    ],
)
def test_a_line_is_a_token_a_colon_and_a_value_without_controls(line: bytes) -> None:
    with pytest.raises(RequestRejected) as rejection:
        parse_field(line, NAMES)
    assert rejection.value.reason is Reason.MALFORMED_HEAD


@pytest.mark.parametrize(
    ("sent", "value"),
    [
        (b"Name:value", b"value"),
        (b"Name: value", b"value"),
        (b"Name: \t value \t ", b"value"),
        (b"Name:", b""),
        (b"Name: \t", b""),
        (b"Name: a  b\tc", b"a  b\tc"),
        (b"Name: a:b: c", b"a:b: c"),
        (b"Name: \xff\x80", b"\xff\x80"),
        (b"Name: \xa0x\xa0", b"\xa0x\xa0"),
    ],
)
def test_blanks_at_both_ends_are_not_part_of_a_value(sent: bytes, value: bytes) -> None:
    field = parse_field(sent, NAMES)
    assert field.value == value
    assert field.wire == b"Name: " + value + b"\r\n"
    assert field.sent_name == "Name"


def test_a_normalized_name_is_lower_case_with_dashes_for_other_characters() -> None:
    assert normalize_header_name(b"X_Authentik.User~Name+9") == b"x-authentik-user-name-9"
    assert (
        normalize_header_name(bytes(range(256))).strip(b"-abcdefghijklmnopqrstuvwxyz0123456789")
        == b""
    )


@pytest.mark.parametrize(
    ("sent", "value"),
    [
        (b"X-authentik-username: ada ", "ada"),
        (b"X-authentik-email:", ""),
        (b"X-authentik-name: \xc3\x84da", "\u00c4da"),
        (b"X-authentik-uid: ", ""),
        (b"X-authentik-username: \xff", Reason.IDENTITY_INVALID),
    ],
)
def test_the_value_of_an_identity_header_is_parsed_with_its_line(
    sent: bytes, value: str | Reason
) -> None:
    field = parse_field(sent, NAMES)
    assert field.kind is Kind.IDENTITY
    if isinstance(field.parsed_value, RequestRejected):
        assert field.parsed_value.reason is value
    else:
        assert field.parsed_value == value


def test_the_settings_can_name_other_headers() -> None:
    roles = {Role.USERNAME: "Tailscale-User-Login", Role.GROUPS: "Remote_Groups"}
    names = FieldNames(roles, ("X-Auth.", "Tailscale-"), "X-WEBAUTH-USER", "X-Edge")
    kinds = {
        b"tailscale-user-login": (Kind.IDENTITY, Role.USERNAME),
        b"tailscale_user_login": (Kind.ALIAS, None),
        b"tailscale-user-name": (Kind.IDENTITY, None),
        b"remote_groups": (Kind.IDENTITY, Role.GROUPS),
        b"remote-groups": (Kind.ALIAS, None),
        b"x-auth-request": (Kind.IDENTITY, None),
        b"x-webauth-user": (Kind.USER, None),
        b"x_webauth_user": (Kind.ALIAS, None),
        b"x-edge": (Kind.SECRET, None),
        b"x.edge": (Kind.ALIAS, None),
        b"x-authentik-username": (Kind.DROP, None),
        b"remote-user": (Kind.DROP, None),
    }
    assert {name: names.classify(name) for name in kinds} == kinds


@pytest.mark.parametrize("name", USER_HEADERS)
def test_every_known_user_header_is_removed_unless_the_settings_read_it(name: str) -> None:
    unread = FieldNames({Role.USERNAME: "X-Login"}, (), "X-Navidrome-User", "X-Edge")
    lowered = name.lower().encode()
    assert unread.classify(lowered) == (Kind.DROP, None)
    assert unread.classify(lowered.replace(b"-", b"_")) == (Kind.DROP, None)
    read = FieldNames({Role.USERNAME: name}, (), "X-Navidrome-User", "X-Edge")
    assert read.classify(lowered) == (Kind.IDENTITY, Role.USERNAME)


def test_a_header_that_carries_an_identity_is_one_whatever_else_its_name_means() -> None:
    names = FieldNames({Role.USERNAME: "X-Forwarded-User"}, ("X-Real-",), "Forwarded", "TE")
    assert names.classify(b"x-forwarded-user") == (Kind.IDENTITY, Role.USERNAME)
    assert names.classify(b"x-real-ip") == (Kind.IDENTITY, None)
    assert names.classify(b"forwarded") == (Kind.USER, None)
    assert names.classify(b"te") == (Kind.SECRET, None)


def test_a_common_name_gives_the_same_result_as_any_other_case() -> None:
    assert NAMES.common_names
    for name, lowered in NAMES.common_names.items():
        usual, unusual = (
            parse_field(name + b": v", NAMES),
            parse_field(lowered.upper() + b": v", NAMES),
        )
        assert (usual.kind, usual.name, usual.value) == (unusual.kind, unusual.name, unusual.value)
        assert NAMES.classify(lowered) == (Kind.PASS, None)


def test_a_common_name_that_the_policy_reads_is_not_treated_as_common() -> None:
    names = FieldNames({Role.USERNAME: "Referer"}, ("X-Requested-",), "Priority", "Pragma")
    assert not {b"Referer", b"X-Requested-With", b"Priority", b"Pragma"} & set(names.common_names)
    assert parse_field(b"Referer: ada", names).role is Role.USERNAME


_VALUE_PIECES = st.sampled_from(
    [
        b"",
        b" ",
        b"\t",
        b"a",
        b"jwt=1",
        b";",
        b":",
        b": ",
        b"\r",
        b"\n",
        b"\0",
        b"\x7f",
        b"\x80",
        b"\xff",
    ]
)


@settings(deadline=None)
@given(
    st.sampled_from(
        [b"Cookie", b"cookie", b"User-Agent", b"Accept", b"ACCEPT", b"Host", b"X-Other"]
    ),
    st.lists(_VALUE_PIECES, max_size=5).map(b"".join),
    st.sampled_from([b":", b": ", b":  ", b":\t"]),
)
def test_the_fast_path_for_frequent_headers_equals_the_full_parser(
    name: bytes, value: bytes, separator: bytes
) -> None:
    line = name + separator + value
    assert outcome(parse_line, line + b"\r") == outcome(parse_field, line)


def outcome(read: Callable[[bytes, FieldNames], Field], line: bytes) -> object:
    try:
        field = read(line, NAMES)
    except RequestRejected as rejection:
        return rejection.reason, rejection.detail
    return field.kind, field.name, field.value, field.wire, field.forward_line
