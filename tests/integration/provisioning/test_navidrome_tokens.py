"""Navidrome's own tokens and passwords are void when their account is locked, denied, unlinked or
linked again.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from demo.navidrome import Fault, FaultKind
from shim.audit.events.provisioning import AccountLocked, AccountReadmitted
from shim.navidrome.models import User
from shim.trust.identity import Identity
from shim.trust.reasons import Reason
from tests.integration.provisioning.test_commands import run
from tests.support.harness import Harness, Token, person, until
from tests.support.raw_connection import run_loop_turns


async def signed_in(harness: Harness, name: str = "alice", *groups: str) -> Token:
    """Provision a user, set a password, and return a token for it."""
    await harness.request(person(name, *groups))
    user = await harness.user(name)
    changed = {**user, "password": "mine"}
    await harness.call("PUT", f"/api/user/{user['id']}", changed, name)
    token = await harness.login(name, "mine")
    assert harness.accepts_token(token)
    return token


async def sets_a_password(harness: Harness, token: Token) -> bool:
    """Return whether the holder of a token can set a new password without the old one."""
    name = next(n for n, user in (await harness.users()).items() if user["id"] == token.user_id)
    body = {**await harness.user(name), "password": "stolen"}
    await harness.call_with(token, "PUT", f"/api/user/{token.user_id}", body)
    return await harness.accepts_password(name, "stolen")


def newer(harness: Harness, token: Token) -> Token:
    """A token as Navidrome would issue it now, a second after the account's tokens became void."""
    rule = harness.accounts.service.bindings.rule_of(token.user_id)
    assert rule is not None
    assert rule.void_before >= token.issued_at
    return replace(token, issued_at=int(rule.void_before) + 1)


async def test_tokens_of_a_denied_account_are_void_also_after_it_is_allowed_again(
    harness: Harness,
) -> None:
    await harness.start(ALLOWED_GROUPS="music")
    token = await signed_in(harness, "alice", "music")
    gate = harness.accounts.gate
    before = gate.revocations
    assert gate.may_continue(token.user_id, "uid-of-alice", 0)
    assert gate.may_continue(token.user_id, None, token.issued_at)
    assert await harness.reason(person("alice")) is Reason.GROUP_NOT_ALLOWED
    assert gate.revocations > before
    assert not harness.accepts_token(token) and not harness.accepts_token(newer(harness, token))
    assert not gate.may_continue(token.user_id, "uid-of-alice", 0)
    assert not gate.may_continue(token.user_id, None, token.issued_at)
    assert not await sets_a_password(harness, token), "the lock's password can't be replaced"
    assert len(harness.recorded(AccountLocked)) == 1

    assert await harness.request(person("alice", "music")) == "alice"
    assert not harness.accepts_token(token) and harness.accepts_token(newer(harness, token))
    assert gate.may_continue(token.user_id, "uid-of-alice", 0)
    assert not gate.may_continue(token.user_id, None, token.issued_at)
    assert gate.may_continue(token.user_id, None, newer(harness, token).issued_at)
    assert not await harness.accepts_password("alice", "mine")
    assert len(harness.recorded(AccountReadmitted)) == 1
    alice = await harness.user("alice")
    chosen = {**alice, "password": "chosen"}
    await harness.call("PUT", f"/api/user/{alice['id']}", chosen, "alice")
    assert await harness.accepts_password("alice", "chosen"), (
        "a readmitted user sets a password without the old one"
    )
    await harness.restart()
    assert not harness.accepts_token(token) and harness.accepts_token(newer(harness, token))


async def test_no_token_outlives_an_unlink(any_store_harness: Harness) -> None:
    harness = any_store_harness
    await harness.start()
    token = await signed_in(harness)
    gate = harness.accounts.gate
    before = gate.revocations
    status, _, err = await run(harness, "users", "unlink", "alice", "--yes")
    assert status == 0, err
    assert gate.revocations > before
    assert not harness.accepts_token(token) and not harness.accepts_token(newer(harness, token))
    assert not gate.may_continue(token.user_id, "uid-of-alice", 0)
    assert not await sets_a_password(harness, token)
    assert await harness.request(person("alice", uid="other")) == "alice"
    assert not harness.accepts_token(token) and harness.accepts_token(newer(harness, token))
    assert not gate.may_continue(token.user_id, "uid-of-alice", 0)
    assert gate.may_continue(token.user_id, "other", 0)


