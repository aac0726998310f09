"""Matching of identities and accounts: bindings, claims by name, renames, reserved names."""

from __future__ import annotations

import pytest

from shim.audit.events import Severity
from shim.audit.events.provisioning import (
    AccountChanged,
    AccountDeniedEvent,
    AccountLinked,
    AccountLocked,
    AccountReadmitted,
)
from shim.trust.reasons import Reason
from tests.support.harness import VERIFIED, Harness, person

CONFLICT = Reason.IDENTITY_CONFLICT


async def test_a_name_with_another_uid_is_a_conflict(harness: Harness) -> None:
    await harness.start()
    await harness.request(person("alice"))
    assert await harness.reason(person("ALICE", uid="stranger")) is CONFLICT
    [refused] = harness.recorded(AccountDeniedEvent)
    assert (refused.user, refused.uid, refused.request_id) == ("ALICE", "stranger", "r-1")
    assert await harness.request(person("alice")) == "alice"


@pytest.mark.parametrize("name", ["navidrome-shim", "Navidrome-SHIM", "boss", "BOSS"])
async def test_a_reserved_account_is_never_matched(harness: Harness, name: str) -> None:
    await harness.start(PROTECTED_USERS="boss", LINK_EXISTING="all")
    await harness.create("boss", isAdmin=True)
    assert await harness.reason(person(name)) is Reason.RESERVED_ACCOUNT


@pytest.mark.parametrize(
    ("link", "admin", "expected"),
    [
        ("none", False, CONFLICT),
        ("none", True, CONFLICT),
        ("users", False, "old"),
        ("users", True, CONFLICT),
        ("all", False, "old"),
        ("all", True, "old"),
    ],
)
async def test_an_existing_account_is_claimed_by_the_settings(
    harness: Harness, link: str, admin: bool, expected: object
) -> None:
    await harness.start(LINK_EXISTING=link)
    await harness.create("old", "known", isAdmin=admin, email="old@example.com")
    assert await harness.reason(person("OLD", display="New Name")) == expected
    user = await harness.user("old")
    assert user["isAdmin"] is admin
    if expected is CONFLICT:
        assert user["name"] == "old" and await harness.accepts_password("old", "known")
        assert not harness.recorded(AccountLinked)
    else:
        assert (user["name"], user["email"]) == ("New Name", "old@example.com")
        assert await harness.accepts_password("old", "known"), "the first link changes no password"
        [linked] = harness.recorded(AccountLinked)
        assert linked.credentials_kept and linked.severity is Severity.WARNING
        assert not harness.recorded(AccountLocked) and not harness.recorded(AccountReadmitted)


async def test_a_first_link_preserves_tokens_and_the_next_one_voids_them(harness: Harness) -> None:
    await harness.create_first()
    await harness.confirm_new()
    await harness.create("old", "known")
    await harness.start()
    token = await harness.login("old", "known")
    assert harness.accepts_token(token)
    assert await harness.request(person("old")) == "old"
    assert harness.accepts_token(token) and await harness.accepts_password("old", "known")
    assert harness.accounts.gate.may_continue(token.user_id, None, token.issued_at)
    bindings = harness.accounts.service.bindings
    binding = bindings.by_uid("uid-of-old")
    assert binding is not None
    await bindings.put(binding.unlinked())
    assert await harness.request(person("old", uid="other")) == "old"
    assert not harness.accepts_token(token) and not await harness.accepts_password("old", "known")
    assert [event.credentials_kept for event in harness.recorded(AccountLinked)] == [True, False]


async def test_a_link_that_makes_an_admin_voids_password_and_tokens(harness: Harness) -> None:
    await harness.create_first()
    await harness.confirm_new()
    await harness.create("old", "known")
    await harness.start(ADMIN_GROUPS="admins")
    token = await harness.login("old", "known")
    assert await harness.request(person("old", "admins")) == "old"
    assert (await harness.user("old"))["isAdmin"] is True
    assert not harness.accepts_token(token) and not await harness.accepts_password("old", "known")
    [linked] = harness.recorded(AccountLinked)
    assert not linked.credentials_kept


