"""After names changed in Navidrome no user gets another user's account: accounts are addressed by id."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from demo.navidrome import Fault, FaultKind
from shim.audit.events.provisioning import AccountBindingRemoved, AccountRenamed
from shim.navidrome.models import User
from shim.proxy.gate import Account, AccountDenied
from shim.trust.reasons import Reason
from tests.support.world import REQUEST_INFO, World, person, until

PEOPLE = ("alice", "bob")
READS = Fault(FaultKind.SERVER_ERROR, ("/api/user",), frozenset({"GET"}))


async def account_ids(world: World, *names: str) -> dict[str, str | None]:
    """The id of the account that each user gets."""
    found = {}
    for name in names:
        response = await world.accounts.gate.ensure(person(name), REQUEST_INFO)
        assert isinstance(response, Account), response
        user = await world.user(response.user_name.decode())
        assert user["id"] == response.id, "the name belongs to the id"
        found[name] = response.id
    return found


async def rotate(world: World, *names: str) -> None:
    """Give each account the next one's name, as an admin does it, with an intermediate name."""
    users = await world.users()
    await world.change(names[0], userName="between")
    for name, new in zip(names[:0:-1], (*names[:1], *names[:1:-1]), strict=True):
        await world.call("PUT", f"/api/user/{users[name]['id']}", {**users[name], "userName": new})
    await world.change("between", userName=names[1])
    world.accounts.gate.users_may_have_changed()


@pytest.mark.parametrize("people", [("alice", "bob"), ("alice", "bob", "carol")])
@pytest.mark.parametrize("first", [0, 1])
async def test_users_whose_names_were_swapped_keep_their_accounts(
    any_store_world: World, people: tuple[str, ...], first: int
) -> None:
    world = any_store_world
    await world.start(RECONCILE_SECONDS="3600")
    for name in people:
        await world.request(person(name))
    before = await account_ids(world, *people)
    await rotate(world, *people)
    assert {user["id"] for user in (await world.users()).values()} == set(before.values())
    for name in people:
        assert world.accounts.gate.known(person(name)) is None, "no name is used that may be stale"
    order = (*people[first:], *people[:first])
    assert await account_ids(world, *order) == before
    await until(lambda: len(world.recorded(AccountRenamed)) == len(people))
    await world.restart()
    assert await account_ids(world, *people) == before


async def test_swapped_names_are_adopted_at_once_and_by_reconcile(world: World) -> None:
    await world.start(RECONCILE_SECONDS="3600")
    for name in PEOPLE:
        await world.request(person(name))
    before = await account_ids(world, *PEOPLE)
    bindings = world.accounts.service.bindings
    await rotate(world, *PEOPLE)
    await until(lambda: len(world.recorded(AccountRenamed)) == 2)
    found = bindings.by_uid("uid-of-alice")
    assert found is not None and (found.user_name, found.navidrome_id) == ("bob", before["alice"])
    await rotate(world, *PEOPLE)
    await world.accounts.service.reconcile()
    assert await account_ids(world, *PEOPLE) == before


async def test_a_name_that_was_taken_over_from_a_deleted_account_is_adopted(world: World) -> None:
    await world.start(RECONCILE_SECONDS="3600")
    for name in PEOPLE:
        await world.request(person(name))
    before = await account_ids(world, "alice")
    await world.delete("bob")
    await world.change("alice", userName="bob")
    world.accounts.gate.users_may_have_changed()
    assert await account_ids(world, "alice") == before
    assert [event.account for event in world.recorded(AccountBindingRemoved)] == ["bob"]
    assert await world.reason(person("bob")) is Reason.IDENTITY_CONFLICT


