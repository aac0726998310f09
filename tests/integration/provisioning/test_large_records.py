"""A user whose record is too large to be read does not affect others."""

from __future__ import annotations

import pytest

from shim.audit.events.provisioning import ProvisioningFailed
from shim.health import State
from shim.navidrome.transport import MAX_RESPONSE
from shim.proxy.gate import AccountDenied
from shim.trust.reasons import Reason
from tests.support.harness import Harness, person

LARGE = "<" * (MAX_RESPONSE // 5)  # six bytes each in JSON


async def _large_record(harness: Harness, name: str) -> None:
    """How the user `name` can enlarge the own record with one request."""
    user = await harness.user(name)
    body = {**user, "name": LARGE}
    await harness.call("PUT", f"/api/user/{user['id']}", body, user=name)


async def test_one_users_large_record_does_not_affect_others(tcp_harness: Harness) -> None:
    harness = tcp_harness
    await harness.start()
    for name in ("alice", "mallory"):
        assert await harness.request(person(name)) == name
    await _large_record(harness, "mallory")
    await harness.restart()
    assert await harness.request(person("alice")) == "alice"
    assert await harness.request(person("new")) == "new"
    refused = await harness.request(person("mallory"))
    assert isinstance(refused, AccountDenied)
    assert refused.reason is Reason.ACCOUNT_UNAVAILABLE
    assert "shorten it in Navidrome" in refused.detail
    await harness.accounts.service.reconcile()
    assert harness.accounts.service.bindings.by_uid("uid-of-mallory") is not None
    assert {event.user for event in harness.recorded(ProvisioningFailed)} == {"mallory"}
    accounts = harness.accounts.checks()[1]
    assert (accounts.state, "1 of Navidrome's accounts" in accounts.detail) == (
        State.WARNING,
        True,
    )
    assert await harness.request(person("alice", "friends")) == "alice"


@pytest.mark.parametrize("fail", ["open", "closed"])
async def test_an_unreadable_unlinked_account_is_never_claimed(
    stand_in_harness: Harness, fail: str
) -> None:
    harness = stand_in_harness
    await harness.start(PROVISIONING_FAIL_MODE=fail)
    await harness.create("mallory")
    await _large_record(harness, "mallory")
    for _ in range(2):
        await harness.accounts.service.reconcile()
        refused = await harness.request(person("mallory"))
        assert isinstance(refused, AccountDenied) and "too large" in refused.detail
    account = next(
        each
        for each in harness.stand_in.stand_in.accounts.by_id.values()
        if each.user_name == "mallory"
    )
    account.name = "short"
    await harness.accounts.service.reconcile()
    assert await harness.request(person("mallory")) == "mallory"
