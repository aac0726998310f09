"""Conditions before any user is forwarded to Navidrome: it has users, the shim has admin access, no
account is open.
"""

from __future__ import annotations

import asyncio

import pytest

from demo.navidrome import Fault, FaultKind
from shim.audit.events.provisioning import AdminCreated, ProvisioningFailed, ProvisioningUnavailable
from shim.health import State
from shim.provisioning import gate
from shim.provisioning.factory import build_accounts
from shim.proxy.gate import AccountDenied
from shim.settings import load
from shim.store.database import Database
from shim.trust.reasons import Reason
from tests.support.world import World, person, until


async def test_a_server_that_restarts_empty_gets_an_admin_before_any_user(
    world: World,
) -> None:
    await world.start()
    await world.request(person("alice"))
    await world.server.stop()
    await until(lambda: world.accounts.gate.known(person("alice")) is None)
    await world.server.empty()
    await world.server.start()
    await until(lambda: world.accounts.service.fault is None)
    assert await world.request(person("alice")) == "alice"
    assert (await world.user("alice"))["isAdmin"] is False
    assert len(world.recorded(AdminCreated)) == 2


async def test_a_server_that_restarts_with_its_data_keeps_every_user(world: World) -> None:
    await world.start()
    await world.request(person("alice"))
    before = await world.users()
    await world.server.stop()
    await until(lambda: world.accounts.gate.known(person("alice")) is None)
    refused = await world.request(person("alice"))
    assert isinstance(refused, AccountDenied) and refused.retry_after
    assert refused.reason is Reason.NAVIDROME_UNAVAILABLE
    await world.server.start()
    await until(lambda: world.accounts.service.fault is None)
    assert await world.request(person("alice")) == "alice"
    assert list(await world.users()) == list(before)


async def test_a_request_is_held_while_navidrome_restarts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_HOLD_SECONDS", 15.0)
    await world.start()
    await world.request(person("alice"))
    await world.server.stop()
    await until(lambda: world.accounts.gate.known(person("alice")) is None)
    pending = [asyncio.create_task(world.request(person(name))) for name in ("alice", "new")]
    await until(lambda: bool(world.recorded(ProvisioningUnavailable)))
    assert not any(task.done() for task in pending)
    await world.server.start()
    assert await asyncio.gather(*pending) == ["alice", "new"]
    assert not world.recorded(ProvisioningFailed)


