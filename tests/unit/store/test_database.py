"""The database, on SQLite and on PostgreSQL: migrations, atomic and ordered transactions, timeouts,
and errors without passwords.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    Connection,
    create_engine,
    insert,
    inspect,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import NullPool

from shim.store import database as module
from shim.store import engine
from shim.store.database import Database
from shim.store.errors import StoreCorrupt, StoreError
from shim.store.schema import BINDINGS, CHANGE_COUNTERS, HEAD, INTENTS, METADATA, TOKEN_RULES
from shim.store.upgrade import configuration
from tests.support.postgresql import PostgreSQL

Opened = Callable[[], Database]


@pytest.fixture
def opened(store_url: str) -> Iterator[Opened]:
    """Opens the same database as one more process."""
    opened_databases: list[Database] = []

    def make() -> Database:
        database = Database(store_url)
        opened_databases.append(database)
        database.open()
        return database

    yield make
    for database in opened_databases:
        database.close()


def counters(database: Database) -> list[str]:
    return database.read(lambda c: [row.name for row in c.execute(select(CHANGE_COUNTERS))])


def add(database: Database, *names: str) -> None:
    database.write(
        lambda c: [c.execute(insert(CHANGE_COUNTERS).values(name=name, value=0)) for name in names]
    )


def value(connection: Connection) -> int:
    return int(connection.execute(select(CHANGE_COUNTERS.c.value)).scalar_one())


def migrate(connection: Connection, revision: str = "head") -> None:
    config = configuration()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def described(url: str) -> dict[str, object]:
    """The database's schema, and its initial rows.

    PostgreSQL keeps the name of a constraint when its table or column is renamed, so names of
    constraints are not compared.
    """
    engine = create_engine(url, poolclass=NullPool)
    found: dict[str, object] = {}
    with engine.connect() as connection:
        inspector = inspect(connection)
        for table in inspector.get_table_names():
            columns = [
                (c["name"], str(c["type"]), c["nullable"], c["default"])
                for c in inspector.get_columns(table)
            ]
            unique = sorted(
                tuple(each["column_names"]) for each in inspector.get_unique_constraints(table)
            )
            primary = inspector.get_pk_constraint(table)["constrained_columns"]
            rows = [tuple(row) for row in connection.execute(text(f"SELECT * FROM {table}"))]
            found[table] = (columns, primary, unique, rows)
    return found


def test_the_migrations_create_the_tables_of_the_models(store_url: str) -> None:
    database = Database(store_url)
    database.write(migrate)
    database.close()
    with create_engine(store_url, poolclass=NullPool).connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, METADATA) == []
        assert context.get_current_revision() == HEAD


def test_a_new_database_equals_a_migrated_one(opened: Opened, store_url: str) -> None:
    opened().close()
    created = described(store_url)
    database = Database(store_url)
    database.write(METADATA.drop_all)
    database.write(migrate)
    database.close()
    migrated = described(store_url)
    assert created == migrated


def test_tables_without_a_version_are_not_changed(opened: Opened) -> None:
    opened().write(lambda c: c.execute(text("DROP TABLE alembic_version")))
    with pytest.raises(StoreError, match="already exists"):
        opened()


def test_the_last_migration_is_the_one_that_the_models_name() -> None:
    assert ScriptDirectory.from_config(configuration()).get_current_head() == HEAD


def test_opening_again_changes_nothing(opened: Opened) -> None:
    add(opened(), "one")
    assert counters(opened()) == ["bindings", "one"]


def test_a_failed_transaction_is_rolled_back(opened: Opened) -> None:
    database = opened()
    with pytest.raises(IntegrityError):
        add(database, "one", "bindings")
    assert counters(database) == ["bindings"]


def test_a_value_that_a_writer_has_read_is_unchanged_when_it_writes(opened: Opened) -> None:
    def count(connection: Connection) -> None:
        found = value(connection)
        time.sleep(0.001)  # time enough for a writer that does not wait
        connection.execute(update(CHANGE_COUNTERS).values(value=found + 1))

    def many(database: Database) -> None:
        for _ in range(20):
            database.write(count)

    databases = [opened() for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(many, databases))
    assert databases[0].read(value) == 80


def test_a_reader_sees_a_consistent_snapshot(opened: Opened) -> None:
    reader, writer = opened(), opened()

    def twice(connection: Connection) -> tuple[int, int]:
        before = value(connection)
        writer.write(lambda c: c.execute(update(CHANGE_COUNTERS).values(value=7)))
        return before, value(connection)

    assert reader.read(twice) == (0, 0)
    assert reader.read(value) == 7


def test_a_writer_that_does_not_finish_blocks_others_for_a_limited_time(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.1)
    first, second = opened(), opened()

    def meanwhile(_: Connection) -> None:
        with pytest.raises(StoreError, match="lock"):
            add(second, "two")

    first.write(meanwhile)
    add(second, "three")
    assert counters(first) == ["bindings", "three"]


async def test_transactions_run_off_the_event_loop_and_to_their_end(opened: Opened) -> None:
    database = opened()
    loop_thread, seen = threading.get_ident(), []

    def work(_: object) -> None:
        seen.append(threading.get_ident())

    task = asyncio.create_task(database.write_async(work))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await database.write_async(work)
    assert len(seen) == 2 and loop_thread not in seen
    database.close()
    with pytest.raises(StoreError):
        await database.read_async(work)


async def test_a_database_that_does_not_respond_is_unavailable(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, responds = opened(), threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(module, "_RESPONSE_SECONDS", 0.05)
        try:
            with pytest.raises(StoreError, match="no response"):
                await database.read_async(lambda _: responds.wait(20))
            with pytest.raises(StoreError, match="no response"):
                await database.write_async(
                    lambda c: c.execute(update(CHANGE_COUNTERS).values(value=7))
                )
        finally:
            responds.set()
    assert await database.read_async(value) == 0, (
        "cancelled work that had not begun is not done later"
    )


def test_tables_of_a_newer_version_are_not_changed(opened: Opened) -> None:
    opened().write(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(StoreError, match="another version"):
        opened()


def test_a_check_changes_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shim.db'}"
    database = Database(url)
    database.open()
    database.close()
    before = (tmp_path / "shim.db").read_bytes()
    database = Database(url)
    database.check()
    database.close()
    assert (tmp_path / "shim.db").read_bytes() == before


@pytest.mark.parametrize("url", ["sqlite:////nowhere/at/all.db", "sqlite:////proc/version"])
def test_an_unavailable_database_is_named(url: str) -> None:
    with pytest.raises(StoreError, match=url.rpartition("/")[2]):
        Database(url).open()


def test_an_upgrade_locks_accounts_again_that_an_earlier_version_locked(store_url: str) -> None:
    columns = (
        "uid, navidrome_id, user_name, folded_name, claimed_name, made, state, open_door, first_seen, "
        "last_seen, identity, written"
    )
    rows = [
        ("a", "active", False),
        ("b", "refused", False),
        ("c", "released", False),
        ("d", "active", True),
    ]

    def fill(connection: Connection) -> None:
        migrate(connection, "0001")
        for name, state, pending in rows:
            values = ":n, :n, :n, :n, :n, true, :state, :pending, 1, 2, '{}', '{}'"
            connection.execute(
                text(f"INSERT INTO bindings ({columns}) VALUES ({values})"),
                {"n": name, "state": state, "pending": pending},
            )
        connection.execute(
            text(
                "INSERT INTO intents (key, kind, navidrome_id, user_name, created_at, owner, since) "
                "VALUES ('demotion', 'lock', '', '', '', 'x', 1)"
            )
        )

    before = Database(store_url)
    before.write(fill)
    before.close()
    database = Database(store_url)
    database.open()
    try:
        pending = database.read(
            lambda c: {
                row.uid: (row.lock_pending, row.version) for row in c.execute(select(BINDINGS))
            }
        )
        rules = database.read(lambda c: {tuple(row) for row in c.execute(select(TOKEN_RULES))})
        intents = database.read(lambda c: c.execute(select(INTENTS)).all())
    finally:
        database.close()
    assert pending == {"a": (False, 0), "b": (True, 0), "c": (True, 0), "d": (True, 0)}
    assert rules == {("b", True, 0.0), ("c", True, 0.0), ("d", True, 0.0)}
    assert intents == []


def test_a_corrupt_file_is_reported_and_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "shim.db"
    file.write_bytes(b"x" * 8192)
    file.chmod(0o600)
    database = Database(f"sqlite:///{file}")
    with pytest.raises(StoreCorrupt, match="not a database"):
        database.open()
    database.close()
    assert file.read_bytes() == b"x" * 8192
    assert list(tmp_path.iterdir()) == [file]


class Cursor:
    """A cursor whose first statements find the file locked."""

    def __init__(self, locked: int) -> None:
        self.locked = locked
        self.statements: list[str] = []

    def execute(self, statement: str) -> None:
        self.statements.append(statement)
        if len(self.statements) <= self.locked:
            raise sqlite3.OperationalError("database is locked")


def test_two_processes_can_create_one_sqlite_file(monkeypatch: pytest.MonkeyPatch) -> None:
    cursor = Cursor(locked=2)
    engine._use_wal(cursor)
    assert cursor.statements == ["PRAGMA journal_mode=WAL"] * 3
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        engine._use_wal(Cursor(locked=1))


def test_a_writer_that_was_ended_does_not_wait_for_the_lock_of_postgresql(
    postgresql: PostgreSQL, postgresql_url: str
) -> None:
    database = Database(postgresql_url)
    database.open()
    name = str(make_url(postgresql_url).database)
    with postgresql.session(name) as other:
        other.execute(f"SELECT pg_advisory_lock({engine.WRITERS_LOCK})".encode())
        database._ends.set()
        with pytest.raises(StoreError, match="being closed"):
            database.write(value)
    database.close()
