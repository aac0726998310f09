"""Navidrome's own tokens and passwords are void when their account is locked, denied, unlinked or
linked again.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from demo.navidrome import Fault, FaultKind
from shim.audit.events.provisioning import AccountLocked, AccountReadmitted
from shim.navidrome.models import User
from shim.trust.identity import Identity
from shim.trust.reasons import Reason
from tests.integration.provisioning.test_commands import run
from tests.support.world import Token, World, person, until


async def signed_in(world: World, name: str = "alice", *groups: str) -> Token:
    """Provision a user, set a password, and return a token for it."""
    await world.request(person(name, *groups))
    user = await world.user(name)
    changed = {**user, "password": "mine"}
    await world.call("PUT", f"/api/user/{user['id']}", changed, name)
    token = await world.login(name, "mine")
    assert world.passes(token)
    return token


async def sets_a_password(world: World, token: Token) -> bool:
    """Return whether the holder of a token can set a new password without the old one."""
    name = next(n for n, user in (await world.users()).items() if user["id"] == token.user_id)
    body = {**await world.user(name), "password": "stolen"}
    await world.call_with(token, "PUT", f"/api/user/{token.user_id}", body)
    return await world.opens(name, "stolen")


def newer(world: World, token: Token) -> Token:
    """A token as Navidrome would issue it now, a second after the account's tokens became void."""
    rule = world.accounts.service.bindings.rule_of(token.user_id)
    assert rule is not None
    assert rule.void_before >= token.issued_at
    return replace(token, issued_at=int(rule.void_before) + 1)


async def test_tokens_of_a_denied_account_are_void_also_after_it_is_allowed_again(
    world: World,
) -> None:
    await world.start(ALLOWED_GROUPS="music")
    token = await signed_in(world, "alice", "music")
    gate = world.accounts.gate
    before = gate.revocations
    assert gate.may_continue(token.user_id, "uid-of-alice", 0)
    assert gate.may_continue(token.user_id, None, token.issued_at)
    assert await world.reason(person("alice")) is Reason.GROUP_NOT_ALLOWED
    assert gate.revocations > before
    assert not world.passes(token) and not world.passes(newer(world, token))
    assert not gate.may_continue(token.user_id, "uid-of-alice", 0)
    assert not gate.may_continue(token.user_id, None, token.issued_at)
    assert not await sets_a_password(world, token), "the lock's password can't be replaced"
    assert len(world.recorded(AccountLocked)) == 1

    assert await world.request(person("alice", "music")) == "alice"
    assert not world.passes(token) and world.passes(newer(world, token))
    assert gate.may_continue(token.user_id, "uid-of-alice", 0)
    assert not gate.may_continue(token.user_id, None, token.issued_at)
    assert not await world.opens("alice", "mine")
    assert len(world.recorded(AccountReadmitted)) == 1
    alice = await world.user("alice")
    chosen = {**alice, "password": "chosen"}
    await world.call("PUT", f"/api/user/{alice['id']}", chosen, "alice")
    assert await world.opens("alice", "chosen"), "who is back sets a password without an old one"
    await world.restart()
    assert not world.passes(token) and world.passes(newer(world, token))


async def test_no_token_outlives_an_unlink(any_store_world: World) -> None:
    world = any_store_world
    await world.start()
    token = await signed_in(world)
    gate = world.accounts.gate
    before = gate.revocations
    status, _, err = await run(world, "users", "unlink", "alice", "--yes")
    assert status == 0, err
    assert gate.revocations > before
    assert not world.passes(token) and not world.passes(newer(world, token))
    assert not gate.may_continue(token.user_id, "uid-of-alice", 0)
    assert not await sets_a_password(world, token)
    assert await world.request(person("alice", uid="other")) == "alice"
    assert not world.passes(token) and world.passes(newer(world, token))
    assert not gate.may_continue(token.user_id, "uid-of-alice", 0)
    assert gate.may_continue(token.user_id, "other", 0)


async def test_a_lock_voids_the_tokens_of_a_linked_account_until_its_user_returns(
    any_store_world: World,
) -> None:
    world = any_store_world
    await world.start()
    token = await signed_in(world)
    gate = world.accounts.gate
    status, _, err = await run(world, "users", "lock", "alice", "--yes")
    assert status == 0, err
    assert gate.known(person("alice")) is None
    assert not world.passes(token) and not world.passes(newer(world, token))
    assert not gate.may_continue(token.user_id, "uid-of-alice", 0)
    assert not await sets_a_password(world, token)
    assert await world.request(person("alice")) == "alice"
    assert not world.passes(token) and world.passes(newer(world, token))


async def test_a_lock_voids_the_tokens_of_an_unlinked_account(
    tcp_world: World,
) -> None:
    world = tcp_world
    await world.start(RECONCILE_SECONDS="3600")
    await world.create("guest", "mine")
    await world.accounts.service.reconcile()
    token = await world.login("guest", "mine")
    assert world.passes(token)
    status, _, err = await run(world, "users", "lock", "guest", "--yes")
    assert status == 0, err
    assert not world.passes(token) and not world.passes(newer(world, token))
    assert not world.accounts.gate.may_continue(token.user_id, None, token.issued_at)
    assert not await world.opens("guest", "mine")
    assert await world.request(person("guest")) == "guest", "who is linked to it is let in"
    assert not world.passes(token) and world.passes(newer(world, token))