async def test_an_admins_account_is_claimed_by_a_member_of_the_admin_groups(
    harness: Harness,
) -> None:
    await harness.start(ADMIN_GROUPS="admins", PROTECTED_USERS="boss")
    for name in ("old", "boss"):
        await harness.create(name, "known", isAdmin=True)
    assert await harness.reason(person("old", "music")) is CONFLICT
    assert await harness.reason(person("boss", "admins")) is Reason.RESERVED_ACCOUNT
    assert await harness.request(person("old", "admins")) == "old"
    assert await harness.reason(person("old", "admins", uid="other")) is CONFLICT
    [linked] = harness.recorded(AccountLinked)
    assert linked.severity is Severity.WARNING and linked.admin and linked.notes
    assert (await harness.user("old"))["isAdmin"] is True and await harness.accepts_password(
        "old", "known"
    )


async def test_an_account_with_an_empty_password_gets_a_new_one_when_it_is_linked(
    harness: Harness,
) -> None:
    await harness.start()
    await harness.create("old", "")
    assert await harness.request(person("old")) == "old"
    assert not await harness.accepts_password("old", "")


async def test_a_user_renamed_at_the_provider_keeps_the_account(harness: Harness) -> None:
    await harness.start(FOLLOW_RENAMES="headers")
    await harness.request(person("alice", uid="u"))
    before = await harness.user("alice")
    assert await harness.request(person("alicia", uid="u")) == "alicia"
    users = await harness.users()
    assert list(users) == ["alicia"] and users["alicia"]["id"] == before["id"]
    assert "userName: alice → alicia" in harness.recorded(AccountChanged)[-1].changes
    assert await harness.request(person("alice", uid="u")) == "alice"


async def test_a_rename_is_adopted_by_the_settings(harness: Harness) -> None:
    await harness.start()
    await harness.request(person("alice", uid="u"))
    assert await harness.reason(person("alicia", uid="u")) is Reason.RENAME_NOT_FOLLOWED
    assert await harness.request(person("alicia", uid="u"), VERIFIED) == "alicia"
    await harness.restart(FOLLOW_RENAMES="off")
    assert await harness.reason(person("alison", uid="u"), VERIFIED) is Reason.RENAME_NOT_FOLLOWED
    assert list(await harness.users()) == ["alicia"]


async def test_a_rename_to_a_taken_name_is_a_conflict(harness: Harness) -> None:
    await harness.start(FOLLOW_RENAMES="headers", LINK_EXISTING="all")
    await harness.request(person("alice"))
    await harness.request(person("bob"))
    await harness.create("carol")
    assert await harness.reason(person("Bob", uid="uid-of-alice")) is CONFLICT
    assert await harness.reason(person("Carol", uid="uid-of-alice")) is CONFLICT
    assert sorted(await harness.users()) == ["alice", "bob", "carol"]


async def test_a_freed_name_is_held(harness: Harness) -> None:
    await harness.start(FOLLOW_RENAMES="headers")
    await harness.request(person("alice", uid="u"))
    await harness.request(person("alicia", uid="u"))
    assert await harness.reason(person("Alice", uid="v")) is Reason.NAME_HELD
    await harness.restart()
    assert await harness.reason(person("alice", uid="v")) is Reason.NAME_HELD
    await harness.restart(FOLLOW_RENAMES="headers", NAME_REUSE_DELAY_HOURS="0")
    await harness.request(person("ally", uid="u"))
    assert await harness.request(person("alicia", uid="v")) == "alicia"


async def test_the_name_is_forwarded_as_navidrome_stores_it(harness: Harness) -> None:
    await harness.start(LINK_EXISTING="users")
    await harness.create("MiXed")
    assert await harness.request(person("mixed")) == "MiXed"


async def test_a_name_that_is_not_safe_in_a_header_is_never_forwarded(harness: Harness) -> None:
    await harness.start()
    await harness.request(person("alice"))
    await harness.change("alice", userName="al\r\nRemote-User: admin")
    await harness.restart()
    assert await harness.reason(person("alice")) is CONFLICT
