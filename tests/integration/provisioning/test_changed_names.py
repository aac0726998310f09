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
from tests.support.harness import REQUEST_INFO, Harness, person, until

PEOPLE = ("alice", "bob")
READS = Fault(FaultKind.SERVER_ERROR, ("/api/user",), frozenset({"GET"}))


async def account_ids(harness: Harness, *names: str) -> dict[str, str | None]:
    """The id of the account that each user gets."""
    found = {}
    for name in names:
        response = await harness.accounts.gate.ensure(person(name), REQUEST_INFO)
        assert isinstance(response, Account), response
        user = await harness.user(response.user_name.decode())
        assert user["id"] == response.id, "the name belongs to the id"
        found[name] = response.id
    return found


async def rotate(harness: Harness, *names: str) -> None:
    """Give each account the next one's name, as an admin does it, with an intermediate name."""
    users = await harness.users()
    await harness.change(names[0], userName="between")
    for name, new in zip(names[:0:-1], (*names[:1], *names[:1:-1]), strict=True):
        await harness.call(
            "PUT", f"/api/user/{users[name]['id']}", {**users[name], "userName": new}
        )
    await harness.change("between", userName=names[1])
    harness.accounts.gate.users_may_have_changed()


@pytest.mark.parametrize("people", [("alice", "bob"), ("alice", "bob", "carol")])
@pytest.mark.parametrize("first", [0, 1])
async def test_users_whose_names_were_swapped_keep_their_accounts(
    any_store_harness: Harness, people: tuple[str, ...], first: int
) -> None:
    harness = any_store_harness
    await harness.start(RECONCILE_SECONDS="3600")
    for name in people:
        await harness.request(person(name))
    before = await account_ids(harness, *people)
    await rotate(harness, *people)
    assert {user["id"] for user in (await harness.users()).values()} == set(before.values())
    for name in people:
        assert harness.accounts.gate.known(person(name)) is None, (
            "no name is used that may be stale"
        )
    order = (*people[first:], *people[:first])
    assert await account_ids(harness, *order) == before
    await until(lambda: len(harness.recorded(AccountRenamed)) == len(people))
    await harness.restart()
    assert await account_ids(harness, *people) == before


async def test_swapped_names_are_adopted_at_once_and_by_reconcile(harness: Harness) -> None:
    await harness.start(RECONCILE_SECONDS="3600")
    for name in PEOPLE:
        await harness.request(person(name))
    before = await account_ids(harness, *PEOPLE)
    bindings = harness.accounts.service.bindings
    await rotate(harness, *PEOPLE)
    await until(lambda: len(harness.recorded(AccountRenamed)) == 2)
    found = bindings.by_uid("uid-of-alice")
    assert found is not None and (found.user_name, found.navidrome_id) == ("bob", before["alice"])
    await rotate(harness, *PEOPLE)
    await harness.accounts.service.reconcile()
    assert await account_ids(harness, *PEOPLE) == before


async def test_a_name_that_was_taken_over_from_a_deleted_account_is_adopted(
    harness: Harness,
) -> None:
    await harness.start(RECONCILE_SECONDS="3600")
    for name in PEOPLE:
        await harness.request(person(name))
    before = await account_ids(harness, "alice")
    await harness.delete("bob")
    await harness.change("alice", userName="bob")
    harness.accounts.gate.users_may_have_changed()
    assert await account_ids(harness, "alice") == before
    assert [event.account for event in harness.recorded(AccountBindingRemoved)] == ["bob"]
    assert await harness.reason(person("bob")) is Reason.IDENTITY_CONFLICT


async def test_while_the_api_fails_no_request_uses_a_possibly_stale_name(
    stand_in_harness: Harness,
) -> None:
    harness = stand_in_harness
    await harness.start(PROVISIONING_FAIL_MODE="open", RECONCILE_SECONDS="3600")
    for name in PEOPLE:
        await harness.request(person(name))
    harness.stand_in.breaks(READS)
    assert await harness.request(person("alice", "more")) == "alice", "no name can have changed"
    harness.accounts.gate.users_may_have_changed()
    assert isinstance(await harness.request(person("alice")), AccountDenied)
    assert isinstance(await harness.request(person("alice", "more")), AccountDenied)
    harness.stand_in.breaks(None)
    await rotate(harness, *PEOPLE)
    await until(lambda: len(harness.recorded(AccountRenamed)) == 2)
    harness.stand_in.breaks(READS)
    assert await harness.request(person("alice", "other")) == "bob"