async def test_tokens_are_void_before_the_new_password_is_written(stand_in_world: World) -> None:
    world = stand_in_world
    await world.start(ALLOWED_GROUPS="music", RECONCILE_SECONDS="3600")
    token = await signed_in(world, "alice", "music")
    fault = Fault(FaultKind.SERVER_ERROR, ("/api/user",), frozenset({"PUT"}))
    world.stand_in.breaks(fault)
    assert await world.reason(person("alice")) is Reason.GROUP_NOT_ALLOWED
    assert await world.opens("alice", "mine"), "the password could not be replaced yet"
    assert not world.passes(token)
    await world.restart()
    assert not world.passes(token)
    world.stand_in.breaks(None)


async def test_another_process_sees_a_lock(any_store_world: World) -> None:
    first = any_store_world
    await first.start(ALLOWED_GROUPS="music")
    token = await signed_in(first, "alice", "music")
    async with first.replica() as second:
        assert second.passes(token)
        before = second.accounts.gate.revocations
        assert await first.reason(person("alice")) is Reason.GROUP_NOT_ALLOWED
        await until(lambda: second.accounts.gate.revocations > before)
        assert not second.passes(token)
        assert not second.accounts.gate.may_continue(token.user_id, None, token.issued_at)


async def test_a_token_is_valid_only_if_its_claims_name_one_account(world: World) -> None:
    await world.create_first()
    await world.confirm_new()
    guest = await world.create("Guest", "mine")
    other = await world.create("other", "mine")
    await world.start()
    gate = world.accounts.gate
    assert gate.navidrome_token_valid("guest", guest, 1.0), "never locked: nothing is void"
    assert not gate.navidrome_token_valid("guest", other, 1.0)
    assert not gate.navidrome_token_valid("nobody", guest, 1.0)
    assert not gate.navidrome_token_valid("guest", "", 1.0)
    await world.change("Guest", userName="renamed")
    await world.accounts.service.reconcile()
    assert not gate.navidrome_token_valid("guest", guest, 1.0)
    assert gate.navidrome_token_valid("renamed", guest, 1.0)
    before = gate.revocations
    await world.delete("renamed")
    await world.accounts.service.reconcile()
    assert gate.revocations > before
    assert not gate.navidrome_token_valid("renamed", guest, 1.0)
    assert not gate.may_continue(guest, None, 1.0)


async def test_no_token_is_valid_while_the_users_are_unknown(stand_in_world: World) -> None:
    world = stand_in_world
    await world.create_first()
    await world.confirm_new()
    guest = await world.create("guest", "mine")
    await world.start(RECONCILE_SECONDS="3600")
    gate = world.accounts.gate
    assert gate.navidrome_token_valid("guest", guest, 1.0)
    world.stand_in.breaks(Fault(FaultKind.SERVER_ERROR))
    gate.users_may_have_changed()
    assert not gate.navidrome_token_valid("guest", guest, 1.0)
    assert gate.may_continue(guest, None, 1.0), "what is under way goes on"
    gate.upstream_changed()
    assert not gate.navidrome_token_valid("guest", guest, 1.0)
    world.stand_in.breaks(None)
    await until(lambda: gate.navidrome_token_valid("guest", guest, 1.0))


async def test_a_token_waits_for_the_users_that_were_changed_before_it_arrived(
    stand_in_world: World,
) -> None:
    world = stand_in_world
    await world.create_first()
    await world.confirm_new()
    guest = await world.create("guest", "mine")
    await world.start(RECONCILE_SECONDS="3600")
    gate = world.accounts.gate
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
    stand_in_world: World,
) -> None:
    world = stand_in_world
    await world.start(RECONCILE_SECONDS="3600")
    gate, read = world.accounts.gate, world.accounts.service.api.users

    async def changed_meanwhile() -> tuple[User, ...]:
        gate.users_may_have_changed()
        return await read()

    world.accounts.service.api.users = changed_meanwhile  # type: ignore[method-assign]
    gate.users_may_have_changed()
    assert await gate.list_users() is None
    assert not gate.users_listed


async def test_a_token_gets_503_while_the_users_cannot_be_listed(stand_in_world: World) -> None:
    world = stand_in_world
    await world.start(RECONCILE_SECONDS="3600")
    gate = world.accounts.gate
    world.stand_in.breaks(Fault(FaultKind.SERVER_ERROR, ("/api/user",)))
    gate.users_may_have_changed()
    denied = await gate.list_users()
    assert denied is not None
    assert denied.reason is Reason.NAVIDROME_UNAVAILABLE and denied.retry_after
    world.stand_in.breaks(None)
    await until(lambda: gate.users_listed)
    assert await gate.list_users() is None


@pytest.mark.parametrize("groups", [("music",), ("other",)])
async def test_settings_that_deny_a_user_void_tokens_at_once(
    world: World, groups: tuple[str, ...]
) -> None:
    await world.start()
    token = await signed_in(world, "alice", *groups)
    policy = replace(world.accounts.service.policy, allowed_groups=frozenset({"music"}))
    world.accounts.service.apply_policy(policy)
    allowed = groups == ("music",)
    gate = world.accounts.gate
    assert gate.may_continue(token.user_id, "uid-of-alice", 0) is allowed
    await until(lambda: world.accounts.service.fault is None)
    assert world.passes(token) is allowed
    await world.accounts.service.reconcile()
    assert await world.opens("alice", "mine") is allowed
    again = Identity("alice", None, None, ("music",), "uid-of-alice")
    assert await world.request(again) == "alice"
    assert world.passes(token) is allowed
