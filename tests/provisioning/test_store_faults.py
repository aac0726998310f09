"""A store that is read and can't be written to: `/readyz` says so until a write succeeds."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from shim.control.health import State
from shim.provisioning import ground
from shim.proxy.gate import Refusal
from shim.store import engine
from tests.provisioning.world import World, person, until


def store_state(world: World) -> State:
    (store,) = [check for check in world.accounts.checks() if check.name == "store"]
    return store.state


async def test_a_read_does_not_make_a_store_well_that_was_not_written_to(
    stand_in_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr(ground, "PROVE_SECONDS", 0.1)
    world = stand_in_world
    await world.start()
    assert store_state(world) is State.OK
    other = sqlite3.connect(world.folder / "shim.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert isinstance(await world.ask(person("new")), Refusal)
    for _ in range(3):
        await world.accounts.ground.refresh()
        assert store_state(world) is State.FAILING
    other.execute("ROLLBACK")
    await until(lambda: store_state(world) is State.OK)
    assert await world.ask(person("new")) == "new"
    other.close()


async def test_a_locked_store_does_not_hold_up_a_stop(
    stand_in_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 3600.0)
    world = stand_in_world
    await world.start()
    assert await world.ask(person("alice")) == "alice"
    other = sqlite3.connect(world.folder / "shim.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(world.ask(person("new")))
    async with asyncio.timeout(12):
        await world.stop()
    assert isinstance(await waiting, Refusal)
    other.execute("ROLLBACK")
    other.close()
    await world.restart()
    assert await world.ask(person("alice")) == "alice"
