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
from tests.support.harness import OPERATOR, REQUEST_INFO, Harness, person, until


@asynccontextmanager
async def slow_read(harness: Harness) -> AsyncIterator[asyncio.Event]:
    """Block the next reading of a user until the event is set; entered once it is read."""
    api, resume = harness.accounts.service.api, asyncio.Event()
    read = api.user

    async def slow(user_id: str) -> User | None:
        api.user = read  # type: ignore[method-assign]
        user = await read(user_id)
        await resume.wait()
        return user

    api.user = slow  # type: ignore[method-assign]
    try:
        yield resume
    finally:
        resume.set()


async def test_a_slow_request_does_not_undo_an_unlink(any_store_harness: Harness) -> None:
    harness = any_store_harness
    await harness.start(LINK_EXISTING="none", RECONCILE_SECONDS="3600")
    await harness.request(person("alice"))
    alice = await harness.user("alice")
    await harness.call("PUT", f"/api/user/{alice['id']}", {**alice, "password": "mine"})
    bindings = harness.accounts.service.bindings
    async with slow_read(harness) as resume:
        late = harness.accounts.gate.ensure(person("alice", "more", display="Late"), REQUEST_INFO)
        status, _, err = await run(harness, "users", "unlink", "alice", "--yes")
        assert status == 0, err
        async with harness.replica() as second:
            assert await second.request(person("alice", uid="other")) == "alice"
        resume.set()
        response = await late
    assert (await harness.user("alice"))["name"] != "Late", "an outdated request writes nothing"
    assert isinstance(response, AccountDenied) and response.reason is Reason.IDENTITY_CONFLICT
    assert harness.accounts.gate.known(person("alice", "more", display="Late")) is None
    assert bindings.by_uid("uid-of-alice") is None
    owner = bindings.by_account(alice["id"])
    assert owner is not None and owner.uid == "other"
    assert not await harness.accepts_password("alice", "mine")


async def test_a_user_who_is_provisioned_while_being_unlinked_gets_a_new_password(
    any_store_harness: Harness,
) -> None:
    harness = any_store_harness
    await harness.start(RECONCILE_SECONDS="3600")
    await harness.request(person("alice"))
    alice = await harness.user("alice")
    await harness.call("PUT", f"/api/user/{alice['id']}", {**alice, "password": "mine"})
    async with slow_read(harness) as resume:
        late = harness.accounts.gate.ensure(person("alice", "more"), REQUEST_INFO)
        status, _, err = await run(harness, "users", "unlink", "alice", "--yes")
        assert status == 0, err
        resume.set()
        assert isinstance(await late, Account), "the unlinked account is claimed again"
    rule = harness.accounts.service.bindings.rule_of(alice["id"])
    assert rule is not None and rule.void_before and not rule.locked
    assert not await harness.accepts_password("alice", "mine")
    assert len(harness.recorded(AccountReadmitted)) == 1


async def test_no_account_is_known_that_another_shim_changed_meanwhile(
    any_store_harness: Harness,
) -> None:
    first = any_store_harness
    await first.start(ALLOWED_GROUPS="music", RECONCILE_SECONDS="3600")
    await first.request(person("eve", "music"))
    async with first.replica() as second:
        async with slow_read(first) as resume:
            late = first.accounts.gate.ensure(person("eve", "music", "more"), REQUEST_INFO)
            assert await second.reason(person("eve")) is Reason.GROUP_NOT_ALLOWED
            await until(lambda: first.accounts.service.bindings.is_locked(_id(first, "uid-of-eve")))
            resume.set()
            response = await late
        # The late identity is allowed: it gets access again, as after any lock.
        assert isinstance(response, Account)
        assert len(first.recorded(AccountReadmitted)) == 1


async def test_a_reconcile_gives_no_libraries_to_an_account_that_was_unlinked_meanwhile(
    any_store_harness: Harness,
) -> None:
    harness = any_store_harness
    groups = '{"family": ["Music Library", "Family"]}'
    await harness.start(LIBRARY_GROUPS=groups, RECONCILE_SECONDS="3600")
    assert await harness.request(person("alice", "family")) == "alice"
    alice = await harness.user("alice")
    await harness.call("PUT", f"/api/user/{alice['id']}/library", {"libraryIds": [1]})
    async with slow_read(harness) as resume:
        reconcile = asyncio.create_task(harness.accounts.service.reconcile())
        status, _, err = await run(harness, "users", "unlink", "alice", "--yes")
        assert status == 0, err
        resume.set()
        await reconcile
    after = await harness.user("alice")
    assert [library["id"] for library in after["libraries"]] == [1]
    assert not harness.accounts.service.bindings.intents()