async def test_a_lock_voids_the_tokens_of_a_linked_account_until_its_user_returns(
    any_store_harness: Harness,
) -> None:
    harness = any_store_harness
    await harness.start()
    token = await signed_in(harness)
    gate = harness.accounts.gate
    status, _, err = await run(harness, "users", "lock", "alice", "--yes")
    assert status == 0, err
    assert gate.known(person("alice")) is None
    assert not harness.accepts_token(token) and not harness.accepts_token(newer(harness, token))
    assert not gate.may_continue(token.user_id, "uid-of-alice", 0)
    assert not await sets_a_password(harness, token)
    assert await harness.request(person("alice")) == "alice"
    assert not harness.accepts_token(token) and harness.accepts_token(newer(harness, token))


async def test_a_lock_voids_the_tokens_of_an_unlinked_account(
    tcp_harness: Harness,
) -> None:
    harness = tcp_harness
    await harness.start(RECONCILE_SECONDS="3600")
    await harness.create("guest", "mine")
    await harness.accounts.service.reconcile()
    token = await harness.login("guest", "mine")
    assert harness.accepts_token(token)
    status, _, err = await run(harness, "users", "lock", "guest", "--yes")
    assert status == 0, err
    assert not harness.accepts_token(token) and not harness.accepts_token(newer(harness, token))
    assert not harness.accounts.gate.may_continue(token.user_id, None, token.issued_at)
    assert not await harness.accepts_password("guest", "mine")
    assert await harness.request(person("guest")) == "guest", "the newly linked user has access"
    assert not harness.accepts_token(token) and harness.accepts_token(newer(harness, token))


async def test_tokens_are_void_before_the_new_password_is_written(
    stand_in_harness: Harness,
) -> None:
    harness = stand_in_harness
    await harness.start(ALLOWED_GROUPS="music", RECONCILE_SECONDS="3600")
    token = await signed_in(harness, "alice", "music")
    fault = Fault(FaultKind.SERVER_ERROR, ("/api/user",), frozenset({"PUT"}))
    harness.stand_in.breaks(fault)
    assert await harness.reason(person("alice")) is Reason.GROUP_NOT_ALLOWED
    assert await harness.accepts_password("alice", "mine"), "the password could not be replaced yet"
    assert not harness.accepts_token(token)
    await harness.restart()
    assert not harness.accepts_token(token)
    harness.stand_in.breaks(None)


async def test_another_process_sees_a_lock(any_store_harness: Harness) -> None:
    first = any_store_harness
    await first.start(ALLOWED_GROUPS="music")
    token = await signed_in(first, "alice", "music")
    async with first.replica() as second:
        assert second.accepts_token(token)
        before = second.accounts.gate.revocations
        assert await first.reason(person("alice")) is Reason.GROUP_NOT_ALLOWED
        await until(lambda: second.accounts.gate.revocations > before)
        assert not second.accepts_token(token)
        assert not second.accounts.gate.may_continue(token.user_id, None, token.issued_at)


async def test_a_token_is_valid_only_if_its_claims_name_one_account(harness: Harness) -> None:
    await harness.create_first()
    await harness.confirm_new()
    guest = await harness.create("Guest", "mine")
    other = await harness.create("other", "mine")
    await harness.start()
    gate = harness.accounts.gate
    assert gate.navidrome_token_valid("guest", guest, 1.0), "never locked: nothing is void"
    assert not gate.navidrome_token_valid("guest", other, 1.0)
    assert not gate.navidrome_token_valid("nobody", guest, 1.0)
    assert not gate.navidrome_token_valid("guest", "", 1.0)
    await harness.change("Guest", userName="renamed")
    await harness.accounts.service.reconcile()
    assert not gate.navidrome_token_valid("guest", guest, 1.0)
    assert gate.navidrome_token_valid("renamed", guest, 1.0)
    before = gate.revocations
    await harness.delete("renamed")
    await harness.accounts.service.reconcile()
    assert gate.revocations > before
    assert not gate.navidrome_token_valid("renamed", guest, 1.0)
    assert not gate.may_continue(guest, None, 1.0)


