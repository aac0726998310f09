"""Concurrent changes during provisioning are not undone, and no request uses an outdated result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shim.audit.events.provisioning import AccountReadmitted, AccountUnlinked
from shim.navidrome.models import User
from shim.provisioning.models import BindingState
from shim.provisioning.operations import OperationError, operations
from shim.proxy.gate import Account, AccountDenied
from shim.settings import load
from shim.trust.reasons import Reason
from tests.integration.provisioning.test_commands import run
from tests.support.world import OPERATOR, REQUEST_INFO, World, person, until


@asynccontextmanager
async def slow_read(world: World) -> AsyncIterator[asyncio.Event]:
    """Block the next reading of a user until the event is set; entered once it is read."""
    api, go_on = world.accounts.service.api, asyncio.Event()
    read = api.user

    async def slow(user_id: str) -> User | None:
        api.user = read  # type: ignore[method-assign]
        user = await read(user_id)
        await go_on.wait()
        return user

    api.user = slow  # type: ignore[method-assign]
    try:
        yield go_on
    finally:
        go_on.set()


async def test_a_slow_request_does_not_undo_an_unlink(any_store_world: World) -> None:
    world = any_store_world
    await world.start(LINK_EXISTING="none", RECONCILE_SECONDS="3600")
    await world.request(person("alice"))
    alice = await world.user("alice")
    await world.call("PUT", f"/api/user/{alice['id']}", {**alice, "password": "mine"})
    bindings = world.accounts.service.bindings
    async with slow_read(world) as go_on:
        late = world.accounts.gate.ensure(person("alice", "more", display="Late"), REQUEST_INFO)
        status, _, err = await run(world, "users", "unlink", "alice", "--yes")
        assert status == 0, err
        async with world.replica() as second:
            assert await second.request(person("alice", uid="other")) == "alice"
        go_on.set()
        response = await late
    assert (await world.user("alice"))["name"] != "Late", "nothing is written for who is late"
    assert isinstance(response, AccountDenied) and response.reason is Reason.IDENTITY_CONFLICT
    assert world.accounts.gate.known(person("alice", "more", display="Late")) is None
    assert bindings.by_uid("uid-of-alice") is None
    owner = bindings.by_account(alice["id"])
    assert owner is not None and owner.uid == "other"
    assert not await world.opens("alice", "mine")


async def test_a_user_who_is_provisioned_while_being_unlinked_gets_a_new_password(
    any_store_world: World,
) -> None:
    world = any_store_world
    await world.start(RECONCILE_SECONDS="3600")
    await world.request(person("alice"))
    alice = await world.user("alice")
    await world.call("PUT", f"/api/user/{alice['id']}", {**alice, "password": "mine"})
    async with slow_read(world) as go_on:
        late = world.accounts.gate.ensure(person("alice", "more"), REQUEST_INFO)
        status, _, err = await run(world, "users", "unlink", "alice", "--yes")
        assert status == 0, err
        go_on.set()
        assert isinstance(await late, Account), "the unlinked account is claimed again"
    rule = world.accounts.service.bindings.rule_of(alice["id"])
    assert rule is not None and rule.void_before and not rule.locked
    assert not await world.opens("alice", "mine")
    assert len(world.recorded(AccountReadmitted)) == 1


async def test_no_account_is_known_that_another_shim_changed_meanwhile(
    any_store_world: World,
) -> None:
    first = any_store_world
    await first.start(ALLOWED_GROUPS="music", RECONCILE_SECONDS="3600")
    await first.request(person("eve", "music"))
    async with first.replica() as second:
        async with slow_read(first) as go_on:
            late = first.accounts.gate.ensure(person("eve", "music", "more"), REQUEST_INFO)
            assert await second.reason(person("eve")) is Reason.GROUP_NOT_ALLOWED
            await until(lambda: first.accounts.service.bindings.is_locked(_id(first, "uid-of-eve")))
            go_on.set()
            response = await late
        # The late identity is allowed: it gets access again, as after any lock.
        assert isinstance(response, Account)
        assert len(first.recorded(AccountReadmitted)) == 1


async def test_a_reconcile_gives_no_libraries_to_an_account_that_was_unlinked_meanwhile(
    any_store_world: World,
) -> None:
    world = any_store_world
    groups = '{"family": ["Music Library", "Family"]}'
    await world.start(LIBRARY_GROUPS=groups, RECONCILE_SECONDS="3600")
    assert await world.request(person("alice", "family")) == "alice"
    alice = await world.user("alice")
    await world.call("PUT", f"/api/user/{alice['id']}/library", {"libraryIds": [1]})
    async with slow_read(world) as go_on:
        reconcile = asyncio.create_task(world.accounts.service.reconcile())
        status, _, err = await run(world, "users", "unlink", "alice", "--yes")
        assert status == 0, err
        go_on.set()
        await reconcile
    after = await world.user("alice")
    assert [library["id"] for library in after["libraries"]] == [1]
    assert not world.accounts.service.bindings.intents()


@pytest.mark.parametrize("groups", [("music", "admins"), ("music",)])
async def test_a_user_who_is_allowed_again_has_every_right_at_once(
    world: World, groups: tuple[str, ...]
) -> None:
    await world.start(ALLOWED_GROUPS="music", ADMIN_GROUPS="admins")
    await world.request(person("eve", *groups))
    assert await world.reason(person("eve")) is Reason.GROUP_NOT_ALLOWED
    assert world.accounts.gate.known(person("eve", *groups)) is None
    assert (await world.user("eve"))["isAdmin"] is False
    assert await world.request(person("eve", *groups)) == "eve"
    assert (await world.user("eve"))["isAdmin"] is ("admins" in groups)
    binding = world.accounts.service.bindings.by_uid("uid-of-eve")
    assert binding is not None and binding.state == "active" and not binding.lock_pending


async def test_a_stricter_group_setting_locks_denied_users_without_a_request(
    world: World,
) -> None:
    await world.start(RECONCILE_SECONDS="3600")
    for name, group in (("alice", "music"), ("eve", "other")):
        await world.request(person(name, group))
        user = await world.user(name)
        await world.call("PUT", f"/api/user/{user['id']}", {**user, "password": "mine"})
    await world.restart(ALLOWED_GROUPS="music", RECONCILE_SECONDS="3600")
    bindings = world.accounts.service.bindings
    await until(lambda: bindings.is_locked(_id(world, "uid-of-eve")))
    await world.accounts.service.reconcile()
    assert not await world.opens("eve", "mine") and await world.opens("alice", "mine")
    binding = bindings.by_uid("uid-of-eve")
    assert binding is not None and binding.state is BindingState.DENIED


async def test_a_denied_user_loses_an_admin_right_that_was_granted_by_hand(world: World) -> None:
    await world.start(ALLOWED_GROUPS="music", ADMIN_GROUPS="admins")
    await world.request(person("eve", "music", "admins"))
    assert await world.reason(person("eve")) is Reason.GROUP_NOT_ALLOWED
    await world.change("eve", isAdmin=True)
    await world.accounts.service.reconcile()
    assert (await world.user("eve"))["isAdmin"] is False


def _id(world: World, uid: str) -> str:
    binding = world.accounts.service.bindings.by_uid(uid)
    assert binding is not None
    return binding.navidrome_id


async def test_an_unlink_succeeds_although_the_running_shim_changes_the_binding(
    any_store_world: World,
) -> None:
    world = any_store_world
    await world.start()
    assert await world.request(person("alice", display="One")) == "alice"
    settings = load(world.environment())
    async with operations(settings, world.events.append, OPERATOR) as commands:
        assert await world.request(person("alice", display="Two")) == "alice"
        assert await commands.unlink("alice")
    assert len(world.recorded(AccountUnlinked)) == 1
    await world.accounts.service.refresh()
    assert world.accounts.service.bindings.by_uid("uid-of-alice") is None


async def test_an_account_that_was_bound_to_another_user_meanwhile_is_not_unlinked(
    any_store_world: World,
) -> None:
    world = any_store_world
    await world.start(NAME_REUSE_DELAY_HOURS="0")
    assert await world.request(person("alice")) == "alice"
    settings = load(world.environment())
    async with operations(settings, world.events.append, OPERATOR) as commands:
        status, _, err = await run(world, "users", "unlink", "alice", "--yes")
        assert status == 0, err
        await world.accounts.service.refresh()
        assert await world.request(person("alice", uid="another")) == "alice"
        with pytest.raises(OperationError):
            await commands.unlink("alice")
    assert world.accounts.service.bindings.by_uid("another") is not None
