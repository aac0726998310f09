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
from tests.support.world import VERIFIED, World, person

CONFLICT = Reason.IDENTITY_CONFLICT


async def test_a_name_with_another_uid_is_a_conflict(world: World) -> None:
    await world.start()
    await world.request(person("alice"))
    assert await world.reason(person("ALICE", uid="stranger")) is CONFLICT
    [refused] = world.recorded(AccountDeniedEvent)
    assert (refused.user, refused.uid, refused.request_id) == ("ALICE", "stranger", "r-1")
    assert await world.request(person("alice")) == "alice"


@pytest.mark.parametrize("name", ["navidrome-shim", "Navidrome-SHIM", "boss", "BOSS"])
async def test_a_reserved_account_is_never_matched(world: World, name: str) -> None:
    await world.start(PROTECTED_USERS="boss", LINK_EXISTING="all")
    await world.create("boss", isAdmin=True)
    assert await world.reason(person(name)) is Reason.RESERVED_ACCOUNT


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
    world: World, link: str, admin: bool, expected: object
) -> None:
    await world.start(LINK_EXISTING=link)
    await world.create("old", "known", isAdmin=admin, email="old@example.com")
    assert await world.reason(person("OLD", display="New Name")) == expected
    user = await world.user("old")
    assert user["isAdmin"] is admin
    if expected is CONFLICT:
        assert user["name"] == "old" and await world.opens("old", "known")
        assert not world.recorded(AccountLinked)
    else:
        assert (user["name"], user["email"]) == ("New Name", "old@example.com")
        assert await world.opens("old", "known"), "the first link changes no password"
        [linked] = world.recorded(AccountLinked)
        assert linked.credentials_kept and linked.severity is Severity.WARNING
        assert not world.recorded(AccountLocked) and not world.recorded(AccountReadmitted)


async def test_a_first_link_preserves_tokens_and_the_next_one_voids_them(world: World) -> None:
    await world.create_first()
    await world.confirm_new()
    await world.create("old", "known")
    await world.start()
    token = await world.login("old", "known")
    assert world.passes(token)
    assert await world.request(person("old")) == "old"
    assert world.passes(token) and await world.opens("old", "known")
    assert world.accounts.gate.may_continue(token.user_id, None, token.issued_at)
    bindings = world.accounts.service.bindings
    binding = bindings.by_uid("uid-of-old")
    assert binding is not None
    await bindings.put(binding.unlinked())
    assert await world.request(person("old", uid="other")) == "old"
    assert not world.passes(token) and not await world.opens("old", "known")
    assert [event.credentials_kept for event in world.recorded(AccountLinked)] == [True, False]


async def test_a_link_that_makes_an_admin_voids_password_and_tokens(world: World) -> None:
    await world.create_first()
    await world.confirm_new()
    await world.create("old", "known")
    await world.start(ADMIN_GROUPS="admins")
    token = await world.login("old", "known")
    assert await world.request(person("old", "admins")) == "old"
    assert (await world.user("old"))["isAdmin"] is True
    assert not world.passes(token) and not await world.opens("old", "known")
    [linked] = world.recorded(AccountLinked)
    assert not linked.credentials_kept


async def test_an_admins_account_is_claimed_by_a_member_of_the_admin_groups(world: World) -> None:
    await world.start(ADMIN_GROUPS="admins", PROTECTED_USERS="boss")
    for name in ("old", "boss"):
        await world.create(name, "known", isAdmin=True)
    assert await world.reason(person("old", "music")) is CONFLICT
    assert await world.reason(person("boss", "admins")) is Reason.RESERVED_ACCOUNT
    assert await world.request(person("old", "admins")) == "old"
    assert await world.reason(person("old", "admins", uid="other")) is CONFLICT
    [linked] = world.recorded(AccountLinked)
    assert linked.severity is Severity.WARNING and linked.admin and linked.notes
    assert (await world.user("old"))["isAdmin"] is True and await world.opens("old", "known")


async def test_an_account_with_an_empty_password_gets_a_new_one_when_it_is_linked(
    world: World,
) -> None:
    await world.start()
    await world.create("old", "")
    assert await world.request(person("old")) == "old"
    assert not await world.opens("old", "")


async def test_a_user_renamed_at_the_provider_keeps_the_account(world: World) -> None:
    await world.start(FOLLOW_RENAMES="headers")
    await world.request(person("alice", uid="u"))
    before = await world.user("alice")
    assert await world.request(person("alicia", uid="u")) == "alicia"
    users = await world.users()
    assert list(users) == ["alicia"] and users["alicia"]["id"] == before["id"]
    assert "userName: alice → alicia" in world.recorded(AccountChanged)[-1].changes
    assert await world.request(person("alice", uid="u")) == "alice"


async def test_a_rename_is_adopted_by_the_settings(world: World) -> None:
    await world.start()
    await world.request(person("alice", uid="u"))
    assert await world.reason(person("alicia", uid="u")) is Reason.RENAME_NOT_FOLLOWED
    assert await world.request(person("alicia", uid="u"), VERIFIED) == "alicia"
    await world.restart(FOLLOW_RENAMES="off")
    assert await world.reason(person("alison", uid="u"), VERIFIED) is Reason.RENAME_NOT_FOLLOWED
    assert list(await world.users()) == ["alicia"]


async def test_a_rename_to_a_taken_name_is_a_conflict(world: World) -> None:
    await world.start(FOLLOW_RENAMES="headers", LINK_EXISTING="all")
    await world.request(person("alice"))
    await world.request(person("bob"))
    await world.create("carol")
    assert await world.reason(person("Bob", uid="uid-of-alice")) is CONFLICT
    assert await world.reason(person("Carol", uid="uid-of-alice")) is CONFLICT
    assert sorted(await world.users()) == ["alice", "bob", "carol"]


async def test_a_freed_name_is_held(world: World) -> None:
    await world.start(FOLLOW_RENAMES="headers")
    await world.request(person("alice", uid="u"))
    await world.request(person("alicia", uid="u"))
    assert await world.reason(person("Alice", uid="v")) is Reason.NAME_HELD
    await world.restart()
    assert await world.reason(person("alice", uid="v")) is Reason.NAME_HELD
    await world.restart(FOLLOW_RENAMES="headers", NAME_REUSE_DELAY_HOURS="0")
    await world.request(person("ally", uid="u"))
    assert await world.request(person("alicia", uid="v")) == "alicia"


async def test_the_name_is_forwarded_as_navidrome_stores_it(world: World) -> None:
    await world.start(LINK_EXISTING="users")
    await world.create("MiXed")
    assert await world.request(person("mixed")) == "MiXed"


async def test_a_name_that_is_not_safe_in_a_header_is_never_forwarded(world: World) -> None:
    await world.start()
    await world.request(person("alice"))
    await world.change("alice", userName="al\r\nRemote-User: admin")
    await world.restart()
    assert await world.reason(person("alice")) is CONFLICT
