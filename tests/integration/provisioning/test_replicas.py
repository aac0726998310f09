"""Two shims with one database and one Navidrome: each sees the other's changes, and undoes none."""

from __future__ import annotations

import asyncio

import pytest

from shim.audit.events.provisioning import AccountCreated, AccountLocked, ProvisioningFailed
from shim.health import State
from shim.proxy.gate import AccountDenied
from shim.store.errors import StoreError
from shim.trust.reasons import Reason
from tests.support.harness import LONG_TIMEOUTS, VERIFIED, Harness, person, until
from tests.support.postgresql import PASSWORD, PostgreSQL
from tests.unit.trust.test_token_proof import by_token, decide_on


async def test_a_user_bound_by_one_shim_is_known_to_the_other_at_once(
    any_store_harness: Harness,
) -> None:
    first = any_store_harness
    await first.start()
    async with first.replica() as second:
        for name in ("alice", "bob", "carol"):
            assert await first.request(person(name)) == name
            assert await second.request(person(name)) == name
            other_user = person(name, uid="stranger")
            assert await second.reason(other_user) is Reason.IDENTITY_CONFLICT
        assert len(first.recorded(AccountCreated)) == 3
        assert not second.recorded(AccountCreated)
        assert not second.recorded(ProvisioningFailed)
        assert not second.recorded(AccountLocked), "no password was changed"


@pytest.mark.usefixtures("unlimited_busy_timeout")
async def test_of_two_concurrent_first_requests_one_creates_the_account_and_both_succeed(
    any_store_harness: Harness,
) -> None:
    first = any_store_harness
    await first.start(**LONG_TIMEOUTS)
    names = [f"person{number}" for number in range(12)]
    async with first.replica() as second:
        both = [harness.request(person(name)) for name in names for harness in (first, second)]
        for response in await asyncio.gather(*both):
            if isinstance(response, AccountDenied):
                assert response.reason is Reason.ACCOUNT_PENDING and response.retry_after
                assert "another process" in response.detail
        for harness in (first, second):
            assert [await harness.request(person(name)) for name in names] == names
        assert sorted(await first.users()) == sorted(names)
        created = [*first.recorded(AccountCreated), *second.recorded(AccountCreated)]
        assert sorted(event.account for event in created) == sorted(names)
        await first.accounts.service.bindings.load()
        assert not first.accounts.service.bindings.intents()


async def test_a_user_denied_by_one_shim_is_invalidated_in_the_other(
    any_store_harness: Harness,
) -> None:
    first = any_store_harness
    await first.start(ALLOWED_GROUPS="music")
    async with first.replica() as second:
        for harness in (first, second):
            assert await harness.request(person("eve", "music")) == "eve"
        assert await first.reason(person("eve")) is Reason.GROUP_NOT_ALLOWED
        await until(lambda: second.accounts.gate.known(person("eve", "music")) is None)


async def test_the_name_of_a_deleted_account_is_held_whichever_shim_notices_first(
    any_store_harness: Harness,
) -> None:
    first = any_store_harness
    await first.start(RECONCILE_SECONDS="3600")
    async with first.replica() as second:
        assert await first.request(person("alice")) == "alice"
        for harness in (first, second):
            await harness.accounts.service.reconcile()
        await first.delete("alice")
        for harness in (first, second):
            await harness.accounts.service.reconcile()
            await harness.accounts.service.refresh()
        assert await second.reason(person("alice", uid="another")) is Reason.NAME_HELD
        assert await second.request(person("alice")) == "alice"


async def test_a_change_of_users_through_one_shim_is_seen_by_the_other(
    any_store_harness: Harness,
) -> None:
    first = any_store_harness
    await first.start(RECONCILE_SECONDS="3600")
    async with first.replica() as second:
        for harness in (first, second):
            assert await harness.request(person("alice")) == "alice"
        gate = second.accounts.gate
        await first.delete("alice")
        await first.create("alice", isAdmin=True)
        first.accounts.gate.users_may_have_changed()
        await until(lambda: gate.known(person("alice")) is None)
        await until(lambda: gate.users_listed)
        assert await second.reason(person("alice")) is Reason.IDENTITY_CONFLICT


