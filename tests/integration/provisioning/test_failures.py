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
from tests.support.harness import REQUEST_INFO, Harness, person, until

USERS = ("/api/user",)


@pytest.mark.parametrize("kind", list(FaultKind))
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_first_request_while_the_api_fails_creates_no_duplicate(
    stand_in_harness: Harness, kind: FaultKind, method: str
) -> None:
    harness = stand_in_harness
    await harness.start(NAVIDROME_TIMEOUT="0.3")
    harness.stand_in.breaks(Fault(kind, USERS, frozenset({method}), times=6, carried_out=True))
    refused = await harness.request(person("alice"))
    if method == "GET":
        assert isinstance(refused, AccountDenied)
        assert refused.reason is Reason.NAVIDROME_UNAVAILABLE and refused.retry_after
        assert harness.recorded(ProvisioningFailed)
    else:  # The account was created, and the shim reads that it is there.
        assert refused == "alice"
        assert not harness.recorded(ProvisioningFailed)
    harness.stand_in.breaks(None)
    await _settled(harness, person("alice"))
    assert list(await harness.users()) == ["alice"]
    assert not await harness.accepts_password("alice", "")


@pytest.mark.parametrize("kind", list(FaultKind))
async def test_a_change_while_the_api_fails_loses_no_field(
    stand_in_harness: Harness, kind: FaultKind
) -> None:
    harness = stand_in_harness
    await harness.start(NAVIDROME_TIMEOUT="0.3")
    await harness.request(person("alice", display="Alice", email="a@example.com"))
    before = await harness.user("alice")
    harness.stand_in.breaks(Fault(kind, USERS, frozenset({"PUT"}), times=1, carried_out=True))
    changed = person("alice", display="Other", email="a@example.com")
    outcome = await harness.reason(changed)
    if outcome is Reason.NAVIDROME_UNAVAILABLE:
        bindings = harness.accounts.service.bindings
        assert [intent.kind for intent in bindings.intents()] == [IntentKind.WRITE]
    else:  # The shim has already read that the write was carried out.
        assert outcome == "alice"
    harness.stand_in.breaks(None)
    await _settled(harness, changed)
    after = await harness.user("alice")
    assert after["name"] == "Other"
    for user in (before, after):
        user.pop("updatedAt")
        user.pop("name")
        user.pop("lastAccessAt")
    assert after == before


async def test_a_known_user_does_not_wait_for_the_api_and_a_changed_one_does(
    stand_in_harness: Harness,
) -> None:
    harness = stand_in_harness
    await harness.start(PROVISIONING_FAIL_MODE="closed")
    await harness.request(person("alice"))
    harness.stand_in.breaks(Fault(FaultKind.SERVER_ERROR, USERS))
    assert harness.accounts.gate.known(person("alice")) is not None
    changed = await harness.request(person("alice", "more"))
    assert isinstance(changed, AccountDenied) and changed.retry_after
    assert isinstance(await harness.request(person("bob")), AccountDenied)


async def test_known_accounts_are_used_unchanged_if_the_settings_allow_it(
    stand_in_harness: Harness,
) -> None:
    harness = stand_in_harness
    await harness.start(PROVISIONING_FAIL_MODE="open", ALLOWED_GROUPS="music")
    await harness.request(person("alice", "music"))
    harness.stand_in.breaks(Fault(FaultKind.SERVER_ERROR, USERS))
    assert await harness.request(person("alice", "music", "more")) == "alice"
    assert [event.allowed_stale for event in harness.recorded(ProvisioningFailed)] == [True]
    assert harness.accounts.gate.known(person("alice", "music", "more")) is None
    assert isinstance(await harness.request(person("bob", "music")), AccountDenied)
    assert await harness.reason(person("alice")) is Reason.GROUP_NOT_ALLOWED
    other_user = person("alice", "music", uid="stranger")
    assert await harness.reason(other_user) is Reason.IDENTITY_CONFLICT


