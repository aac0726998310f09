"""The stored trail of a shim that serves: what it stores, and what happens without a database and after a
kill."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from shim.audit.admin_actions import AdminActions
from shim.audit.events import AdminAction
from shim.audit.events.schema import kinds
from shim.audit.store.filters import Filters
from shim.audit.store.reader import TrailReader
from shim.audit.store.results import StoredEvent
from shim.audit.store.writer import BATCH, TrailStore
from tests.support.http_client import get
from tests.support.program import PATIENCE, Program, started
from tests.support.running_proxy import EDGE
from tests.support.scripted_navidrome import OK, Navidrome, navidrome_on_a_socket
from tests.support.trail_records import KEYS

KEY = KEYS.secrets[0].decode()
# The long profile (`AUDIT_KILLS=50`) is for a change of the writer.
KILLS = int(os.environ.get("AUDIT_KILLS", "3"))
STORED_KINDS = {each.kind for each in kinds() if each.stored}


@pytest.fixture
async def navidrome() -> AsyncIterator[Navidrome]:
    async with navidrome_on_a_socket() as served:
        yield served


def stored(url: str, **filters: object) -> list[StoredEvent]:
    reader = TrailReader(url)
    try:
        return list(reader.iterate(Filters(**filters)))  # type: ignore[arg-type]
    finally:
        reader.close()


def verify(url: str, log: list[str] | None = None) -> None:
    reader = TrailReader(url)
    try:
        found = reader.verify(KEYS, log)
    finally:
        reader.close()
    assert found.ok, found


async def checks(shim: Program) -> dict[str, dict[str, str]]:
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
        response = await client.get(f"http://{shim.control}/readyz")
    found: dict[str, dict[str, str]] = response.json()["checks"]
    return found


async def test_requests_and_changes_are_stored_and_verify(
    tmp_path: Path, navidrome: Navidrome
) -> None:
    url = f"sqlite:///{tmp_path / 'audit.db'}"
    async with started(tmp_path, navidrome, audit_key=KEY) as (shim, upstream):
        spoofer = asyncio.create_task(
            shim.request(get("/app/", "X-authentik-username: alice"), "127.0.0.1")
        )
        served, _ = await upstream.next()
        await served.send(OK)
        await spoofer
        assert (await checks(shim))["audit"]["state"] == "ok"
        shim.stop()
        assert await shim.ended() == 0
        log = [repr(line).replace("'", '"') for line in shim.events if "checkpoint" in line["kind"]]
    assert len(log) >= 2
    verify(url, log)
    kinds = [e.record["kind"] for e in stored(url, streams=("changes",))]
    assert kinds[0] == "audit_chain_started"
    assert "started" in kinds
    assert kinds[-1] == "stopped"
    (decision,) = stored(url, kinds=("request_decision",))
    assert decision.record["claimed_user"] == "alice"
    assert decision.record["reason"] == "untrusted_peer"
    assert KEY not in (tmp_path / "audit.db").read_bytes().decode("latin-1")


async def test_with_fail_mode_closed_no_identity_is_accepted_while_storing_is_impossible(
    tmp_path: Path, navidrome: Navidrome
) -> None:
    async with started(tmp_path, navidrome, audit_fail_mode="closed", audit_key=KEY) as (
        shim,
        upstream,
    ):
        other = sqlite3.connect(tmp_path / "audit.db", isolation_level=None)
        await wait_for_lock(other)
        fault = await wait_for_check(shim, "failing")
        assert "no identity is accepted" in fault["detail"]
        head = get("/app/", "X-authentik-username: alice")
        response = await shim.request(head, EDGE)
        assert response.status == 503
        anonymous = asyncio.create_task(shim.request(get("/rest/stream"), EDGE))
        served, _ = await upstream.next()
        await served.send(OK)
        assert (await anonymous).status == 200
        other.execute("ROLLBACK")
        other.close()
        await wait_for_check(shim, "ok")
        again = asyncio.create_task(shim.request(head, EDGE))
        forwarded = await served.head()
        assert b"\r\nRemote-User: alice\r\n" in forwarded
        await served.send(OK)
        assert (await again).status == 200
        shim.stop()
        assert await shim.ended() == 0
    kinds = [e.record["kind"] for e in stored(f"sqlite:///{tmp_path / 'audit.db'}")]
    assert "audit_unavailable" in kinds
    assert "audit_available" in kinds
    assert "audit_unavailable" in [
        e.record.get("reason")
        for e in stored(f"sqlite:///{tmp_path / 'audit.db'}", kinds=("request_decision",))
    ]


@pytest.mark.parametrize(("mode", "state"), [("closed", "failing"), ("open", "warning")])
async def test_a_trail_that_cannot_be_opened_at_the_start_is_reported_at_once(
    tmp_path: Path, navidrome: Navidrome, mode: str, state: str
) -> None:
    url = f"sqlite:///{tmp_path}/none/audit.db"
    async with started(tmp_path, navidrome, audit_database_url=url, audit_fail_mode=mode) as (
        shim,
        upstream,
    ):
        found = (await checks(shim))["audit"]
        assert found["state"] == state
        assert "there is no folder" in found["detail"]
        request = asyncio.create_task(
            shim.request(get("/app/", "X-authentik-username: alice"), EDGE)
        )
        if mode == "closed":
            assert (await request).status == 503
        else:
            served, head = await upstream.next()
            assert b"\r\nRemote-User: alice\r\n" in head
            await served.send(OK)
            assert (await request).status == 200
        shim.stop()
        assert await shim.ended() == 0


async def wait_for_lock(connection: sqlite3.Connection) -> None:
    for _ in range(100):
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            await asyncio.sleep(0.05)
        else:
            return
    raise AssertionError("the trail is always locked")


async def wait_for_check(shim: Program, state: str) -> dict[str, str]:
    latest = time.monotonic() + 60
    while (found := (await checks(shim))["audit"])["state"] != state:
        assert time.monotonic() < latest, found
        await asyncio.sleep(0.2)
    return found


async def test_after_a_kill_during_a_flood_no_confirmed_action_and_at_most_one_batch_is_lost(
    store_url: str, tmp_path: Path, navidrome: Navidrome
) -> None:
    url = store_url
    confirmed: list[str] = []
    max_missing = 0
    for number in range(KILLS):
        async with started(
            tmp_path,
            navidrome,
            untrusted_peers="reject",
            audit_key=KEY,
            audit_database_url=url,
        ) as (shim, _):
            reader = asyncio.create_task(shim.ended())
            flood = [asyncio.create_task(spoof(shim, n)) for n in range(8)]
            command = asyncio.create_task(act(url, confirmed, number))
            await asyncio.sleep(0.3 + 0.37 * (number % 5))
            shim.stop(signal.SIGKILL)
            command.cancel()
            await asyncio.gather(command, *flood, return_exceptions=True)
            assert await reader == -signal.SIGKILL
        verify(url)
        ids = [e.record["id"] for e in stored(url)]
        found = set(ids)
        assert len(found) == len(ids)
        assert set(confirmed) <= found
        logged = [event["id"] for event in shim.events if event["kind"] in STORED_KINDS]
        assert logged
        missing = [each for each in logged if each not in found]
        # Only the newest ones, without a gap.
        assert missing == logged[len(logged) - len(missing) :]
        assert len(missing) <= BATCH
        max_missing = max(max_missing, len(missing))
    assert len(confirmed) >= KILLS
    assert len(stored(url, kinds=("request_decision",))) > 10
    print(f"{KILLS} kills: at most {max_missing} events of the log are not in the trail")


async def spoof(shim: Program, number: int) -> None:
    """Send requests that are rejected, a burst from each of many addresses, until the shim has ended."""
    for n in range(10_000):
        source = f"127.{number + 3}.{n // 250 % 250}.{n % 250 + 1}"
        try:
            for _ in range(5):
                await shim.request(get("/app/", "X-authentik-username: alice"), source)
        except (OSError, EOFError, AssertionError, TimeoutError):
            return


async def act(url: str, confirmed: list[str], number: int) -> None:
    """Record administrative actions as a command's own process does."""
    store = TrailStore(url, KEYS)
    actions = AdminActions(store, lambda _: None)
    try:
        for n in range(10_000):
            action = AdminAction(
                time=time.time(),
                action="users.lock",
                actor="command:root",
                origin="command",
                target=f"{number}-{n}",
            )
            if await actions.record(action) is None:
                confirmed.append(action.id)
            await asyncio.sleep(0.01)
    finally:
        await store.close()