async def test_an_account_recreated_as_an_admin_is_not_its_previous_users(harness: Harness) -> None:
    await harness.start(RECONCILE_SECONDS="3600")
    await harness.request(person("alice"))
    await harness.delete("alice")
    new = await harness.create("alice", "known", isAdmin=True)
    harness.accounts.gate.users_may_have_changed()
    assert harness.accounts.gate.known(person("alice")) is None
    assert await harness.reason(person("alice")) is Reason.IDENTITY_CONFLICT
    assert await harness.accepts_password("alice", "known")
    assert harness.accounts.service.bindings.by_account(new) is None
    [removed] = harness.recorded(AccountBindingRemoved)
    assert removed.account == "alice"
    assert await harness.reason(person("alice", uid="other")) is Reason.NAME_HELD


async def test_an_account_recreated_as_a_regular_user_is_claimed_by_the_settings(
    harness: Harness,
) -> None:
    for link, expected in (("none", Reason.IDENTITY_CONFLICT), ("users", "alice")):
        await harness.restart(RECONCILE_SECONDS="3600", LINK_EXISTING=link)
        if link == "none":
            await harness.request(person("alice"))
            await harness.delete("alice")
            await harness.create("alice", "known")
            harness.accounts.gate.users_may_have_changed()
        assert await harness.reason(person("alice")) == expected


async def test_a_name_that_changes_during_provisioning_is_read_again(
    harness: Harness,
) -> None:
    await harness.start(RECONCILE_SECONDS="3600")
    await harness.request(person("alice"))
    api = harness.accounts.service.api
    read = api.user

    async def renamed_meanwhile(user_id: str) -> User | None:
        api.user = read  # type: ignore[method-assign]
        user = await read(user_id)
        await harness.change("alice", userName="alice2")
        harness.accounts.gate.users_may_have_changed()
        return user

    api.user = renamed_meanwhile  # type: ignore[method-assign]
    assert await harness.request(person("alice", "more")) == "alice2"
    known = harness.accounts.gate.known(person("alice", "more"))
    assert known is not None and known.user_name == b"alice2"


async def test_continuous_changes_block_no_user(stand_in_harness: Harness) -> None:
    harness = stand_in_harness
    await harness.start(RECONCILE_SECONDS="3600")
    await harness.request(person("alice"))
    api = harness.accounts.service.api
    read = api.user

    async def changed_meanwhile(user_id: str) -> User | None:
        user = await read(user_id)
        harness.accounts.gate.users_may_have_changed()
        return user

    api.user = changed_meanwhile  # type: ignore[method-assign]
    assert await harness.request(person("alice", "more")) == "alice"
    assert harness.accounts.gate.known(person("alice", "more")) is None


async def test_a_request_after_a_change_does_not_share_an_earlier_read(
    stand_in_harness: Harness,
) -> None:
    harness = stand_in_harness
    await harness.start(RECONCILE_SECONDS="3600")
    await harness.request(person("alice"))
    api, resume, reads = harness.accounts.service.api, asyncio.Event(), []
    read = api.user

    async def slow(user_id: str) -> Any:
        reads.append(user_id)
        user = await read(user_id)
        if len(reads) == 1:
            await resume.wait()
        return user

    api.user = slow  # type: ignore[method-assign]
    gate = harness.accounts.gate
    first = gate.ensure(person("alice", "more"), REQUEST_INFO)
    await until(lambda: bool(reads))
    gate.users_may_have_changed()
    second = gate.ensure(person("alice", "more"), REQUEST_INFO)
    resume.set()
    assert isinstance(await first, Account) and isinstance(await second, Account)
    assert len(reads) >= 2
