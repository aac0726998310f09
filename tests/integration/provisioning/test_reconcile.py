"""Manual changes in Navidrome are adopted, forgotten or repaired."""

from __future__ import annotations

from shim.audit.events.provisioning import (
    AccountBindingRemoved,
    AccountChanged,
    AccountRenamed,
    EmptyPasswordsFound,
)
from shim.health import State
from shim.trust.reasons import Reason
from tests.support.world import World, person


async def test_a_manual_rename_is_adopted(world: World) -> None:
    await world.start()
    await world.request(person("alice"))
    await world.change("alice", userName="Alice2")
    await world.accounts.service.reconcile()
    assert world.accounts.gate.known(person("alice")) is None
    assert await world.request(person("alice")) == "Alice2"
    assert list(await world.users()) == ["Alice2"]
    assert [event.previous_account for event in world.recorded(AccountRenamed)] == ["alice"]
    assert await world.reason(person("alice", uid="other")) is Reason.NAME_HELD


async def test_a_deleted_account_is_forgotten_and_created_again(world: World) -> None:
    await world.start()
    await world.request(person("alice"))
    before = await world.user("alice")
    await world.delete("alice")
    await world.accounts.service.reconcile()
    assert len(world.recorded(AccountBindingRemoved)) == 1
    assert world.accounts.gate.known(person("alice")) is None
    assert await world.reason(person("alice", uid="other")) is Reason.NAME_HELD
    assert await world.request(person("alice")) == "alice"
    assert (await world.user("alice"))["id"] != before["id"]


async def test_a_deleted_account_is_also_noticed_by_a_write(world: World) -> None:
    await world.start()
    await world.request(person("alice"))
    await world.delete("alice")
    assert await world.request(person("alice", display="New")) == "alice"
    assert (await world.user("alice"))["name"] == "New"
    assert not await world.opens("alice", "")


async def test_rights_changed_by_hand_are_repaired(world: World) -> None:
    await world.start(ADMIN_GROUPS="admins")
    await world.create("keeper", isAdmin=True)
    await world.request(person("alice"))
    await world.request(person("bob", "admins"))
    await world.change("alice", isAdmin=True)
    await world.change("bob", isAdmin=False)
    await world.accounts.service.reconcile()
    users = await world.users()
    assert (users["alice"]["isAdmin"], users["bob"]["isAdmin"]) == (False, True)
    assert {event.trigger for event in world.recorded(AccountChanged)} == {"reconcile"}


async def test_the_name_of_an_account_without_a_user_is_held_too(world: World) -> None:
    await world.start()
    await world.create("guest")
    await world.accounts.service.reconcile()
    await world.delete("guest")
    await world.accounts.service.reconcile()
    assert await world.reason(person("guest")) is Reason.NAME_HELD


async def test_accounts_with_an_empty_password_are_named(world: World) -> None:
    await world.create_first()
    await world.create("hole", "")
    await world.confirm_new()
    await world.start()
    await world.accounts.service.reconcile()
    [found] = world.recorded(EmptyPasswordsFound)
    assert found.accounts == ("hole",)
    check = world.accounts.checks()[1]
    assert check.state is State.WARNING and "hole" in check.detail
    hole = await world.user("hole")
    await world.call("PUT", f"/api/user/{hole['id']}", {**hole, "password": "now"})
    await world.accounts.service.reconcile()
    assert world.accounts.checks()[1].state is State.OK
