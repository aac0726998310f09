"""The store: its migrations make its tables, its transactions are whole, and its faults name no password."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.exc import IntegrityError

from shim.store.database import Database, StoreError
from shim.store.schema import HEAD, MARKS, METADATA
from shim.store.upgrade import configuration


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'shim.db'}"


def marks(database: Database) -> list[str]:
    return database.read(lambda c: [row.name for row in c.execute(select(MARKS))])


def add(database: Database, *names: str) -> None:
    database.write(
        lambda c: [c.execute(insert(MARKS).values(name=name, value=0)) for name in names]
    )


def test_the_migrations_make_the_tables_that_the_models_name(url: str) -> None:
    Database(url).open()
    with create_engine(url).connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, METADATA) == []
        assert context.get_current_revision() == HEAD


def test_the_last_migration_is_the_one_that_the_models_name() -> None:
    assert ScriptDirectory.from_config(configuration()).get_current_head() == HEAD


def test_opening_again_changes_nothing(url: str) -> None:
    for _ in range(2):
        database = Database(url)
        database.open()
        database.close()
    assert marks(Database(url)) == ["bindings"]


def test_what_fails_is_undone_whole(url: str) -> None:
    database = Database(url)
    database.open()
    with pytest.raises(IntegrityError):
        add(database, "one", "bindings")
    assert marks(database) == ["bindings"]


def test_two_writers_wait_for_each_other(url: str) -> None:
    first, second = Database(url), Database(url)
    first.open()
    inside, done = threading.Event(), threading.Event()

    def slowly() -> None:
        def work(_: object) -> None:
            inside.set()
            assert done.wait(5)

        first.write(work)

    thread = threading.Thread(target=slowly)
    thread.start()
    assert inside.wait(5)
    other = threading.Thread(target=lambda: add(second, "later"))
    other.start()
    done.set()
    thread.join()
    other.join()
    assert "later" in marks(first)


async def test_transactions_run_off_the_loop_and_to_their_end(url: str) -> None:
    database = Database(url)
    await database.opened()
    loop_thread, seen = threading.get_ident(), []

    def work(_: object) -> None:
        seen.append(threading.get_ident())

    task = asyncio.create_task(database.writing(work))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await database.writing(work)
    assert len(seen) == 2 and loop_thread not in seen
    database.close()
    with pytest.raises(StoreError):
        await database.reading(work)


def test_tables_of_a_newer_version_are_left_alone(url: str) -> None:
    database = Database(url)
    database.open()
    database.write(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(StoreError, match="another version"):
        Database(url).open()


def test_looking_changes_nothing(url: str, tmp_path: Path) -> None:
    database = Database(url)
    database.open()
    database.close()
    before = (tmp_path / "shim.db").read_bytes()
    Database(url).look()
    assert (tmp_path / "shim.db").read_bytes() == before


@pytest.mark.parametrize("url", ["sqlite:////nowhere/at/all.db", "sqlite:////proc/version"])
def test_a_store_that_cannot_be_used_says_where(url: str) -> None:
    with pytest.raises(StoreError, match=url.rpartition("/")[2]):
        Database(url).open()


def test_a_fault_names_no_password() -> None:
    database = Database("postgresql+psycopg://shim:s3cret@127.0.0.1:1/shim?connect_timeout=2")
    with pytest.raises(StoreError) as raised:
        database.open()
    assert "s3cret" not in str(raised.value) and "s3cret" not in database.place
