"""Rights follow groups, denied users are locked out, and unmanaged rights are unchanged."""

from __future__ import annotations

from dataclasses import replace

from shim.audit.events.provisioning import AccountChanged, AccountDemotionSkipped, AccountLocked
from shim.provisioning.models import AuditContext
from shim.trust.reasons import Reason
from tests.support.world import World, person


async def test_a_user_without_an_allowed_group_gets_no_account(world: World) -> None:
    await world.start(ALLOWED_GROUPS="music,guests")
    assert await world.reason(person("eve", "staff")) is Reason.GROUP_NOT_ALLOWED
    assert await world.reason(person("eve")) is Reason.GROUP_NOT_ALLOWED
    assert not await world.users()
    assert await world.request(person("eve", "x", "guests")) == "eve"


async def test_a_denied_user_loses_password_and_rights(world: World) -> None:
    await world.start(ALLOWED_GROUPS="music", ADMIN_GROUPS="admins")
    await world.create("keeper", isAdmin=True)
    await world.request(person("eve", "music", "admins"))
    eve = await world.user("eve")
    await world.call("PUT", f"/api/user/{eve['id']}", {**eve, "password": "mine"})
    assert await world.reason(person("eve", "other")) is Reason.GROUP_NOT_ALLOWED
    assert not await world.opens("eve", "mine")
    assert (await world.user("eve"))["isAdmin"] is False
    assert len(world.recorded(AccountLocked)) == 1
    assert await world.reason(person("eve", "other")) is Reason.GROUP_NOT_ALLOWED
    assert len(world.recorded(AccountLocked)) == 1
    assert await world.request(person("eve", "music")) == "eve"


async def test_a_claimed_identity_of_an_untrusted_peer_locks_no_account(world: World) -> None:
    await world.start(ALLOWED_GROUPS="music")
    await world.request(person("eve", "music"))
    eve = await world.user("eve")
    await world.call("PUT", f"/api/user/{eve['id']}", {**eve, "password": "mine"})
    assert await world.reason(person("eve", "music", uid="x")) is Reason.IDENTITY_CONFLICT
    assert await world.reason(person("eve", uid="x")) is Reason.GROUP_NOT_ALLOWED
    assert await world.opens("eve", "mine")


async def test_the_admin_right_follows_the_groups_at_the_next_request(world: World) -> None:
    await world.start(ADMIN_GROUPS="admins")
    await world.create("keeper", isAdmin=True)
    await world.request(person("alice", "admins"))
    assert (await world.user("alice"))["isAdmin"] is True
    await world.request(person("alice"))
    assert (await world.user("alice"))["isAdmin"] is False
    await world.request(person("alice", "admins"))
    assert (await world.user("alice"))["isAdmin"] is True
    changes = [change for event in world.recorded(AccountChanged) for change in event.changes]
    assert changes == ["isAdmin: True → False", "isAdmin: False → True"]


async def test_the_last_admin_beside_the_shims_own_is_demoted_too(world: World) -> None:
    await world.start(ADMIN_GROUPS="admins")
    await world.request(person("alice", "admins"))
    assert await world.request(person("alice")) == "alice"
    assert (await world.user("alice"))["isAdmin"] is False


async def test_without_admin_groups_the_admin_right_is_not_managed(world: World) -> None:
    await world.start()
    await world.request(person("alice"))
    await world.change("alice", isAdmin=True)
    await world.request(person("alice", "x", display="Alice"))
    await world.accounts.service.reconcile()
    assert (await world.user("alice"))["isAdmin"] is True


async def test_fields_changed_by_hand_are_unchanged_and_no_field_is_lost(world: World) -> None:
    await world.start()
    await world.request(person("alice", display="Alice", email="a@example.com"))
    await world.page("alice")
    by_hand = {"name": "Own Name", "scrobbleFilter": '{"all":[{"is":{"loved":true}}]}'}
    await world.change("alice", **by_hand)
    before = await world.user("alice")
    await world.request(person("alice", display="Alice", email="b@example.com"))
    after = await world.user("alice")
    assert (after["name"], after["email"]) == ("Own Name", "b@example.com")
    for user in (before, after):
        user.pop("updatedAt")
        user.pop("email")
        user.pop("lastAccessAt")
    assert after == before


