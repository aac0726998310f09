"""Killed at any moment and restarted: no duplicate account, no lost binding, no account without a
password.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.support.harness import VERIFIED, Harness
from tests.support.provisioning_load import USER_COUNT, identities

ROOT = Path(__file__).parents[3]
# Seconds after the first request, so that each kill interrupts another part of the work.
MOMENTS = (0.0, 0.01, 0.02, 0.03, 0.045, 0.06, 0.08, 0.1, 0.13, 0.17, 0.22, 0.3)


async def test_a_shim_that_is_killed_repeatedly_loses_and_duplicates_nothing(
    any_store_harness: Harness,
) -> None:
    harness = any_store_harness
    harness.use(ADMIN_GROUPS="admins", NAME_REUSE_DELAY_HOURS="0")
    for at, moment in enumerate(MOMENTS):
        await _visited_until_killed(harness, at, moment)
        users = await harness.users()
        folded = [name.lower() for name in users]
        assert len(folded) == len(set(folded)) <= USER_COUNT
    await harness.start()
    assert harness.accounts.service.fault is None
    last = identities(len(MOMENTS))
    assert [await harness.request(one, VERIFIED) for one in last] == [one.username for one in last]
    users = await harness.users()
    assert sorted(users) == sorted(one.username for one in last)
    for one in last:
        user = users[one.username]
        assert (user["name"], user["email"]) == (one.name, one.email)
        assert not await harness.accepts_password(one.username, "")
    bindings = harness.accounts.service.bindings.all()
    ids = {user["id"] for user in users.values()}
    assert {binding.navidrome_id for binding in bindings} == ids
    assert {binding.uid for binding in bindings} == {one.uid for one in last}
    assert not harness.accounts.service.bindings.intents()


async def _visited_until_killed(harness: Harness, at: int, moment: float) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.provisioning_load",
        str(at),
        env=harness.environment(),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 20) == b"begun\n"
        await asyncio.sleep(moment)
    finally:
        process.kill()
        await process.wait()
