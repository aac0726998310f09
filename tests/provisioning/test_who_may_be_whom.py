"""Which account an identity may have: bindings, claims by name, renames, reserved names."""

from __future__ import annotations

import pytest

from shim.audit.provisioning_events import (
    AccountChanged,
    AccountLinked,
    AccountLocked,
    AccountRefused,
)
from shim.trust.reasons import Reason
from tests.provisioning.world import VERIFIED, World, person

CONFLICT = Reason.IDENTITY_CONFLICT


async def test_a_name_that_comes_with_another_uid_is_a_conflict(world: World) -> None:
    await world.start()
    await world.ask(person("alice"))
    assert await world.reason(person("ALICE", uid="stranger")) is CONFLICT
    [refused] = world.told(AccountRefused)
    assert (refused.name, refused.uid, refused.request_id) == ("ALICE", "stranger", "r-1")
    assert await world.ask(person("alice")) == "alice"


@pytest.mark.parametrize("name", ["navidrome-shim", "Navidrome-SHIM", "boss", "BOSS"])
async def test_a_reserved_account_is_nobodys(world: World, name: str) -> None:
    await world.start(PROTECTED_USERS="boss", LINK_EXISTING="all")
    await world.make("boss", isAdmin=True)
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
async def test_an_account_that_was_there_is_claimed_as_the_settings_allow(
    world: World, link: str, admin: bool, expected: object
) -> None:
    await world.start(LINK_EXISTING=link)
    await world.make("old", "known", isAdmin=admin, email="old@example.com")
    assert await world.reason(person("OLD", display="New Name")) == expected
    user = await world.user("old")
    assert user["isAdmin"] is admin
    if expected is CONFLICT:
        assert user["name"] == "old" and await world.opens("old", "known")
        assert not world.told(AccountLinked)
    else:
        assert (user["name"], user["email"]) == ("New Name", "old@example.com")
        assert not await world.opens("old", "known")
        assert not await world.opens("old", "")
        assert len(world.told(AccountLinked)) == 1
        assert len(world.told(AccountLocked)) == 1


async def test_a_person_renamed_at_the_provider_keeps_the_account(world: World) -> None:
    await world.start(FOLLOW_RENAMES="headers")
    await world.ask(person("alice", uid="u"))
    before = await world.user("alice")
    assert await world.ask(person("alicia", uid="u")) == "alicia"
    users = await world.users()
    assert list(users) == ["alicia"] and users["alicia"]["id"] == before["id"]
    assert "userName: alice → alicia" in world.told(AccountChanged)[-1].changes
    assert await world.ask(person("alice", uid="u")) == "alice"


async def test_a_rename_is_followed_as_the_settings_allow(world: World) -> None:
    await world.start()
    await world.ask(person("alice", uid="u"))
    assert await world.reason(person("alicia", uid="u")) is Reason.RENAME_NOT_FOLLOWED
    assert await world.ask(person("alicia", uid="u"), VERIFIED) == "alicia"
    await world.restart(FOLLOW_RENAMES="off")
    assert await world.reason(person("alison", uid="u"), VERIFIED) is Reason.RENAME_NOT_FOLLOWED
    assert list(await world.users()) == ["alicia"]


async def test_a_rename_to_a_taken_name_is_a_conflict(world: World) -> None:
    await world.start(FOLLOW_RENAMES="headers", LINK_EXISTING="all")
    await world.ask(person("alice"))
    await world.ask(person("bob"))
    await world.make("carol")
    assert await world.reason(person("Bob", uid="uid-of-alice")) is CONFLICT
    assert await world.reason(person("Carol", uid="uid-of-alice")) is CONFLICT
    assert sorted(await world.users()) == ["alice", "bob", "carol"]


async def test_a_freed_name_rests(world: World) -> None:
    await world.start(FOLLOW_RENAMES="headers")
    await world.ask(person("alice", uid="u"))
    await world.ask(person("alicia", uid="u"))
    assert await world.reason(person("Alice", uid="v")) is Reason.NAME_HELD
    await world.restart()
    assert await world.reason(person("alice", uid="v")) is Reason.NAME_HELD
    await world.restart(FOLLOW_RENAMES="headers", NAME_REST_HOURS="0")
    await world.ask(person("ally", uid="u"))
    assert await world.ask(person("alicia", uid="v")) == "alicia"


async def test_the_name_is_carried_as_navidrome_stores_it(world: World) -> None:
    await world.start(LINK_EXISTING="users")
    await world.make("MiXed")
    assert await world.ask(person("mixed")) == "MiXed"


async def test_a_name_that_no_header_carries_is_never_handed_on(world: World) -> None:
    await world.start()
    await world.ask(person("alice"))
    await world.change("alice", userName="al\r\nRemote-User: admin")
    await world.restart()
    assert await world.reason(person("alice")) is CONFLICT