async def test_a_request_is_not_held_if_navidrome_is_up_and_rejects_the_shim(
    stand_in_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_HOLD_SECONDS", 3600.0)
    world = stand_in_world
    await world.create_first("boss")
    await world.start()
    refused = await world.request(person("alice"))
    assert isinstance(refused, AccountDenied) and "none of them is navidrome-shim" in refused.detail


async def test_a_401_of_the_api_triggers_a_check_of_the_users(world: World) -> None:
    await world.start()
    await world.request(person("alice"))
    await world.request(person("bob"))
    await world.delete("alice")
    world.accounts.gate.report_unauthorized(person("alice"))
    assert world.accounts.gate.known(person("alice")) is None
    assert world.accounts.gate.known(person("bob")) is None
    assert await world.request(person("alice")) == "alice"
    assert "alice" in await world.users()


async def test_a_server_with_users_and_without_the_shims_account_has_a_remedy(
    world: World,
) -> None:
    await world.create_first("owner", "secret-1")
    await world.start()
    refused = await world.request(person("alice"))
    assert isinstance(refused, AccountDenied) and refused.reason is Reason.NAVIDROME_ACCESS_DENIED
    check = world.accounts.checks()[1]
    assert check.state is State.FAILING
    assert "none of them is navidrome-shim" in check.detail
    assert check.remedy is not None and "SHIM_BOOTSTRAP_ADMIN" in check.remedy
    [unready] = world.recorded(ProvisioningUnavailable)
    assert unready.remedy == check.remedy
    assert list(await world.users_as("owner")) == ["owner"]


async def test_a_shim_account_that_is_not_admin_has_a_remedy(world: World) -> None:
    await world.create_first("owner", "secret-1")
    await world.call("POST", "/api/user", {"userName": "navidrome-shim", "password": "x"}, "owner")
    await world.start()
    check = world.accounts.checks()[1]
    assert check.state is State.FAILING and "is not an admin" in check.detail
    shim = (await world.users_as("owner"))["navidrome-shim"]
    await world.call("PUT", f"/api/user/{shim['id']}", {**shim, "isAdmin": True}, "owner")
    # Another client created the account, so this database may replace a lost one.
    await until(lambda: "confirm-new" in (world.accounts.checks()[1].remedy or ""))
    await world.confirm_new()
    await until(lambda: world.accounts.service.fault is None)
    assert await world.request(person("alice")) == "alice"


async def test_with_the_password_of_an_admin_the_shim_creates_its_own_account(world: World) -> None:
    await world.create_first("owner", "secret-1")
    settings = {"NAVIDROME_ADMIN_USERNAME": "owner", "NAVIDROME_ADMIN_PASSWORD": "secret-1"}
    await world.start(**settings)
    assert await world.request(person("alice")) == "alice"
    users = await world.users_as("owner")
    assert users["navidrome-shim"]["isAdmin"] is True
    assert [(e.account, e.first) for e in world.recorded(AdminCreated)] == [
        ("navidrome-shim", False)
    ]
    assert await world.reason(person("Owner")) is Reason.RESERVED_ACCOUNT
    await world.restart(FOLLOW_RENAMES="off")
    assert await world.request(person("bob")) == "bob"


async def test_an_empty_server_gets_the_admin_of_the_settings(world: World) -> None:
    await world.start(NAVIDROME_ADMIN_USERNAME="chief", NAVIDROME_ADMIN_PASSWORD="secret-1")
    assert await world.request(person("alice")) == "alice"
    users = await world.users_as("chief")
    assert users["chief"]["isAdmin"] is True
    assert await world.opens("chief", "secret-1")
    await world.restart()
    assert await world.request(person("bob")) == "bob"


async def test_a_wrong_password_is_reported_and_not_retried_continuously(
    stand_in_world: World,
) -> None:
    world = stand_in_world
    await world.create_first("owner", "secret-1")
    await world.start(NAVIDROME_ADMIN_USERNAME="owner", NAVIDROME_ADMIN_PASSWORD="wrong")
    for number in range(5):
        assert isinstance(await world.request(person(f"u{number}")), AccountDenied)
    assert world.stand_in.requests("POST", "/auth/login") == 1
    check = world.accounts.checks()[1]
    assert "Invalid username or password" in check.detail
    assert "wrong" not in check.detail.replace("Wrong", "")


@pytest.mark.parametrize(
    "kind",
    [FaultKind.SERVER_ERROR, FaultKind.HTML, FaultKind.TRUNCATED_JSON, FaultKind.REDIRECT],
)
async def test_no_request_is_forwarded_before_the_server_is_known_to_have_users(
    stand_in_world: World, kind: FaultKind
) -> None:
    world = stand_in_world
    world.stand_in.breaks(Fault(kind))
    await world.start(PROVISIONING_FAIL_MODE="open")
    refused = await world.request(person("alice"))
    assert isinstance(refused, AccountDenied) and refused.retry_after
    world.stand_in.breaks(None)
    await until(lambda: world.accounts.service.fault is None, 20)
    assert await world.request(person("alice")) == "alice"
    assert (await world.user("alice"))["isAdmin"] is False


async def test_a_database_that_was_not_opened_yet_is_not_reported_as_ok(
    stand_in_world: World,
) -> None:
    world = stand_in_world
    database = Database(world.database_url)
    accounts = build_accounts(load(world.environment()), world.events.append, database)
    assert [check.state for check in accounts.checks()] == [State.FAILING, State.FAILING]
    await accounts.gate.start()
    assert [check.state for check in accounts.checks()] == [State.OK, State.OK]
    await accounts.gate.stop()
    database.close()


async def test_accounts_are_counted_by_state_for_the_metrics(world: World) -> None:
    await world.create_first("owner", "secret-1")
    await world.call("POST", "/api/user", {"userName": "guest", "password": "x"}, "owner")
    await world.start(BOOTSTRAP_ADMIN="owner", ALLOWED_GROUPS="family")
    await world.request(person("alice", "family"))
    assert world.accounts.states() == {
        "active": 1,
        "denied": 0,
        "unlinked": 0,
        "unbound": 2,
        "reserved": 1,
    }
    assert isinstance(await world.request(person("alice")), AccountDenied)
    states = world.accounts.states()
    assert (states["active"], states["denied"]) == (0, 1)
