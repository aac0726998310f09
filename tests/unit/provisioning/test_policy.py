"""The account policy from the settings, as tables of cases."""

from __future__ import annotations

from typing import Literal

import pytest

from shim.navidrome.models import Library, User
from shim.provisioning.models import NOTHING_WRITTEN, LastWritten
from shim.provisioning.policy import (
    AccountPolicy,
    account_policy,
    field_changes,
    is_header_safe,
    last_written,
    usable_email,
)
from shim.settings import load
from shim.trust.identity import Identity

LIBRARIES = (Library(1, "Music", default=True), Library(2, "Family"), Library(3, "2"))


def user(name: str = "alice", *, admin: bool = False, display: str = "Alice") -> User:
    return User("1", name, display, "a@example.com", admin, "t", "t", frozenset({1}), {})


def identity(*groups: str, name: str | None = None, email: str | None = None) -> Identity:
    return Identity("alice", name, email, groups, "u")


def test_the_settings_are_compiled() -> None:
    policy = account_policy(
        load(
            {
                "SHIM_NAVIDROME_ADMIN_USERNAME": "Chief",
                "SHIM_PROTECTED_USERS": "Boss,root",
                "SHIM_NAME_REUSE_DELAY_HOURS": "2",
                "SHIM_PROVISIONING_FAIL_MODE": "open",
            }
        )
    )
    assert policy.reserved == {"navidrome-shim", "chief", "boss", "root"}
    assert policy.name_hold_seconds == 7200 and policy.fail_open
    assert policy.reserves("BOSS") and not policy.reserves("boss2")


@pytest.mark.parametrize(
    ("allowed", "groups", "expected"),
    [
        ((), (), True),
        ((), ("x",), True),
        (("a",), (), False),
        (("a",), ("x",), False),
        (("a", "b"), ("x", "b"), True),
        (("a",), ("A",), False),
    ],
)
def test_allowed_groups(allowed: tuple[str, ...], groups: tuple[str, ...], expected: bool) -> None:
    assert AccountPolicy(allowed_groups=frozenset(allowed)).allows(identity(*groups)) is expected


def test_admin_rights_are_not_managed_without_admin_groups() -> None:
    assert AccountPolicy().admin(identity("admins")) is None
    policy = AccountPolicy(admin_groups=frozenset({"admins"}))
    assert policy.admin(identity("admins")) is True
    assert policy.admin(identity("x")) is False


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (("family",), {2}),
        (("family", "names"), {2, 3}),
        (("ids",), {1, 2}),
        (("x",), {1}),
        ((), {1}),
        (("lost",), {1}),
        (("lost", "family"), {2}),
    ],
)
def test_libraries_by_group(groups: tuple[str, ...], expected: set[int] | None) -> None:
    named: dict[str, tuple[str | int, ...]] = {
        "family": ("Family",),
        "ids": (1, 2),
        "names": ("2",),
        "lost": ("Nowhere",),
    }
    policy = AccountPolicy(library_groups=named)
    assert policy.libraries(identity(*groups), LIBRARIES) == expected
    assert policy.libraries(identity("lost"), LIBRARIES[1:]) == frozenset(), "there is no default"
    assert policy.unknown_libraries(LIBRARIES) == ("Nowhere",)
    assert AccountPolicy().libraries(identity("family"), LIBRARIES) is None


@pytest.mark.parametrize(
    ("setting", "verified", "expected"),
    [
        ("jwt", True, True),
        ("jwt", False, False),
        ("headers", False, True),
        ("off", True, False),
    ],
)
def test_renames(setting: Literal["jwt", "headers", "off"], verified: bool, expected: bool) -> None:
    assert AccountPolicy(follow_renames=setting).follows(verified=verified) is expected


@pytest.mark.parametrize(
    ("link", "admin", "released", "in_admin_group", "allowed"),
    [
        ("none", False, False, True, False),
        ("none", True, False, True, False),
        ("users", False, False, False, True),
        ("users", True, False, False, False),
        ("users", True, False, True, True),
        ("all", True, False, False, True),
        ("none", False, True, False, True),
        ("users", True, True, False, False),
        ("none", True, True, False, False),
        ("none", True, True, True, True),
        ("all", True, True, False, True),
    ],
)
def test_adopting_existing_accounts(
    link: Literal["none", "users", "all"],
    admin: bool,
    released: bool,
    in_admin_group: bool,
    allowed: bool,
) -> None:
    policy = AccountPolicy(link_existing=link, admin_groups=frozenset({"admins"}))
    one = identity("admins") if in_admin_group else identity("music")
    error = policy.link_error(user(admin=admin), one, unlinked=released)
    assert (error is None) is allowed
    assert policy.grants_admin(user(admin=admin), one) is (in_admin_group and not admin)
    if not released and admin and link == "users":
        ungrouped = AccountPolicy(link_existing=link)
        assert ungrouped.link_error(user(admin=True), one, unlinked=False) is not None


@pytest.mark.parametrize(
    ("one", "written", "expected"),
    [
        (identity(), NOTHING_WRITTEN, {}),
        (identity(name="Other"), NOTHING_WRITTEN, {"name": "Other"}),
        (identity(name="Other"), LastWritten("Other"), {}),
        (identity(name="Alice"), LastWritten("Other"), {}),
        (identity(name=""), NOTHING_WRITTEN, {}),
        (identity(email="b@example.com"), NOTHING_WRITTEN, {"email": "b@example.com"}),
        (identity(email="b@example.com"), LastWritten(None, "b@example.com"), {}),
        (identity(email="none"), NOTHING_WRITTEN, {}),
        (identity(email=""), NOTHING_WRITTEN, {}),
    ],
)
def test_a_field_is_written_if_the_provider_changed_it(
    one: Identity, written: LastWritten, expected: dict[str, object]
) -> None:
    assert field_changes(one, user(), written, AccountPolicy()) == expected


def test_rights_always_follow_the_groups() -> None:
    policy = AccountPolicy(admin_groups=frozenset({"admins"}))
    assert field_changes(identity("admins"), user(), NOTHING_WRITTEN, policy) == {"isAdmin": True}
    up = user(admin=True)
    assert field_changes(identity(), up, NOTHING_WRITTEN, policy) == {"isAdmin": False}
    assert field_changes(identity("admins"), up, NOTHING_WRITTEN, policy) == {}


def test_the_last_written_value_is_kept_without_a_new_one() -> None:
    before = LastWritten("Old", "old@example.com")
    assert last_written(identity(), before) == before
    assert last_written(identity(name="New", email="none"), before) == LastWritten(
        "New", "old@example.com"
    )


@pytest.mark.parametrize(
    ("name", "carried"),
    [
        ("alice", True),
        ("with blank", True),
        ("Ünï\U0001f3b5", True),
        ("", False),
        (" alice", False),
        ("alice\t", False),
        ("al\r\nRemote-User: admin", False),
        ("a\x00b", False),
        ("a\x7f", False),
        ("a\n", False),
    ],
)
def test_names_that_are_safe_in_a_header(name: str, carried: bool) -> None:
    assert is_header_safe(name) is carried


@pytest.mark.parametrize(
    ("email", "usable"),
    [("a@b", True), ("a@b@c", False), ("a b@c", False), ("@b", False), ("a", False), (None, False)],
)
def test_emails(email: str | None, usable: bool) -> None:
    assert usable_email(email) == (email if usable else None)