@pytest.mark.parametrize("groups", [("music", "admins"), ("music",)])
async def test_a_user_who_is_allowed_again_has_every_right_at_once(
    harness: Harness, groups: tuple[str, ...]
) -> None:
    await harness.start(ALLOWED_GROUPS="music", ADMIN_GROUPS="admins")
    await harness.request(person("eve", *groups))
    assert await harness.reason(person("eve")) is Reason.GROUP_NOT_ALLOWED
    assert harness.accounts.gate.known(person("eve", *groups)) is None
    assert (await harness.user("eve"))["isAdmin"] is False
    assert await harness.request(person("eve", *groups)) == "eve"
    assert (await harness.user("eve"))["isAdmin"] is ("admins" in groups)
    binding = harness.accounts.service.bindings.by_uid("uid-of-eve")
    assert binding is not None and binding.state == "active" and not binding.lock_pending


async def test_a_stricter_group_setting_locks_denied_users_without_a_request(
    harness: Harness,
) -> None:
    await harness.start(RECONCILE_SECONDS="3600")
    for name, group in (("alice", "music"), ("eve", "other")):
        await harness.request(person(name, group))
        user = await harness.user(name)
        await harness.call("PUT", f"/api/user/{user['id']}", {**user, "password": "mine"})
    await harness.restart(ALLOWED_GROUPS="music", RECONCILE_SECONDS="3600")
    bindings = harness.accounts.service.bindings
    await until(lambda: bindings.is_locked(_id(harness, "uid-of-eve")))
    await harness.accounts.service.reconcile()
    assert not await harness.accepts_password("eve", "mine") and await harness.accepts_password(
        "alice", "mine"
    )
    binding = bindings.by_uid("uid-of-eve")
    assert binding is not None and binding.state is BindingState.DENIED


async def test_a_denied_user_loses_an_admin_right_that_was_granted_by_hand(
    harness: Harness,
) -> None:
    await harness.start(ALLOWED_GROUPS="music", ADMIN_GROUPS="admins")
    await harness.request(person("eve", "music", "admins"))
    assert await harness.reason(person("eve")) is Reason.GROUP_NOT_ALLOWED
    await harness.change("eve", isAdmin=True)
    await harness.accounts.service.reconcile()
    assert (await harness.user("eve"))["isAdmin"] is False


def _id(harness: Harness, uid: str) -> str:
    binding = harness.accounts.service.bindings.by_uid(uid)
    assert binding is not None
    return binding.navidrome_id


async def test_an_unlink_succeeds_although_the_running_shim_changes_the_binding(
    any_store_harness: Harness,
) -> None:
    harness = any_store_harness
    await harness.start()
    assert await harness.request(person("alice", display="One")) == "alice"
    settings = load(harness.environment())
    async with operations(settings, harness.events.append, OPERATOR) as commands:
        assert await harness.request(person("alice", display="Two")) == "alice"
        assert await commands.unlink("alice")
    assert len(harness.recorded(AccountUnlinked)) == 1
    await harness.accounts.service.refresh()
    assert harness.accounts.service.bindings.by_uid("uid-of-alice") is None


async def test_an_account_that_was_bound_to_another_user_meanwhile_is_not_unlinked(
    any_store_harness: Harness,
) -> None:
    harness = any_store_harness
    await harness.start(NAME_REUSE_DELAY_HOURS="0")
    assert await harness.request(person("alice")) == "alice"
    settings = load(harness.environment())
    async with operations(settings, harness.events.append, OPERATOR) as commands:
        status, _, err = await run(harness, "users", "unlink", "alice", "--yes")
        assert status == 0, err
        await harness.accounts.service.refresh()
        assert await harness.request(person("alice", uid="another")) == "alice"
        with pytest.raises(OperationError):
            await commands.unlink("alice")
    assert harness.accounts.service.bindings.by_uid("another") is not None