async def test_no_token_is_valid_while_the_users_are_unknown(stand_in_harness: Harness) -> None:
    harness = stand_in_harness
    await harness.create_first()
    await harness.confirm_new()
    guest = await harness.create("guest", "mine")
    await harness.start(RECONCILE_SECONDS="3600")
    gate = harness.accounts.gate
    assert gate.navidrome_token_valid("guest", guest, 1.0)
    harness.stand_in.breaks(Fault(FaultKind.SERVER_ERROR))
    gate.users_may_have_changed()
    assert not gate.navidrome_token_valid("guest", guest, 1.0)
    assert gate.may_continue(guest, None, 1.0), "responses in progress continue"
    gate.upstream_changed()
    assert not gate.navidrome_token_valid("guest", guest, 1.0)
    harness.stand_in.breaks(None)
    await until(lambda: gate.navidrome_token_valid("guest", guest, 1.0))


async def test_a_token_waits_for_the_users_that_were_changed_before_it_arrived(
    stand_in_harness: Harness,
) -> None:
    harness = stand_in_harness
    await harness.create_first()
    await harness.confirm_new()
    guest = await harness.create("guest", "mine")
    await harness.start(RECONCILE_SECONDS="3600")
    gate = harness.accounts.gate
    gate.users_may_have_changed()
    assert not gate.users_listed
    listed = gate.list_users()
    gate.users_may_have_changed()
    assert gate.list_users() is not listed, "it may not share a wait that began before the change"
    assert await listed is None
    assert gate.navidrome_token_valid("guest", guest, 1.0, listed=True)
    assert not gate.navidrome_token_valid("guest", "other", 1.0, listed=True)
    assert await gate.list_users() is None
    assert gate.users_listed


async def test_continuous_changes_of_users_do_not_delay_a_token_without_end(
    stand_in_harness: Harness,
) -> None:
    harness = stand_in_harness
    await harness.start(RECONCILE_SECONDS="3600")
    gate, read = harness.accounts.gate, harness.accounts.service.api.users

    async def changed_meanwhile() -> tuple[User, ...]:
        gate.users_may_have_changed()
        return await read()

    harness.accounts.service.api.users = changed_meanwhile  # type: ignore[method-assign]
    gate.users_may_have_changed()
    assert await gate.list_users() is None
    assert not gate.users_listed


async def test_a_token_waits_for_a_slow_list_of_users_longer_than_for_a_failing_one(
    stand_in_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.provisioning.gate._HOLD_SECONDS", 0.0)
    harness = stand_in_harness
    await harness.start(RECONCILE_SECONDS="3600")
    gate, read = harness.accounts.gate, harness.accounts.service.api.users
    begun, released = asyncio.Event(), asyncio.Event()

    async def slow() -> tuple[User, ...]:
        begun.set()
        await released.wait()
        return await read()

    harness.accounts.service.api.users = slow  # type: ignore[method-assign]
    gate.users_may_have_changed()
    listed = gate.list_users()
    await begun.wait()
    await run_loop_turns(10)
    assert not listed.done()
    released.set()
    assert await listed is None


async def test_a_token_gets_503_while_the_users_cannot_be_listed(stand_in_harness: Harness) -> None:
    harness = stand_in_harness
    await harness.start(RECONCILE_SECONDS="3600")
    gate = harness.accounts.gate
    harness.stand_in.breaks(Fault(FaultKind.SERVER_ERROR, ("/api/user",)))
    gate.users_may_have_changed()
    denied = await gate.list_users()
    assert denied is not None
    assert denied.reason is Reason.NAVIDROME_UNAVAILABLE and denied.retry_after
    harness.stand_in.breaks(None)
    await until(lambda: gate.users_listed)
    assert await gate.list_users() is None


@pytest.mark.parametrize("groups", [("music",), ("other",)])
async def test_settings_that_deny_a_user_void_tokens_at_once(
    harness: Harness, groups: tuple[str, ...]
) -> None:
    await harness.start()
    token = await signed_in(harness, "alice", *groups)
    policy = replace(harness.accounts.service.policy, allowed_groups=frozenset({"music"}))
    harness.accounts.service.apply_policy(policy)
    allowed = groups == ("music",)
    gate = harness.accounts.gate
    assert gate.may_continue(token.user_id, "uid-of-alice", 0) is allowed
    await until(lambda: harness.accounts.service.fault is None)
    assert harness.accepts_token(token) is allowed
    await harness.accounts.service.reconcile()
    assert await harness.accepts_password("alice", "mine") is allowed
    again = Identity("alice", None, None, ("music",), "uid-of-alice")
    assert await harness.request(again) == "alice"
    assert harness.accepts_token(token) is allowed
