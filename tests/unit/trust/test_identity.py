"""The border between bytes and text: what is a name, and what is none."""

from __future__ import annotations

import pytest

from shim.trust.identity import Role, read_text, split_groups
from shim.trust.reasons import Reason
from shim.trust.refusal import Refused

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
        "a\u0085b".encode(),  # NEL, a line end to some
        "a\u2028b".encode(),
        "a\u2029b".encode(),
        "a\u009fb".encode(),
        "\u00a0ada".encode(),  # blanks that HTTP doesn't know
        "ada\u3000".encode(),
        b" ada",
    ],
)
def test_what_is_no_clean_utf8_is_no_value(role: Role, value: bytes) -> None:
    with pytest.raises(Refused) as refused:
        read_text(role, value)
    assert refused.value.reason is Reason.IDENTITY_INVALID
    assert role.name.lower() in refused.value.detail


@pytest.mark.parametrize("role", TEXTS)
@pytest.mark.parametrize("text", ["a", "ada lovelace", "\u00c4da", "\U0001f3b5", "a@b", "a|b"])
def test_clean_text_is_read_as_it_is(role: Role, text: str) -> None:
    assert read_text(role, text.encode()) == text


@pytest.mark.parametrize(
    ("role", "most"),
    [
        (Role.USERNAME, 255),
        (Role.UID, 255),
        (Role.EMAIL, 320),
        (Role.NAME, 1024),
        (Role.GROUPS, 16384),
    ],
)
def test_every_value_has_a_bound_in_characters(role: Role, most: int) -> None:
    assert read_text(role, ("\u00e9" * most).encode()) == "\u00e9" * most
    with pytest.raises(Refused):
        read_text(role, b"e" * (most + 1))


@pytest.mark.parametrize("role", [Role.USERNAME, Role.UID])
def test_who_somebody_is_may_not_be_empty(role: Role) -> None:
    with pytest.raises(Refused):
        read_text(role, b"")


@pytest.mark.parametrize("role", [Role.NAME, Role.EMAIL, Role.GROUPS])
def test_what_describes_somebody_may_be_empty(role: Role) -> None:
    assert read_text(role, b"") == ""


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
def test_groups_are_split_where_the_settings_say(
    text: str, separator: str, groups: tuple[str, ...]
) -> None:
    assert split_groups(text, separator) == groups


def test_more_than_2048_groups_are_rejected() -> None:
    assert len(split_groups("|".join(["a"] * 2048), "|")) == 2048
    with pytest.raises(Refused, match="groups"):
        split_groups("|".join(["a"] * 2049), "|")