async def test_changes_of_another_shim_cause_no_further_changes(
    any_store_harness: Harness,
) -> None:
    first = any_store_harness
    await first.start(RECONCILE_SECONDS="3600")
    async with first.replica() as second:
        directories = [harness.accounts.service.directory for harness in (first, second)]
        changes = [directory.changes for directory in directories]
        first.accounts.gate.users_may_have_changed()
        await until(lambda: directories[1].changes > changes[1])
        await until(lambda: all(directory.current for directory in directories))
        for harness in (first, second):
            await harness.accounts.service.refresh()
        assert [directory.changes for directory in directories] == [each + 1 for each in changes]


async def test_a_change_of_users_that_could_not_be_announced_is_announced_later(
    stand_in_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stand_in_harness
    await first.start(RECONCILE_SECONDS="3600")
    async with first.replica() as second:
        bindings, directory = first.accounts.service.bindings, second.accounts.service.directory
        announce, failed = bindings.announce_users_change, asyncio.Event()

        async def fail() -> None:
            failed.set()
            raise StoreError("the disk is full")

        changes = directory.changes
        monkeypatch.setattr(bindings, "announce_users_change", fail)
        first.accounts.gate.users_may_have_changed()
        await failed.wait()
        assert directory.changes == changes
        monkeypatch.setattr(bindings, "announce_users_change", announce)
        await until(lambda: directory.changes > changes)


async def test_two_shims_with_verified_tokens_do_not_invalidate_each_other(
    any_store_harness: Harness,
) -> None:
    first = any_store_harness
    identity = decide_on(by_token()).identity
    assert identity is not None
    await first.start(RECONCILE_SECONDS="3600")
    async with first.replica() as second:
        for harness in (first, second):
            assert await harness.request(identity, VERIFIED) == "ada"
        bound = first.accounts.service.bindings.by_uid("5a1c")
        assert bound is not None
        for harness in (second, first, second):
            await harness.accounts.service.refresh()
            assert harness.accounts.gate.known(identity) is not None, "the other one wrote nothing"
            assert await harness.request(identity, VERIFIED) == "ada"
        await first.restart()
        assert await first.request(identity, VERIFIED) == "ada"
        again = first.accounts.service.bindings.by_uid("5a1c")
        assert again is not None and again.version == bound.version, "a restart costs no write"


async def test_while_the_database_is_down_only_known_users_are_served(
    postgresql: PostgreSQL, postgresql_url: str, stand_in_harness: Harness
) -> None:
    harness = stand_in_harness
    harness.database_url = postgresql_url
    await harness.start(ALLOWED_GROUPS="music")
    gate, account_service = harness.accounts.gate, harness.accounts.service
    assert await harness.request(person("alice", "music")) == "alice"
    postgresql.stop()
    try:
        await until(lambda: harness.accounts.checks()[0].state is State.FAILING)
        assert gate.known(person("alice", "music")) is not None
        for other_user in (person("bob", "music"), person("alice", "music", uid="other")):
            refused = await harness.request(other_user)
            assert isinstance(refused, AccountDenied) and refused.retry_after
            assert refused.reason is Reason.STORE_UNAVAILABLE
        assert await harness.reason(person("mallory")) is Reason.GROUP_NOT_ALLOWED
        assert list(await harness.users()) == ["alice"], "no account is created without a binding"
    finally:
        postgresql.start()
    await until(lambda: harness.accounts.checks()[0].state is State.OK)
    assert account_service.fault is None
    assert await harness.request(person("bob", "music")) == "bob"
    assert PASSWORD not in repr(harness.events)


async def test_an_account_that_could_not_be_bound_is_bound_once_the_database_is_up(
    postgresql: PostgreSQL, postgresql_url: str, stand_in_harness: Harness
) -> None:
    harness = stand_in_harness
    harness.database_url = postgresql_url
    await harness.start()
    api = harness.accounts.service.api
    create = api.create

    async def cut(new: object, password: str) -> str:
        created_user = await create(new, password)  # type: ignore[arg-type]
        await asyncio.to_thread(postgresql.stop)
        return created_user

    api.create = cut  # type: ignore[method-assign]
    try:
        assert isinstance(await harness.request(person("alice")), AccountDenied)
        api.create = create  # type: ignore[method-assign]
        created_user = await harness.user("alice")
    finally:
        postgresql.start()
    assert await harness.request(person("alice")) == "alice"
    assert (await harness.user("alice"))["id"] == created_user["id"]
    assert harness.accounts.service.bindings.by_account(created_user["id"]) is not None
