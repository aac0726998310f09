"""A failing Navidrome: a clear error, no partial account, and no delay for known users."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from demo.navidrome import Fault, FaultKind
from shim.audit.events.provisioning import AccountLocked, AccountRecreatedByRace, ProvisioningFailed
from shim.navidrome.errors import Unavailable
from shim.navidrome.models import User
from shim.provisioning.models import IntentKind
from shim.proxy.gate import AccountDenied
from shim.trust.identity import Identity
from shim.trust.reasons import Reason
from tests.support.world import REQUEST_INFO, World, person, until

USERS = ("/api/user",)


@pytest.mark.parametrize("kind", list(FaultKind))
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_first_request_while_the_api_fails_creates_no_duplicate(
    stand_in_world: World, kind: FaultKind, method: str
) -> None:
    world = stand_in_world
    await world.start(NAVIDROME_TIMEOUT="0.3")
    world.stand_in.breaks(Fault(kind, USERS, frozenset({method}), times=6, carried_out=True))
    refused = await world.request(person("alice"))
    if method == "GET":
        assert isinstance(refused, AccountDenied)
        assert refused.reason is Reason.NAVIDROME_UNAVAILABLE and refused.retry_after
        assert world.recorded(ProvisioningFailed)
    else:  # The account was created, and the shim reads that it is there.
        assert refused == "alice"
        assert not world.recorded(ProvisioningFailed)
    world.stand_in.breaks(None)
    await _settled(world, person("alice"))
    assert list(await world.users()) == ["alice"]
    assert not await world.opens("alice", "")


@pytest.mark.parametrize("kind", list(FaultKind))
async def test_a_change_while_the_api_fails_loses_no_field(
    stand_in_world: World, kind: FaultKind
) -> None:
    world = stand_in_world
    await world.start(NAVIDROME_TIMEOUT="0.3")
    await world.request(person("alice", display="Alice", email="a@example.com"))
    before = await world.user("alice")
    world.stand_in.breaks(Fault(kind, USERS, frozenset({"PUT"}), times=1, carried_out=True))
    changed = person("alice", display="Other", email="a@example.com")
    outcome = await world.reason(changed)
    if outcome is Reason.NAVIDROME_UNAVAILABLE:
        bindings = world.accounts.service.bindings
        assert [intent.kind for intent in bindings.intents()] == [IntentKind.WRITE]
    else:  # The shim has already read that the write was carried out.
        assert outcome == "alice"
    world.stand_in.breaks(None)
    await _settled(world, changed)
    after = await world.user("alice")
    assert after["name"] == "Other"
    for user in (before, after):
        user.pop("updatedAt")
        user.pop("name")
        user.pop("lastAccessAt")
    assert after == before


async def test_a_known_user_does_not_wait_for_the_api_and_a_changed_one_does(
    stand_in_world: World,
) -> None:
    world = stand_in_world
    await world.start(PROVISIONING_FAIL_MODE="closed")
    await world.request(person("alice"))
    world.stand_in.breaks(Fault(FaultKind.SERVER_ERROR, USERS))
    assert world.accounts.gate.known(person("alice")) is not None
    changed = await world.request(person("alice", "more"))
    assert isinstance(changed, AccountDenied) and changed.retry_after
    assert isinstance(await world.request(person("bob")), AccountDenied)


async def test_known_accounts_are_used_unchanged_if_the_settings_allow_it(
    stand_in_world: World,
) -> None:
    world = stand_in_world
    await world.start(PROVISIONING_FAIL_MODE="open", ALLOWED_GROUPS="music")
    await world.request(person("alice", "music"))
    world.stand_in.breaks(Fault(FaultKind.SERVER_ERROR, USERS))
    assert await world.request(person("alice", "music", "more")) == "alice"
    assert [event.allowed_stale for event in world.recorded(ProvisioningFailed)] == [True]
    assert world.accounts.gate.known(person("alice", "music", "more")) is None
    assert isinstance(await world.request(person("bob", "music")), AccountDenied)
    assert await world.reason(person("alice")) is Reason.GROUP_NOT_ALLOWED
    other_user = person("alice", "music", uid="stranger")
    assert await world.reason(other_user) is Reason.IDENTITY_CONFLICT


async def test_the_circuit_breaker_opens_for_a_failing_navidrome(stand_in_world: World) -> None:
    world = stand_in_world
    await world.start()
    world.stand_in.breaks(Fault(FaultKind.SERVER_ERROR, USERS))
    world.stand_in.stand_in.seen.clear()
    responses = await asyncio.gather(*(world.request(person(f"u{n}")) for n in range(100)))
    assert all(isinstance(response, AccountDenied) for response in responses)
    assert len(world.stand_in.stand_in.seen) < 40


async def test_a_request_has_a_deadline(stand_in_world: World) -> None:
    world = stand_in_world
    await world.start(PROVISIONING_TIMEOUT="0.2")
    world.stand_in.breaks(Fault(FaultKind.HANG, USERS))
    response = await world.accounts.gate.ensure(person("alice"), REQUEST_INFO)
    assert isinstance(response, AccountDenied) and response.retry_after
    assert response.reason is Reason.ACCOUNT_PENDING


async def test_a_lock_that_failed_is_repeated_later(stand_in_world: World) -> None:
    world = stand_in_world
    await world.start(ALLOWED_GROUPS="music")
    await world.request(person("eve", "music"))
    eve = await world.user("eve")
    await world.call("PUT", f"/api/user/{eve['id']}", {**eve, "password": "mine"})
    world.stand_in.breaks(Fault(FaultKind.SERVER_ERROR, USERS))
    assert await world.reason(person("eve")) is Reason.GROUP_NOT_ALLOWED
    assert not world.recorded(AccountLocked)
    world.stand_in.breaks(None)
    assert await world.opens("eve", "mine")
    await world.restart()
    await until(lambda: bool(world.recorded(AccountLocked)))
    assert not await world.opens("eve", "mine")


# accounts that are recreated by a race


async def test_a_write_that_races_with_a_deletion_leaves_no_open_account(world: World) -> None:
    await world.start()
    await world.request(person("alice"))
    before = await world.user("alice")
    _deletes_before_writing(world)
    assert await world.request(person("alice", display="New")) == "alice"
    after = await world.user("alice")
    assert after["id"] != before["id"] and after["name"] == "New"
    assert not await world.opens("alice", "")
    assert [event.account for event in world.recorded(AccountRecreatedByRace)] == ["alice"]
    assert not world.accounts.service.bindings.intents()


async def test_a_new_password_that_races_with_a_deletion_leaves_no_account(world: World) -> None:
    await world.start(ALLOWED_GROUPS="music")
    await world.request(person("alice", "music"))
    _deletes_before_writing(world)
    assert await world.reason(person("alice")) is Reason.GROUP_NOT_ALLOWED
    assert not await world.users()
    assert len(world.recorded(AccountRecreatedByRace)) == 1


async def test_a_claim_that_races_with_a_deletion_creates_the_account_again(world: World) -> None:
    await world.start()
    old_id = await world.create("old", "known")
    _deletes_before_writing(world)
    assert await world.request(person("old", display="New")) == "old"
    after = await world.user("old")
    assert after["id"] != old_id
    assert not await world.opens("old", "known") and not await world.opens("old", "")


async def test_a_pending_write_is_verified_before_any_user_is_served(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.start(ADMIN_GROUPS="admins")
    await world.request(person("alice", "admins"))
    api = world.accounts.service.api
    _deletes_before_writing(world)

    async def silent(user_name: str) -> bool:
        raise Unavailable(f"no answer about {user_name}")

    monkeypatch.setattr(api, "opens_without_password", silent)
    response = await world.request(person("alice", "admins", display="New"))
    assert isinstance(response, AccountDenied)
    assert await world.opens("alice", "")
    await world.restart()
    assert world.accounts.service.fault is None
    assert not await world.users()
    assert len(world.recorded(AccountRecreatedByRace)) == 1
    assert await world.request(person("alice", "admins", display="New")) == "alice"
    assert not await world.opens("alice", "")


async def test_an_existing_empty_password_is_replaced_and_the_account_kept(
    world: World,
) -> None:
    await world.start()
    await world.request(person("alice"))
    alice = await world.user("alice")
    await world.delete("alice")
    await world.call("PUT", f"/api/user/{alice['id']}", alice)
    assert await world.opens("alice", "")
    assert await world.request(person("alice", display="New")) == "alice"
    assert not await world.opens("alice", "")
    assert (await world.user("alice"))["id"] == alice["id"]
    assert not world.recorded(AccountRecreatedByRace)


async def test_a_user_who_writes_the_creation_time_is_not_mistaken_for_recreated(
    world: World,
) -> None:
    await world.start()
    await world.request(person("alice"))
    alice = await world.user("alice")
    api = world.accounts.service.api
    write = api.write

    async def raced(user: User, changes: Mapping[str, object], password: str | None = None) -> User:
        after = await write(user, changes, password)
        own = {**alice, "createdAt": "2001-02-03T04:05:06Z"}
        await world.call("PUT", f"/api/user/{alice['id']}", own, "alice")
        return await api.user(after.id) or after

    api.write = raced  # type: ignore[method-assign]
    assert await world.request(person("alice", display="New")) == "alice"
    assert (await world.user("alice"))["id"] == alice["id"]
    assert not world.recorded(AccountRecreatedByRace)


def _deletes_before_writing(world: World) -> None:
    """Delete the account between its next read and write."""
    api = world.accounts.service.api
    write = api.write

    async def raced(user: User, changes: Mapping[str, object], password: Any = None) -> User:
        api.write = write  # type: ignore[method-assign]
        await world.call("DELETE", f"/api/user/{user.id}")
        return await write(user, changes, password)

    api.write = raced  # type: ignore[method-assign]


async def _settled(world: World, identity: Identity) -> None:
    """Wait until the identity has access."""
    async with asyncio.timeout(15):
        while await world.request(identity) != identity.username:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
