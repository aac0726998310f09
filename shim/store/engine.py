"""The engines of the store, with the same two guarantees on SQLite and PostgreSQL.

A reader sees one snapshot in all its queries. Writers of all processes take turns, from before their first
statement until the commit, so that what a writer has read stays true when it writes. On SQLite a writer takes
the lock at its start. On PostgreSQL each reader has one snapshot, and one advisory lock serializes writers.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from socket import SHUT_RDWR, socket
from threading import Event
from typing import Any
from weakref import WeakSet

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

# Execution option of a write connection: the `threading.Event` that ends its wait.
WRITES = "shim_writes"
# Time that a writer waits for its turn.
BUSY_SECONDS = 10.0
# Interval in which it checks whether the store is being closed.
_TURN_SECONDS = 0.1

IN_MEMORY = (None, "", ":memory:")

# An arbitrary number for the advisory lock.
WRITERS_LOCK = 0x5348494D
# A writer that is silent in its transaction loses its turn after this time.
_IDLE_TRANSACTION_SECONDS = 30.0
# Detects a lost server in seconds instead of TCP's minutes. Parameters in the URL take precedence.
_POSTGRESQL: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
    # The server rejects text that its encoding cannot represent.
    "client_encoding": "utf8",
    "fallback_application_name": "navidrome-auth-shim",
}


def build_engine(url: URL, *, schema: str | None = None, lock: int = WRITERS_LOCK) -> Engine:
    """Return the engine of a store, without opening it. On PostgreSQL, its tables are in `schema` (default:
    the role's), and `lock` is the number of its writers' advisory lock. Raises ImportError if the driver is
    missing."""
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    return _postgresql(url, schema, lock)


class OpenConnections:
    """The open connections of an engine to its server, if it has one."""

    def __init__(self, engine: Engine) -> None:
        self._open: WeakSet[Any] = WeakSet()
        if engine.dialect.name == "postgresql":
            event.listen(engine, "connect", lambda connection, _record: self._open.add(connection))

    def shutdown(self) -> None:
        """Fail every thread that waits for the server. Can be called from any thread."""
        for connection in list(self._open):
            if not connection.closed:
                with socket(fileno=os.dup(connection.fileno())) as end, suppress(OSError):
                    end.shutdown(SHUT_RDWR)


def _sqlite(url: URL) -> Engine:
    arguments: dict[str, Any] = {
        "connect_args": {"check_same_thread": False, "timeout": BUSY_SECONDS}
    }
    if url.database in IN_MEMORY:
        arguments["poolclass"] = StaticPool
    engine = create_engine(url, **arguments)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver's own transactions do not include DDL, so transactions begin below.
    connection.isolation_level = None
    cursor = connection.cursor()
    _use_wal(cursor)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _use_wal(cursor: Any) -> None:
    """Change a new file to WAL. SQLite itself does not wait for another process that does so at the same
    time. Raises `sqlite3.OperationalError`."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= deadline:
                raise
            time.sleep(_TURN_SECONDS / 10)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    if _writes(connection):
        _take_turn(
            connection.connection.dbapi_connection, connection.get_execution_options()[WRITES]
        )
    else:
        connection.exec_driver_sql("BEGIN")


def _take_turn(connection: Any, ends: Event) -> None:
    """Start a write transaction when no other process has one. SQLite's own wait cannot be interrupted, and
    would delay the exit of the process, so this polls. Raises `OperationalError`."""
    deadline = time.monotonic() + BUSY_SECONDS
    connection.execute(f"PRAGMA busy_timeout={round(_TURN_SECONDS * 1000)}")
    try:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                busy = "locked" in str(error)
                if not busy or ends.is_set() or time.monotonic() >= deadline:
                    raise OperationalError("BEGIN IMMEDIATE", None, error) from None
            else:
                return
    finally:
        connection.execute(f"PRAGMA busy_timeout={round(BUSY_SECONDS * 1000)}")


def _postgresql(url: URL, schema: str | None, lock: int) -> Engine:
    given = {name: value for name, value in _POSTGRESQL.items() if name not in url.query}
    engine = create_engine(
        url,
        # The first statement of a writer is the lock, and its snapshot must be newer than the lock.
        isolation_level="READ COMMITTED",
        connect_args=given,
        pool_size=1,
        max_overflow=2,
        pool_pre_ping=True,
    )
    event.listen(engine, "begin", lambda each: _begin_postgresql(each, schema, lock))
    return engine


def _begin_postgresql(connection: Connection, schema: str | None, lock: int) -> None:
    if schema is not None:
        connection.exec_driver_sql(f"SET LOCAL search_path TO {schema}")
    if not _writes(connection):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return
    if connection.get_execution_options()[WRITES].is_set():
        # A connection that was opened since then is not among those that `OpenConnections` shut down.
        raise OperationalError("BEGIN", None, RuntimeError("the store is being closed"))
    busy, silent = (round(seconds * 1000) for seconds in (BUSY_SECONDS, _IDLE_TRANSACTION_SECONDS))
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {busy}")
    connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {silent}")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({lock})")


def _writes(connection: Connection) -> bool:
    return WRITES in connection.get_execution_options()
