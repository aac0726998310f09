"""Behaviour of a real PostgreSQL: concurrent processes, a server that stops, and privileges."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, make_url, select, text, update

from shim.store import database as module
from shim.store import engine
from shim.store.database import Database
from shim.store.errors import StoreError
from shim.store.schema import CHANGE_COUNTERS
from tests.support.postgresql import PASSWORD, PostgreSQL

ROOT = Path(__file__).parents[3]
OPEN_DATABASE = """
import sys
from shim.store import upgrade
from shim.store.database import Database
print("ready", flush=True)
sys.stdin.readline()
Database(sys.argv[1]).open()
"""

Make = Callable[[str], Database]


@pytest.fixture
def make() -> Iterator[Make]:
    """Opens databases that are closed at the end."""
    created: list[Database] = []

    def make(url: str) -> Database:
        created.append(Database(url))
        return created[-1]

    yield make
    for database in created:
        database.close()


@pytest.fixture
def store(make: Make, postgresql_url: str) -> Database:
    """An open database."""
    database = make(postgresql_url)
    database.open()
    return database


def counters(database: Database) -> list[str]:
    return database.read(lambda c: [row.name for row in c.execute(select(CHANGE_COUNTERS))])


def add(database: Database, name: str) -> None:
    database.write(lambda c: c.execute(insert(CHANGE_COUNTERS).values(name=name, value=0)))


def value(connection: Connection) -> int:
    return int(connection.execute(select(CHANGE_COUNTERS.c.value)).scalar_one())


# concurrent processes


def test_processes_that_create_the_tables_at_once_create_them_once(
    postgresql: PostgreSQL, postgresql_url: str, make: Make
) -> None:
    with ExitStack() as ends:
        processes = [_opener(ends, postgresql_url) for _ in range(3)]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"

        def meanwhile(_: Connection) -> None:
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            postgresql.wait_for_blocked_sessions(postgresql_url, 3)

        database = make(postgresql_url)
        database.write(meanwhile)
        for process in processes:
            expected, _ = process.communicate(timeout=30)
            assert (process.returncode, expected) == (0, "")
    assert counters(database) == ["bindings"]


def _opener(ends: ExitStack, url: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", OPEN_DATABASE, url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    ends.enter_context(process)
    ends.callback(process.kill)
    return process


@pytest.mark.parametrize("default", ["read committed", "repeatable read", "serializable"])
def test_a_writer_sees_what_was_written_while_it_waited(
    postgresql: PostgreSQL, postgresql_url: str, make: Make, default: str
) -> None:
    name = make_url(postgresql_url).database
    postgresql.do(f"ALTER DATABASE {name} SET default_transaction_isolation = '{default}'")
    first, second = make(postgresql_url), make(postgresql_url)
    first.open()

    def add_one(connection: Connection) -> int:
        found = value(connection) + 1
        connection.execute(update(CHANGE_COUNTERS).values(value=found))
        return found

    with ThreadPoolExecutor(1) as thread:

        def meanwhile(connection: Connection) -> int:
            waits.append(thread.submit(second.write, add_one))
            postgresql.wait_for_blocked_sessions(postgresql_url, 1)
            return add_one(connection)

        waits = [thread.submit(int)]
        assert first.write(meanwhile) == 1
        assert waits[-1].result(20) == 2


def test_a_writer_without_activity_is_rolled_back(
    make: Make, store: Database, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_IDLE_TRANSACTION_SECONDS", 0.1)
    other = make(postgresql_url)

    def silent(connection: Connection) -> None:
        connection.execute(insert(CHANGE_COUNTERS).values(name="silent", value=0))
        add(other, "other")

    with pytest.raises(StoreError, match="idle-in-transaction"):
        store.write(silent)
    assert counters(store) == ["bindings", "other"]


def test_a_check_changes_nothing(postgresql: PostgreSQL, postgresql_url: str, make: Make) -> None:
    # The id of the next transaction that writes.
    number = "SELECT txid_snapshot_xmax(txid_current_snapshot())"
    for opens in (False, True):
        database = make(postgresql_url)
        if opens:
            database.open()
        before = postgresql.do(number)
        database.check()
        assert postgresql.do(number) == before


# a server that stops


def test_a_restarted_server_is_used_again(postgresql: PostgreSQL, store: Database) -> None:
    assert counters(store) == ["bindings"]
    postgresql.restart()
    assert counters(store) == ["bindings"]
    postgresql.restart()
    add(store, "one")
    assert counters(store) == ["bindings", "one"]


def test_an_unreachable_server_is_reported_and_used_again(
    postgresql: PostgreSQL, store: Database
) -> None:
    postgresql.stop()
    try:
        for use in (store.open, store.check, lambda: add(store, "one")):
            with pytest.raises(StoreError, match="Connection refused") as raised:
                use()
            assert store.display_url in str(raised.value)
            assert PASSWORD not in str(raised.value)
    finally:
        postgresql.start()
    add(store, "one")
    assert counters(store) == ["bindings", "one"]


def test_a_transaction_that_loses_its_connection_is_rolled_back(
    postgresql: PostgreSQL, store: Database
) -> None:
    def cut(connection: Connection) -> None:
        connection.execute(insert(CHANGE_COUNTERS).values(name="one", value=0))
        backend = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        postgresql.do(f"SELECT pg_terminate_backend({backend})")
        connection.execute(insert(CHANGE_COUNTERS).values(name="two", value=0))

    with pytest.raises(StoreError):
        store.write(cut)
    add(store, "three")
    assert counters(store) == ["bindings", "three"]


async def test_a_server_that_does_not_respond_does_not_block_closing(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RESPONSE_SECONDS", 0.1)
    monkeypatch.setattr(module, "_CLOSE_SECONDS", 0.1)

    def backend(connection: Connection) -> int:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())

    store = Database(postgresql_url)
    number = store.read(backend)
    os.kill(number, signal.SIGSTOP)
    try:
        with pytest.raises(StoreError, match="no response"):
            await store.read_async(backend)
        await asyncio.wait_for(asyncio.to_thread(store.close), 20)
    finally:
        os.kill(number, signal.SIGCONT)


def test_a_server_that_vanishes_times_out_in_seconds(store: Database) -> None:
    def read_timeouts(connection: Connection) -> tuple[float, ...]:
        driver: Any = connection.connection.driver_connection
        before = float(driver.info.get_parameters()["connect_timeout"])
        with socket.socket(fileno=os.dup(driver.fileno())) as end:
            idle, interval, count = (
                end.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            unanswered = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) / 1000
        return before, idle + interval * count, unanswered

    assert all(0 < seconds <= 30 for seconds in store.read(read_timeouts))


# privileges


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"password": "wr0ng"}, "password authentication failed"),
        ({"username": "nobody"}, "password authentication failed"),
        ({"database": "nowhere"}, "does not exist"),
        ({"port": 1}, "Connection refused"),
        ({"query": {"sslmode": "require"}}, "SSL"),
        ({"query": {"passwort": "wr0ng"}}, "passwort"),
        ({"query": {"password": "wr0ng"}}, "password authentication failed"),
        ({"query": {"connect_timeout": "soon"}}, "connect_timeout"),
    ],
    ids=lambda row: next(iter(row)) if isinstance(row, dict) else "",
)
def test_an_invalid_address_is_reported_without_a_password(
    postgresql_url: str, make: Make, change: dict[str, object], expected: str
) -> None:
    url = make_url(postgresql_url).set(**change)  # type: ignore[arg-type]
    database = make(url.render_as_string(hide_password=False))
    for use in (database.open, database.check):
        with pytest.raises(StoreError, match=expected) as raised:
            use()
        shown = f"{raised.value} {database.display_url}"
        assert database.display_url in str(raised.value)
        assert PASSWORD not in shown and "wr0ng" not in shown


def test_a_missing_driver_is_reported_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"psycopg.*navidrome-auth-shim\[postgres\]") as raised:
        Database(f"postgresql+psycopg://shim:{PASSWORD}@db/shim")
    assert PASSWORD not in str(raised.value)


def test_a_role_that_cannot_create_tables_is_reported_by_check_and_on_opening(
    postgresql: PostgreSQL, make: Make
) -> None:
    postgresql.do(f"CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}'")
    try:
        with postgresql.database() as empty:
            name = str(make_url(empty).database)
            guest = make(postgresql.url(name, "guest"))
            with pytest.raises(StoreError, match="database owner"):
                guest.check()
            with pytest.raises(StoreError, match="permission denied"):
                guest.open()
            make(empty).check()
    finally:
        postgresql.do("DROP ROLE guest")


def test_a_database_without_an_encoding_preserves_every_name(
    postgresql: PostgreSQL, make: Make
) -> None:
    with postgresql.database("SQL_ASCII") as url:
        database = make(url)
        database.open()
        add(database, "Jörg 音楽")
        assert counters(database) == ["bindings", "Jörg 音楽"]
        database.close()
