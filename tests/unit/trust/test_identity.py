"""Decoding of header values to text: valid and invalid values."""

from __future__ import annotations

import pytest

from shim.trust.identity import Role, decode_name, parse_value, split_groups
from shim.trust.reasons import Reason
from shim.trust.rejection import RequestRejected

TEXTS = [Role.USERNAME, Role.NAME, Role.EMAIL, Role.GROUPS, Role.UID, Role.JWT]


@pytest.mark.parametrize("role", TEXTS)
@pytest.mark.parametrize(
    "value",
    [
        b"\xff",
        b"\xc3",
        b"\xc0\xae",  # an overlong dot
        b"\xed\xa0\x80",  # half a surrogate pair
        b"a\x00b",
        b"a\rb",
        b"a\nb",
        b"a\tb",
        b"a\x1bb",
        b"a\x7fb",
        "a\u0085b".encode(),  # NEL, which some parsers take for a line end
        "a\u2028b".encode(),
        "a\u2029b".encode(),
        "a\u009fb".encode(),
        "\u00a0ada".encode(),  # blanks that HTTP doesn't know
        "ada\u3000".encode(),
        b" ada",
    ],
)
def test_a_value_that_is_not_clean_utf8_is_invalid(role: Role, value: bytes) -> None:
    with pytest.raises(RequestRejected) as rejection:
        parse_value(role, value)
    assert rejection.value.reason is Reason.IDENTITY_INVALID
    assert role.name.lower() in rejection.value.detail


@pytest.mark.parametrize("role", TEXTS)
@pytest.mark.parametrize("text", ["a", "ada lovelace", "\u00c4da", "\U0001f3b5", "a@b", "a|b"])
def test_clean_text_is_unchanged(role: Role, text: str) -> None:
    assert parse_value(role, text.encode()) == text


@pytest.mark.parametrize(
    ("role", "limit"),
    [
        (Role.USERNAME, 255),
        (Role.UID, 255),
        (Role.EMAIL, 320),
        (Role.NAME, 1024),
    ],
)
def test_every_value_has_a_length_limit_in_characters(role: Role, limit: int) -> None:
    assert parse_value(role, ("\u00e9" * limit).encode()) == "\u00e9" * limit
    with pytest.raises(RequestRejected):
        parse_value(role, b"e" * (limit + 1))


@pytest.mark.parametrize("role", [Role.GROUPS, Role.JWT])
def test_groups_and_tokens_may_be_as_long_as_a_head(role: Role) -> None:
    assert parse_value(role, b"e" * 60_000) == "e" * 60_000


@pytest.mark.parametrize("control", "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
def test_a_user_name_must_not_contain_bidirectional_controls(control: str) -> None:
    text = f"a{control}b".encode()
    with pytest.raises(RequestRejected, match="bidirectional"):
        parse_value(Role.USERNAME, text)
    assert parse_value(Role.NAME, text) == text.decode()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (b"Ada Lovelace", "Ada Lovelace"),
        ("Jörg".encode(), "Jörg"),
        (b"=?utf-8?q?J=C3=B6rg_M=C3=BCller?=", "Jörg Müller"),
        (b"=?UTF-8?B?SsO2cmc=?=", "Jörg"),
        (b"=?iso-8859-1?Q?J=F6rg?=", "Jörg"),
        (b"=?utf-8*de?q?J=C3=B6rg?=", "Jörg"),
        (b"=?utf-8?q?J=C3=B6?= \t =?utf-8?q?rg?= =?us-ascii?q?_M?=", "Jörg M"),
        (b"Dr. =?utf-8?q?J=C3=B6rg?= M", "Dr. Jörg M"),
        # Decoded once.
        (b"=?utf-8?q?=3D=3Futf-8=3Fq=3Fx=3F=3D?=", "=?utf-8?q?x?="),
        (b"J%C3%B6rg", "J%C3%B6rg"),
        # Not an encoded word.
        (b"=?x", "=?x"),
        (b"a =?utf-8?x?b?= c", "a =?utf-8?x?b?= c"),
    ],
)
def test_encoded_words_of_a_display_name_are_decoded(value: bytes, name: str) -> None:
    assert decode_name(value, percent=False).decode() == name


@pytest.mark.parametrize(
    "value",
    [b"=?utf-8?q?=FF?=", b"=?utf-8?b?SsO2cmc?=", b"=?utf-7?q?x?=", b"=?x?q?x?=", b"x" * 12_289],
)
def test_an_encoded_word_that_cannot_be_decoded_is_rejected(value: bytes) -> None:
    with pytest.raises(RequestRejected):
        decode_name(value, percent=False)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (b"J%C3%B6rg%20M", "Jörg M"),
        (b"J%25C3", "J%C3"),
        (b"100%", "100%"),
        (b"=?utf-8?q?x?=", "=?utf-8?q?x?="),
        ("Jörg".encode(), "Jörg"),
    ],
)
def test_a_display_name_can_be_percent_encoded(value: bytes, name: str) -> None:
    assert decode_name(value, percent=True).decode() == name


@pytest.mark.parametrize("role", TEXTS)
def test_an_empty_value_is_valid(role: Role) -> None:
    assert parse_value(role, b"") == ""


@pytest.mark.parametrize(
    ("text", "separator", "groups"),
    [
        ("", "|", ()),
        ("|", "|", ()),
        ("a", "|", ("a",)),
        ("a|b", "|", ("a", "b")),
        (" a | b |", "|", ("a", "b")),
        ("a,b|c", "|", ("a,b", "c")),
        ("a,b|c", ",", ("a", "b|c")),
        ("a::b", "::", ("a", "b")),
    ],
)
def test_groups_are_split_at_the_configured_separator(
    text: str, separator: str, groups: tuple[str, ...]
) -> None:
    assert split_groups(text, separator) == groups


def test_more_than_2048_groups_are_rejected() -> None:
    assert len(split_groups("|".join(["a"] * 2048), "|")) == 2048
    with pytest.raises(RequestRejected, match="groups"):
        split_groups("|".join(["a"] * 2049), "|")
