"""Accounts are tested for an empty password once, and again only after a change."""

from __future__ import annotations

import pytest

from shim.navidrome.errors import Unavailable
from tests.integration.provisioning.test_commands import as_json, check
from tests.support.harness import Harness


def pings_for_passwords(harness: Harness) -> int:
    """Return how many empty passwords Navidrome was asked about, and reset the count."""
    server = harness.stand_in
    count = server.requests("GET", "/rest/ping?v=1.16.1&c=navidrome-shim&f=json&u=")
    server.stand_in.seen.clear()
    return count


async def test_an_account_is_tested_once_by_all_callers(stand_in_harness: Harness) -> None:
    harness = stand_in_harness
    await harness.start(RECONCILE_SECONDS="3600")
    for name in ("alice", "bob"):
        await harness.create(name)
    await harness.create("hole", "")
    await harness.accounts.service.reconcile()
    assert harness.accounts.service.reconciler.without_password == ("hole",)
    assert pings_for_passwords(harness) >= 3
    await harness.restart()
    await harness.accounts.service.reconcile()
    assert harness.accounts.service.reconciler.without_password == ("hole",)
    listed = await as_json(harness, "users", "list")
    assert [line["account"] for line in listed if line["empty_password"]] == ["hole"]
    accounts = (await check(harness))["checks"]["accounts"]
    assert "hole" in accounts["detail"]
    assert pings_for_passwords(harness) == 0


async def test_a_changed_account_is_tested_again(stand_in_harness: Harness) -> None:
    harness = stand_in_harness
    await harness.start(RECONCILE_SECONDS="3600")
    for name in ("alice", "hole"):
        await harness.create(name, "" if name == "hole" else "pw")
    await harness.accounts.service.reconcile()
    pings_for_passwords(harness)
    await harness.change("hole", password="closed")
    await harness.accounts.service.reconcile()
    assert harness.accounts.service.reconciler.without_password == ()
    assert pings_for_passwords(harness) == 1
    await harness.delete("alice")
    await harness.accounts.service.reconcile()
    assert pings_for_passwords(harness) == 0


async def test_results_from_before_a_failure_are_kept(
    stand_in_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = stand_in_harness
    await harness.start(RECONCILE_SECONDS="3600")
    await harness.accounts.service.reconcile()
    for number in range(6):
        await harness.create(f"user{number}")
    api = harness.accounts.service.api
    probes: list[str] = []
    real = api.opens_without_password

    async def fails_at_the_fourth(user_name: str) -> bool:
        probes.append(user_name)
        if len(probes) == 4:
            raise Unavailable("away")
        return await real(user_name)

    monkeypatch.setattr(api, "opens_without_password", fails_at_the_fourth)
    with pytest.raises(Unavailable):
        await harness.accounts.service.reconcile()
    await harness.accounts.service.reconcile()
    assert len(set(probes)) == 6 and len(probes) == 7