async def test_the_circuit_breaker_opens_for_a_failing_navidrome(stand_in_harness: Harness) -> None:
    harness = stand_in_harness
    await harness.start()
    harness.stand_in.breaks(Fault(FaultKind.SERVER_ERROR, USERS))
    harness.stand_in.stand_in.seen.clear()
    responses = await asyncio.gather(*(harness.request(person(f"u{n}")) for n in range(100)))
    assert all(isinstance(response, AccountDenied) for response in responses)
    assert len(harness.stand_in.stand_in.seen) < 40


async def test_a_request_has_a_deadline(stand_in_harness: Harness) -> None:
    harness = stand_in_harness
    await harness.start(PROVISIONING_TIMEOUT="0.2")
    harness.stand_in.breaks(Fault(FaultKind.HANG, USERS))
    response = await harness.accounts.gate.ensure(person("alice"), REQUEST_INFO)
    assert isinstance(response, AccountDenied) and response.retry_after
    assert response.reason is Reason.ACCOUNT_PENDING


async def test_waiting_requests_are_rejected_when_the_shim_stops(
    stand_in_harness: Harness,
) -> None:
    harness = stand_in_harness
    await harness.start()
    harness.stand_in.breaks(Fault(FaultKind.HANG, USERS))
    gate = harness.accounts.gate
    account = gate.ensure(person("alice"), REQUEST_INFO)
    gate.users_may_have_changed()
    listed = gate.list_users()
    await asyncio.sleep(0)
    await harness.stop()
    for denied in (await account, await listed):
        assert isinstance(denied, AccountDenied)
        assert (denied.reason, denied.detail) == (Reason.ACCOUNT_UNAVAILABLE, "the shim stops")


async def test_a_lock_that_failed_is_repeated_later(stand_in_harness: Harness) -> None:
    harness = stand_in_harness
    await harness.start(ALLOWED_GROUPS="music")
    await harness.request(person("eve", "music"))
    eve = await harness.user("eve")
    await harness.call("PUT", f"/api/user/{eve['id']}", {**eve, "password": "mine"})
    harness.stand_in.breaks(Fault(FaultKind.SERVER_ERROR, USERS))
    assert await harness.reason(person("eve")) is Reason.GROUP_NOT_ALLOWED
    assert not harness.recorded(AccountLocked)
    harness.stand_in.breaks(None)
    assert await harness.accepts_password("eve", "mine")
    await harness.restart()
    await until(lambda: bool(harness.recorded(AccountLocked)))
    assert not await harness.accepts_password("eve", "mine")


# accounts that are recreated by a race


async def test_a_write_that_races_with_a_deletion_leaves_no_open_account(harness: Harness) -> None:
    await harness.start()
    await harness.request(person("alice"))
    before = await harness.user("alice")
    _deletes_before_writing(harness)
    assert await harness.request(person("alice", display="New")) == "alice"
    after = await harness.user("alice")
    assert after["id"] != before["id"] and after["name"] == "New"
    assert not await harness.accepts_password("alice", "")
    assert [event.account for event in harness.recorded(AccountRecreatedByRace)] == ["alice"]
    assert not harness.accounts.service.bindings.intents()


async def test_a_new_password_that_races_with_a_deletion_leaves_no_account(
    harness: Harness,
) -> None:
    await harness.start(ALLOWED_GROUPS="music")
    await harness.request(person("alice", "music"))
    _deletes_before_writing(harness)
    assert await harness.reason(person("alice")) is Reason.GROUP_NOT_ALLOWED
    assert not await harness.users()
    assert len(harness.recorded(AccountRecreatedByRace)) == 1


async def test_a_claim_that_races_with_a_deletion_creates_the_account_again(
    harness: Harness,
) -> None:
    await harness.start()
    old_id = await harness.create("old", "known")
    _deletes_before_writing(harness)
    assert await harness.request(person("old", display="New")) == "old"
    after = await harness.user("old")
    assert after["id"] != old_id
    assert not await harness.accepts_password(
        "old", "known"
    ) and not await harness.accepts_password("old", "")