async def test_while_the_api_fails_no_request_uses_a_possibly_stale_name(
    stand_in_world: World,
) -> None:
    world = stand_in_world
    await world.start(PROVISIONING_FAIL_MODE="open", RECONCILE_SECONDS="3600")
    for name in PEOPLE:
        await world.request(person(name))
    world.stand_in.breaks(READS)
    assert await world.request(person("alice", "more")) == "alice", "no name can have changed"
    world.accounts.gate.users_may_have_changed()
    assert isinstance(await world.request(person("alice")), AccountDenied)
    assert isinstance(await world.request(person("alice", "more")), AccountDenied)
    world.stand_in.breaks(None)
    await rotate(world, *PEOPLE)
    await until(lambda: len(world.recorded(AccountRenamed)) == 2)
    world.stand_in.breaks(READS)
    assert await world.request(person("alice", "other")) == "bob"


async def test_an_account_recreated_as_an_admin_is_not_its_previous_users(world: World) -> None:
    await world.start(RECONCILE_SECONDS="3600")
    await world.request(person("alice"))
    await world.delete("alice")
    new = await world.create("alice", "known", isAdmin=True)
    world.accounts.gate.users_may_have_changed()
    assert world.accounts.gate.known(person("alice")) is None
    assert await world.reason(person("alice")) is Reason.IDENTITY_CONFLICT
    assert await world.opens("alice", "known")
    assert world.accounts.service.bindings.by_account(new) is None
    [forgotten] = world.recorded(AccountBindingRemoved)
    assert forgotten.account == "alice"
    assert await world.reason(person("alice", uid="other")) is Reason.NAME_HELD


async def test_an_account_recreated_as_a_regular_user_is_claimed_by_the_settings(
    world: World,
) -> None:
    for link, expected in (("none", Reason.IDENTITY_CONFLICT), ("users", "alice")):
        await world.restart(RECONCILE_SECONDS="3600", LINK_EXISTING=link)
        if link == "none":
            await world.request(person("alice"))
            await world.delete("alice")
            await world.create("alice", "known")
            world.accounts.gate.users_may_have_changed()
        assert await world.reason(person("alice")) == expected


async def test_a_name_that_changes_during_provisioning_is_read_again(
    world: World,
) -> None:
    await world.start(RECONCILE_SECONDS="3600")
    await world.request(person("alice"))
    api = world.accounts.service.api
    read = api.user

    async def renamed_meanwhile(user_id: str) -> User | None:
        api.user = read  # type: ignore[method-assign]
        user = await read(user_id)
        await world.change("alice", userName="alice2")
        world.accounts.gate.users_may_have_changed()
        return user

    api.user = renamed_meanwhile  # type: ignore[method-assign]
    assert await world.request(person("alice", "more")) == "alice2"
    known = world.accounts.gate.known(person("alice", "more"))
    assert known is not None and known.user_name == b"alice2"


async def test_continuous_changes_block_no_user(stand_in_world: World) -> None:
    world = stand_in_world
    await world.start(RECONCILE_SECONDS="3600")
    await world.request(person("alice"))
    api = world.accounts.service.api
    read = api.user

    async def changed_meanwhile(user_id: str) -> User | None:
        user = await read(user_id)
        world.accounts.gate.users_may_have_changed()
        return user

    api.user = changed_meanwhile  # type: ignore[method-assign]
    assert await world.request(person("alice", "more")) == "alice"
    assert world.accounts.gate.known(person("alice", "more")) is None


async def test_a_request_after_a_change_does_not_share_an_earlier_read(
    stand_in_world: World,
) -> None:
    world = stand_in_world
    await world.start(RECONCILE_SECONDS="3600")
    await world.request(person("alice"))
    api, go_on, reads = world.accounts.service.api, asyncio.Event(), []
    read = api.user

    async def slow(user_id: str) -> Any:
        reads.append(user_id)
        user = await read(user_id)
        if len(reads) == 1:
            await go_on.wait()
        return user

    api.user = slow  # type: ignore[method-assign]
    gate = world.accounts.gate
    first = gate.ensure(person("alice", "more"), REQUEST_INFO)
    await until(lambda: bool(reads))
    gate.users_may_have_changed()
    second = gate.ensure(person("alice", "more"), REQUEST_INFO)
    go_on.set()
    assert isinstance(await first, Account) and isinstance(await second, Account)
    assert len(reads) >= 2