async def test_libraries_follow_the_groups(stand_in_world: World) -> None:
    world = stand_in_world
    await world.start(LIBRARY_GROUPS='{"family": ["Family", 1], "kids": ["Kids"], "odd": ["None"]}')
    await world.request(person("alice", "family"))
    await world.request(person("bob", "kids", "x"))
    await world.request(person("carol", "x"))
    assert await _libraries(world, "alice") == [1, 2]
    assert await _libraries(world, "bob") == [3]
    assert await _libraries(world, "carol") == [1]
    await world.request(person("alice", "kids"))
    assert await _libraries(world, "alice") == [3]
    await world.request(person("alice"))
    assert await _libraries(world, "alice") == [1]
    assert "libraries: Kids → Music Library" in world.recorded(AccountChanged)[-1].changes
    await world.request(person("alice", "odd"))
    assert await _libraries(world, "alice") == [1]


async def test_a_user_who_leaves_the_last_library_group_loses_its_libraries(
    stand_in_world: World,
) -> None:
    world = stand_in_world
    await world.start(LIBRARY_GROUPS='{"family": ["Family"]}')
    accounts = world.stand_in.stand_in.state.accounts
    accounts.libraries = tuple(
        replace(each, default_new_users=False) for each in accounts.libraries
    )
    for name in ("alice", "bob"):
        await world.request(person(name, "family"))
        assert await _libraries(world, name) == [2]
        user = await world.user(name)
        await world.call("PUT", f"/api/user/{user['id']}", {**user, "password": "mine"})
    assert await world.reason(person("alice")) is Reason.GROUP_NOT_ALLOWED
    assert not await world.opens("alice", "mine")
    assert await world.reason(person("alice")) is Reason.GROUP_NOT_ALLOWED
    await world.restart(LIBRARY_GROUPS='{"kids": ["Kids"]}')
    await world.accounts.service.reconcile()
    assert not await world.opens("bob", "mine")
    assert len(world.recorded(AccountLocked)) == 2
    assert await world.request(person("alice", "kids")) == "alice"
    assert await _libraries(world, "alice") == [3]
    assert await world.request(person("carol")) == "carol", "whose new account has no library"
    assert await _libraries(world, "carol") == []


async def _libraries(world: World, name: str) -> list[int]:
    return [library["id"] for library in (await world.user(name)).get("libraries", [])]


async def test_an_unlinked_account_that_stays_an_admin_is_reported(world: World) -> None:
    parts = await world.start(ADMIN_GROUPS="admins")
    await world.request(person("alice", "admins"))
    binding = parts.service.bindings.by_uid("uid-of-alice")
    assert binding is not None
    identity = replace(binding.identity, groups=())
    binding = await parts.service.bindings.put(replace(binding, identity=identity))

    await parts.service.lifecycle.unlink(binding, AuditContext("admin_action", identity))

    (skipped,) = world.recorded(AccountDemotionSkipped)
    assert (skipped.account, skipped.uid) == ("alice", "uid-of-alice")
    assert "unlinked" in skipped.detail
    assert (await world.user("alice"))["isAdmin"] is True


async def test_a_reserved_account_that_stays_an_admin_is_reported_once(world: World) -> None:
    await world.start(ADMIN_GROUPS="admins")
    await world.request(person("alice"))
    await world.request(person("bob", "x"))
    await world.change("alice", isAdmin=True)
    await world.change("bob", isAdmin=True)

    parts = await world.restart(ADMIN_GROUPS="admins", PROTECTED_USERS="alice")
    for _ in range(2):
        await parts.service.reconciler.run()

    (skipped,) = world.recorded(AccountDemotionSkipped)
    assert (skipped.account, skipped.trigger) == ("alice", "reconcile")
    assert "reserved" in skipped.detail
    assert (await world.user("alice"))["isAdmin"] is True
    assert (await world.user("bob"))["isAdmin"] is False, "the run goes on with other accounts"
