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
from tests.support.harness import Harness, person, until


def store_state(harness: Harness) -> State:
    (store,) = [check for check in harness.accounts.checks() if check.name == "store"]
    return store.state


async def test_a_read_does_not_clear_the_failure_of_a_write(
    stand_in_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr(service, "CHECK_WRITABLE_SECONDS", 0.1)
    harness = stand_in_harness
    await harness.start()
    assert store_state(harness) is State.OK
    other = sqlite3.connect(harness.folder / "shim.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert isinstance(await harness.request(person("new")), AccountDenied)
    for _ in range(3):
        await harness.accounts.service.refresh()
        assert store_state(harness) is State.FAILING
    other.execute("ROLLBACK")
    await until(lambda: store_state(harness) is State.OK)
    assert await harness.request(person("new")) == "new"
    other.close()


async def test_a_locked_database_does_not_block_shutdown(
    stand_in_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 3600.0)
    harness = stand_in_harness
    await harness.start()
    assert await harness.request(person("alice")) == "alice"
    other = sqlite3.connect(harness.folder / "shim.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(harness.request(person("new")))
    async with asyncio.timeout(12):
        await harness.stop()
    assert isinstance(await waiting, AccountDenied)
    other.execute("ROLLBACK")
    other.close()
    await harness.restart()
    assert await harness.request(person("alice")) == "alice"


async def _bound(harness: Harness, *names: str) -> None:
    await harness.start()
    for name in names:
        assert await harness.request(person(name)) == name


def _copy(harness: Harness, name: str) -> Path:
    """A copy of the database as it is."""
    copy = harness.folder / name
    with (
        sqlite3.connect(harness.folder / "shim.db") as source,
        sqlite3.connect(copy) as target,
    ):
        source.backup(target)
    return copy


def _put_back(harness: Harness, copy: Path) -> None:
    """Replace the database by a copy, without the log that belongs to the former file."""
    (harness.folder / "shim.db").unlink(missing_ok=True)
    for name in ("shim.db-wal", "shim.db-shm"):
        (harness.folder / name).unlink(missing_ok=True)
    copy.rename(harness.folder / "shim.db")


@pytest.mark.parametrize("at_start", [False, True])
async def test_a_damaged_file_is_used_again_once_it_is_repaired(
    stand_in_harness: Harness, at_start: bool
) -> None:
    harness = stand_in_harness
    await _bound(harness, "alice")
    if at_start:
        await harness.stop()
    copy, damaged = _copy(harness, "copy.db"), harness.folder / "damaged.db"
    damaged.write_bytes(b"damaged" * 4096)
    _put_back(harness, damaged)
    if at_start:
        await harness.start()
    await until(lambda: store_state(harness) is State.FAILING)
    assert isinstance(await harness.request(person("new")), AccountDenied)
    (harness.folder / "shim.db").write_bytes(copy.read_bytes())
    await until(lambda: store_state(harness) is State.OK, 20)
    assert await harness.request(person("new")) == "new"
    assert await harness.request(person("alice")) == "alice"


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_deleted_or_replaced_file_admits_no_new_user(
    stand_in_harness: Harness, replaced: bool
) -> None:
    harness = stand_in_harness
    await _bound(harness, "alice")
    (harness.folder / "shim.db").unlink()
    if replaced:
        empty = Database(harness.database_url)
        empty.open()
        empty.close()
    await until(lambda: store_state(harness) is State.FAILING)
    refused = await harness.request(person("new"))
    assert isinstance(refused, AccountDenied) and "deleted or replaced" in refused.detail
    assert harness.accounts.gate.known(person("alice")) is not None
    assert "new" not in await harness.users()
    assert (harness.folder / "shim.db").exists() is replaced


async def test_a_restored_file_is_used_again(stand_in_harness: Harness) -> None:
    harness = stand_in_harness
    await _bound(harness, "alice", "bob")
    copy = _copy(harness, "copy.db")
    (harness.folder / "shim.db").unlink()
    await until(lambda: store_state(harness) is State.FAILING)
    _put_back(harness, copy)
    await until(lambda: store_state(harness) is State.OK)
    assert await harness.request(person("new")) == "new"
    await harness.restart()
    for name in ("alice", "bob", "new"):
        assert await harness.request(person(name)) == name


async def test_an_older_copy_without_a_known_user_is_not_used(stand_in_harness: Harness) -> None:
    harness = stand_in_harness
    await _bound(harness, "alice")
    copy = _copy(harness, "copy.db")
    assert await harness.request(person("bob")) == "bob"
    _put_back(harness, copy)
    await until(lambda: store_state(harness) is State.FAILING)
    assert isinstance(await harness.request(person("new")), AccountDenied)
