"""A database that can be read but not written: `/readyz` fails until a write succeeds."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from shim.health import State
from shim.provisioning import service
from shim.proxy.gate import AccountDenied
from shim.store import engine
from shim.store.database import Database
from tests.support.world import World, person, until


def store_state(world: World) -> State:
    (store,) = [check for check in world.accounts.checks() if check.name == "store"]
    return store.state


async def test_a_read_does_not_clear_the_failure_of_a_write(
    stand_in_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr(service, "PROVE_SECONDS", 0.1)
    world = stand_in_world
    await world.start()
    assert store_state(world) is State.OK
    other = sqlite3.connect(world.folder / "shim.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert isinstance(await world.request(person("new")), AccountDenied)
    for _ in range(3):
        await world.accounts.service.refresh()
        assert store_state(world) is State.FAILING
    other.execute("ROLLBACK")
    await until(lambda: store_state(world) is State.OK)
    assert await world.request(person("new")) == "new"
    other.close()


async def test_a_locked_database_does_not_block_shutdown(
    stand_in_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 3600.0)
    world = stand_in_world
    await world.start()
    assert await world.request(person("alice")) == "alice"
    other = sqlite3.connect(world.folder / "shim.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(world.request(person("new")))
    async with asyncio.timeout(12):
        await world.stop()
    assert isinstance(await waiting, AccountDenied)
    other.execute("ROLLBACK")
    other.close()
    await world.restart()
    assert await world.request(person("alice")) == "alice"


async def _bound(world: World, *names: str) -> None:
    await world.start()
    for name in names:
        assert await world.request(person(name)) == name


def _copy(world: World, name: str) -> Path:
    """A copy of the database as it is."""
    copy = world.folder / name
    with (
        sqlite3.connect(world.folder / "shim.db") as source,
        sqlite3.connect(copy) as target,
    ):
        source.backup(target)
    return copy


def _put_back(world: World, copy: Path) -> None:
    """Replace the database by a copy, without the log that belongs to the former file."""
    (world.folder / "shim.db").unlink(missing_ok=True)
    for name in ("shim.db-wal", "shim.db-shm"):
        (world.folder / name).unlink(missing_ok=True)
    copy.rename(world.folder / "shim.db")


@pytest.mark.parametrize("at_start", [False, True])
async def test_a_damaged_file_is_used_again_once_it_is_repaired(
    stand_in_world: World, at_start: bool
) -> None:
    world = stand_in_world
    await _bound(world, "alice")
    if at_start:
        await world.stop()
    copy, damaged = _copy(world, "copy.db"), world.folder / "damaged.db"
    damaged.write_bytes(b"damaged" * 4096)
    _put_back(world, damaged)
    if at_start:
        await world.start()
    await until(lambda: store_state(world) is State.FAILING)
    assert isinstance(await world.request(person("new")), AccountDenied)
    (world.folder / "shim.db").write_bytes(copy.read_bytes())
    await until(lambda: store_state(world) is State.OK, 20)
    assert await world.request(person("new")) == "new"
    assert await world.request(person("alice")) == "alice"


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_deleted_or_replaced_file_admits_no_new_user(
    stand_in_world: World, replaced: bool
) -> None:
    world = stand_in_world
    await _bound(world, "alice")
    (world.folder / "shim.db").unlink()
    if replaced:
        empty = Database(world.database_url)
        empty.open()
        empty.close()
    await until(lambda: store_state(world) is State.FAILING)
    refused = await world.request(person("new"))
    assert isinstance(refused, AccountDenied) and "deleted or replaced" in refused.detail
    assert world.accounts.gate.known(person("alice")) is not None
    assert "new" not in await world.users()
    assert (world.folder / "shim.db").exists() is replaced


async def test_a_restored_file_is_used_again(stand_in_world: World) -> None:
    world = stand_in_world
    await _bound(world, "alice", "bob")
    copy = _copy(world, "copy.db")
    (world.folder / "shim.db").unlink()
    await until(lambda: store_state(world) is State.FAILING)
    _put_back(world, copy)
    await until(lambda: store_state(world) is State.OK)
    assert await world.request(person("new")) == "new"
    await world.restart()
    for name in ("alice", "bob", "new"):
        assert await world.request(person(name)) == name


async def test_an_older_copy_without_a_known_user_is_not_used(stand_in_world: World) -> None:
    world = stand_in_world
    await _bound(world, "alice")
    copy = _copy(world, "copy.db")
    assert await world.request(person("bob")) == "bob"
    _put_back(world, copy)
    await until(lambda: store_state(world) is State.FAILING)
    assert isinstance(await world.request(person("new")), AccountDenied)
