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
from tests.support.harness import Harness, person, until


async def test_a_server_that_restarts_empty_gets_an_admin_before_any_user(
    harness: Harness,
) -> None:
    await harness.start()
    await harness.request(person("alice"))
    await harness.server.stop()
    await until(lambda: harness.accounts.gate.known(person("alice")) is None)
    await harness.server.empty()
    await harness.server.start()
    await until(lambda: harness.accounts.service.fault is None)
    assert await harness.request(person("alice")) == "alice"
    assert (await harness.user("alice"))["isAdmin"] is False
    assert len(harness.recorded(AdminCreated)) == 2


async def test_a_server_that_restarts_with_its_data_keeps_every_user(harness: Harness) -> None:
    await harness.start()
    await harness.request(person("alice"))
    before = await harness.users()
    await harness.server.stop()
    await until(lambda: harness.accounts.gate.known(person("alice")) is None)
    refused = await harness.request(person("alice"))
    assert isinstance(refused, AccountDenied) and refused.retry_after
    assert refused.reason is Reason.NAVIDROME_UNAVAILABLE
    await harness.server.start()
    await until(lambda: harness.accounts.service.fault is None)
    assert await harness.request(person("alice")) == "alice"
    assert list(await harness.users()) == list(before)


async def test_a_request_is_held_while_navidrome_restarts(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_HOLD_SECONDS", 15.0)
    await harness.start()
    await harness.request(person("alice"))
    await harness.server.stop()
    await until(lambda: harness.accounts.gate.known(person("alice")) is None)
    pending = [asyncio.create_task(harness.request(person(name))) for name in ("alice", "new")]
    await until(lambda: bool(harness.recorded(ProvisioningUnavailable)))
    assert not any(task.done() for task in pending)
    await harness.server.start()
    assert await asyncio.gather(*pending) == ["alice", "new"]
    assert not harness.recorded(ProvisioningFailed)


async def test_a_request_is_not_held_if_navidrome_is_up_and_rejects_the_shim(
    stand_in_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_HOLD_SECONDS", 3600.0)
    harness = stand_in_harness
    await harness.create_first("boss")
    await harness.start()
    refused = await harness.request(person("alice"))
    assert isinstance(refused, AccountDenied) and "none of them is navidrome-shim" in refused.detail


async def test_a_401_of_the_api_triggers_a_check_of_the_users(harness: Harness) -> None:
    await harness.start()
    await harness.request(person("alice"))
    await harness.request(person("bob"))
    await harness.delete("alice")
    harness.accounts.gate.report_unauthorized(person("alice"))
    assert harness.accounts.gate.known(person("alice")) is None
    assert harness.accounts.gate.known(person("bob")) is None
    assert await harness.request(person("alice")) == "alice"
    assert "alice" in await harness.users()


async def test_a_server_with_users_and_without_the_shims_account_has_a_remedy(
    harness: Harness,
) -> None:
    await harness.create_first("owner", "secret-1")
    await harness.start()
    refused = await harness.request(person("alice"))
    assert isinstance(refused, AccountDenied) and refused.reason is Reason.NAVIDROME_ACCESS_DENIED
    check = harness.accounts.checks()[1]
    assert check.state is State.FAILING
    assert "none of them is navidrome-shim" in check.detail
    assert check.remedy is not None and "SHIM_BOOTSTRAP_ADMIN" in check.remedy
    [unready] = harness.recorded(ProvisioningUnavailable)
    assert unready.remedy == check.remedy
    assert list(await harness.users_as("owner")) == ["owner"]


async def test_a_shim_account_that_is_not_admin_has_a_remedy(harness: Harness) -> None:
    await harness.create_first("owner", "secret-1")
    await harness.call(
        "POST", "/api/user", {"userName": "navidrome-shim", "password": "x"}, "owner"
    )
    await harness.start()
    check = harness.accounts.checks()[1]
    assert check.state is State.FAILING and "is not an admin" in check.detail
    shim = (await harness.users_as("owner"))["navidrome-shim"]
    await harness.call("PUT", f"/api/user/{shim['id']}", {**shim, "isAdmin": True}, "owner")
    # Another client created the account, so this database may replace a lost one.
    await until(lambda: "confirm-new" in (harness.accounts.checks()[1].remedy or ""))
    await harness.confirm_new()
    await until(lambda: harness.accounts.service.fault is None)
    assert await harness.request(person("alice")) == "alice"


async def test_with_the_password_of_an_admin_the_shim_creates_its_own_account(
    harness: Harness,
) -> None:
    await harness.create_first("owner", "secret-1")
    settings = {"NAVIDROME_ADMIN_USERNAME": "owner", "NAVIDROME_ADMIN_PASSWORD": "secret-1"}
    await harness.start(**settings)
    assert await harness.request(person("alice")) == "alice"
    users = await harness.users_as("owner")
    assert users["navidrome-shim"]["isAdmin"] is True
    assert [(e.account, e.first) for e in harness.recorded(AdminCreated)] == [
        ("navidrome-shim", False)
    ]
    assert await harness.reason(person("Owner")) is Reason.RESERVED_ACCOUNT
    await harness.restart(FOLLOW_RENAMES="off")
    assert await harness.request(person("bob")) == "bob"


async def test_an_empty_server_gets_the_admin_of_the_settings(harness: Harness) -> None:
    await harness.start(NAVIDROME_ADMIN_USERNAME="chief", NAVIDROME_ADMIN_PASSWORD="secret-1")
    assert await harness.request(person("alice")) == "alice"
    users = await harness.users_as("chief")
    assert users["chief"]["isAdmin"] is True
    assert await harness.accepts_password("chief", "secret-1")
    await harness.restart()
    assert await harness.request(person("bob")) == "bob"


async def test_a_wrong_password_is_reported_and_not_retried_continuously(
    stand_in_harness: Harness,
) -> None:
    harness = stand_in_harness
    await harness.create_first("owner", "secret-1")
    await harness.start(NAVIDROME_ADMIN_USERNAME="owner", NAVIDROME_ADMIN_PASSWORD="wrong")
    for number in range(5):
        assert isinstance(await harness.request(person(f"u{number}")), AccountDenied)
    assert harness.stand_in.requests("POST", "/auth/login") == 1
    check = harness.accounts.checks()[1]
    assert "Invalid username or password" in check.detail
    assert "wrong" not in check.detail.replace("Wrong", "")


@pytest.mark.parametrize(
    "kind",
    [FaultKind.SERVER_ERROR, FaultKind.HTML, FaultKind.TRUNCATED_JSON, FaultKind.REDIRECT],
)
async def test_no_request_is_forwarded_before_the_server_is_known_to_have_users(
    stand_in_harness: Harness, kind: FaultKind
) -> None:
    harness = stand_in_harness
    harness.stand_in.breaks(Fault(kind))
    await harness.start(PROVISIONING_FAIL_MODE="open")
    refused = await harness.request(person("alice"))
    assert isinstance(refused, AccountDenied) and refused.retry_after
    harness.stand_in.breaks(None)
    await until(lambda: harness.accounts.service.fault is None, 20)
    assert await harness.request(person("alice")) == "alice"
    assert (await harness.user("alice"))["isAdmin"] is False


async def test_a_database_that_was_not_opened_yet_is_not_reported_as_ok(
    stand_in_harness: Harness,
) -> None:
    harness = stand_in_harness
    database = Database(harness.database_url)
    accounts = build_accounts(load(harness.environment()), harness.events.append, database)
    assert [check.state for check in accounts.checks()] == [State.FAILING, State.FAILING]
    await accounts.gate.start()
    assert [check.state for check in accounts.checks()] == [State.OK, State.OK]
    await accounts.gate.stop()
    database.close()


async def test_accounts_are_counted_by_state_for_the_metrics(harness: Harness) -> None:
    await harness.create_first("owner", "secret-1")
    await harness.call("POST", "/api/user", {"userName": "guest", "password": "x"}, "owner")
    await harness.start(BOOTSTRAP_ADMIN="owner", ALLOWED_GROUPS="family")
    await harness.request(person("alice", "family"))
    assert harness.accounts.states() == {
        "active": 1,
        "denied": 0,
        "unlinked": 0,
        "unbound": 2,
        "reserved": 1,
    }
    assert isinstance(await harness.request(person("alice")), AccountDenied)
    states = harness.accounts.states()
    assert (states["active"], states["denied"]) == (0, 1)