async def test_a_pending_write_is_verified_before_any_user_is_served(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    await harness.start(ADMIN_GROUPS="admins")
    await harness.request(person("alice", "admins"))
    api = harness.accounts.service.api
    _deletes_before_writing(harness)

    async def silent(user_name: str) -> bool:
        raise Unavailable(f"no response about {user_name}")

    monkeypatch.setattr(api, "opens_without_password", silent)
    response = await harness.request(person("alice", "admins", display="New"))
    assert isinstance(response, AccountDenied)
    assert await harness.accepts_password("alice", "")
    await harness.restart()
    assert harness.accounts.service.fault is None
    assert not await harness.users()
    assert len(harness.recorded(AccountRecreatedByRace)) == 1
    assert await harness.request(person("alice", "admins", display="New")) == "alice"
    assert not await harness.accepts_password("alice", "")


async def test_a_request_waits_for_the_recovery_of_its_own_interrupted_write(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both need the locks of the account: a request that kept them would stop the recovery, and everybody
    waits for that."""
    await harness.start(ADMIN_GROUPS="admins")
    alice = person("alice", "admins", display="New")
    await harness.request(person("alice", "admins"))
    service = harness.accounts.service

    async def silent(user_name: str) -> bool:
        raise Unavailable(f"no response about {user_name}")

    _deletes_before_writing(harness)
    with monkeypatch.context() as patch:
        patch.setattr(service.api, "opens_without_password", silent)
        assert isinstance(await harness.request(alice), AccountDenied)
    assert service.bindings.intents()
    service.invalidate("the settings changed")
    async with asyncio.timeout(20):
        assert await asyncio.gather(*map(harness.request, (alice, person("bob")))) == [
            "alice",
            "bob",
        ]
    assert not service.bindings.intents()


async def test_an_existing_empty_password_is_replaced_and_the_account_kept(
    harness: Harness,
) -> None:
    await harness.start()
    await harness.request(person("alice"))
    alice = await harness.user("alice")
    await harness.delete("alice")
    await harness.call("PUT", f"/api/user/{alice['id']}", alice)
    assert await harness.accepts_password("alice", "")
    assert await harness.request(person("alice", display="New")) == "alice"
    assert not await harness.accepts_password("alice", "")
    assert (await harness.user("alice"))["id"] == alice["id"]
    assert not harness.recorded(AccountRecreatedByRace)


async def test_a_user_who_writes_the_creation_time_is_not_mistaken_for_recreated(
    harness: Harness,
) -> None:
    await harness.start()
    await harness.request(person("alice"))
    alice = await harness.user("alice")
    api = harness.accounts.service.api
    write = api.write

    async def write_after_race(
        user: User, changes: Mapping[str, object], password: str | None = None
    ) -> User:
        after = await write(user, changes, password)
        own = {**alice, "createdAt": "2001-02-03T04:05:06Z"}
        await harness.call("PUT", f"/api/user/{alice['id']}", own, "alice")
        return await api.user(after.id) or after

    api.write = write_after_race  # type: ignore[method-assign]
    assert await harness.request(person("alice", display="New")) == "alice"
    assert (await harness.user("alice"))["id"] == alice["id"]
    assert not harness.recorded(AccountRecreatedByRace)


def _deletes_before_writing(harness: Harness) -> None:
    """Delete the account between its next read and write."""
    api = harness.accounts.service.api
    write = api.write

    async def write_after_race(
        user: User, changes: Mapping[str, object], password: Any = None
    ) -> User:
        api.write = write  # type: ignore[method-assign]
        await harness.call("DELETE", f"/api/user/{user.id}")
        return await write(user, changes, password)

    api.write = write_after_race  # type: ignore[method-assign]


async def _settled(harness: Harness, identity: Identity) -> None:
    """Wait until the identity has access."""
    async with asyncio.timeout(15):
        while await harness.request(identity) != identity.username:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
