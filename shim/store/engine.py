"""The engine below the store, made so that SQLite and PostgreSQL keep the same two promises.

A reader sees one moment, however often it asks. Writers of all processes take turns, from before their first
statement until they have committed: what one has read holds when it writes. SQLite does so by itself once
a writer takes the lock at its beginning; PostgreSQL gets one snapshot a reader and one lock for writers.
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

# The execution option of a connection that will write: the `threading.Event` that ends its waiting.
WRITES = "shim_writes"
# How long a writer waits for its turn.
BUSY_SECONDS = 10.0
# How long it waits before it looks whether the store is being closed.
_TURN_SECONDS = 0.1

IN_MEMORY = (None, "", ":memory:")

# Any number that nobody else in the database locks by.
_LOCK = 0x5348494D
# A writer that has gone silent in its transaction loses its turn after this long.
_IDLE_TRANSACTION_SECONDS = 30.0
# A server that is away is noticed in seconds, not in the minutes that TCP takes. What the address says
# itself counts.
_POSTGRESQL: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
    # What the database is not encoded in is refused by the server, not garbled.
    "client_encoding": "utf8",
    "fallback_application_name": "navidrome-auth-shim",
}


def build_engine(url: URL) -> Engine:
    """The engine of a store; nothing is opened yet. Raises ImportError where its driver is missing."""
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    return _postgresql(url)


class OpenConnections:
    """The connections of an engine to its server, where it has one."""

    def __init__(self, engine: Engine) -> None:
        self._open: WeakSet[Any] = WeakSet()
        if engine.dialect.name == "postgresql":
            event.listen(engine, "connect", lambda connection, _record: self._open.add(connection))

    def shutdown(self) -> None:
        """From any thread: whoever waits for the server to answer is told that it is gone."""
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
    # The driver's own way of beginning transactions leaves DDL outside; ours is below.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    if _writes(connection):
        _take_turn(
            connection.connection.dbapi_connection, connection.get_execution_options()[WRITES]
        )
    else:
        connection.exec_driver_sql("BEGIN")


def _take_turn(connection: Any, ends: Event) -> None:
    """Begin to write once no other process does. SQLite's own waiting can't be ended from outside, and would
    keep the process from ending, so it is asked again and again. Raises `OperationalError`."""
    latest = time.monotonic() + BUSY_SECONDS
    connection.execute(f"PRAGMA busy_timeout={round(_TURN_SECONDS * 1000)}")
    try:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                busy = "locked" in str(error)
                if not busy or ends.is_set() or time.monotonic() >= latest:
                    raise OperationalError("BEGIN IMMEDIATE", None, error) from None
            else:
                return
    finally:
        connection.execute(f"PRAGMA busy_timeout={round(BUSY_SECONDS * 1000)}")


def _postgresql(url: URL) -> Engine:
    given = {name: value for name, value in _POSTGRESQL.items() if name not in url.query}
    engine = create_engine(
        url,
        # A writer's first statement is the lock: what it sees has to be of after it, not of before.
        isolation_level="READ COMMITTED",
        connect_args=given,
        pool_size=1,
        max_overflow=2,
        pool_pre_ping=True,
    )
    event.listen(engine, "begin", _begin_postgresql)
    return engine


def _begin_postgresql(connection: Connection) -> None:
    if not _writes(connection):
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        return
    busy, silent = (round(seconds * 1000) for seconds in (BUSY_SECONDS, _IDLE_TRANSACTION_SECONDS))
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {busy}")
    connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {silent}")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")


def _writes(connection: Connection) -> bool:
    return WRITES in connection.get_execution_options()
