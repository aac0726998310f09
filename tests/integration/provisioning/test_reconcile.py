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
from tests.support.harness import Harness, person


async def test_a_manual_rename_is_adopted(harness: Harness) -> None:
    await harness.start()
    await harness.request(person("alice"))
    await harness.change("alice", userName="Alice2")
    await harness.accounts.service.reconcile()
    assert harness.accounts.gate.known(person("alice")) is None
    assert await harness.request(person("alice")) == "Alice2"
    assert list(await harness.users()) == ["Alice2"]
    assert [event.previous_account for event in harness.recorded(AccountRenamed)] == ["alice"]
    assert await harness.reason(person("alice", uid="other")) is Reason.NAME_HELD


async def test_a_deleted_account_is_forgotten_and_created_again(harness: Harness) -> None:
    await harness.start()
    await harness.request(person("alice"))
    before = await harness.user("alice")
    await harness.delete("alice")
    await harness.accounts.service.reconcile()
    assert len(harness.recorded(AccountBindingRemoved)) == 1
    assert harness.accounts.gate.known(person("alice")) is None
    assert await harness.reason(person("alice", uid="other")) is Reason.NAME_HELD
    assert await harness.request(person("alice")) == "alice"
    assert (await harness.user("alice"))["id"] != before["id"]


async def test_a_deleted_account_is_also_noticed_by_a_write(harness: Harness) -> None:
    await harness.start()
    await harness.request(person("alice"))
    await harness.delete("alice")
    assert await harness.request(person("alice", display="New")) == "alice"
    assert (await harness.user("alice"))["name"] == "New"
    assert not await harness.accepts_password("alice", "")


async def test_rights_changed_by_hand_are_repaired(harness: Harness) -> None:
    await harness.start(ADMIN_GROUPS="admins")
    await harness.create("keeper", isAdmin=True)
    await harness.request(person("alice"))
    await harness.request(person("bob", "admins"))
    await harness.change("alice", isAdmin=True)
    await harness.change("bob", isAdmin=False)
    await harness.accounts.service.reconcile()
    users = await harness.users()
    assert (users["alice"]["isAdmin"], users["bob"]["isAdmin"]) == (False, True)
    assert {event.trigger for event in harness.recorded(AccountChanged)} == {"reconcile"}


async def test_the_name_of_an_account_without_a_user_is_held_too(harness: Harness) -> None:
    await harness.start()
    await harness.create("guest")
    await harness.accounts.service.reconcile()
    await harness.delete("guest")
    await harness.accounts.service.reconcile()
    assert await harness.reason(person("guest")) is Reason.NAME_HELD


async def test_accounts_with_an_empty_password_are_named(harness: Harness) -> None:
    await harness.create_first()
    await harness.create("hole", "")
    await harness.confirm_new()
    await harness.start()
    await harness.accounts.service.reconcile()
    [found] = harness.recorded(EmptyPasswordsFound)
    assert found.accounts == ("hole",)
    check = harness.accounts.checks()[1]
    assert check.state is State.WARNING and "hole" in check.detail
    hole = await harness.user("hole")
    await harness.call("PUT", f"/api/user/{hole['id']}", {**hole, "password": "now"})
    await harness.accounts.service.reconcile()
    assert harness.accounts.checks()[1].state is State.OK
