"""Transactions on the store, in a thread of their own.

There is one connection for a process's writes, so transactions queue in order; each is short. On SQLite
a commit is on the disk when it returns, and a writer takes the lock at its beginning: two processes wait
for each other instead of failing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from shim.store.schema import HEAD

T = TypeVar("T")

_BUSY_SECONDS = 10
_IN_MEMORY = (None, "", ":memory:")


class StoreError(Exception):
    """The store can't be used. The message names no password."""


class Database:
    """The store at `url` (SQLAlchemy's form). Made without touching it; `open` or `opened` does."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._engine = _engine(url)

    @property
    def place(self) -> str:
        """Where it is, without a password, and without the query, which may hold one."""
        return self._url.set(query={}).render_as_string(hide_password=True)

    @property
    def file(self) -> Path | None:
        """The file that it is in, where it is in one."""
        if self._url.get_backend_name() != "sqlite" or self._url.database in _IN_MEMORY:
            return None
        return Path(str(self._url.database))

    def look(self) -> None:
        """Read from it, and change nothing. Raises `StoreError`."""
        self.read(_version)

    def open(self) -> None:
        """Bring the tables up to date. Raises `StoreError`."""
        with _told(self.place):
            with self._engine.connect() as connection:
                current = _version(connection)
            if current != HEAD:
                # Alembic is large, and seldom needed.
                from shim.store.upgrade import UnknownVersion, upgrade  # noqa: PLC0415

                try:
                    upgrade(self._engine)
                except UnknownVersion as error:
                    raise StoreError(f"{self.place}: {error}") from None

    def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` finds, in one transaction."""
        with _told(self.place), self._engine.connect() as connection:
            return work(connection)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Do `work` in one transaction, committed when this returns. What `work` raises undoes it.
        Raises `StoreError`, or SQLAlchemy's IntegrityError as it is."""
        with (
            _told(self.place),
            self._engine.connect().execution_options(shim_writes=True) as connection,
            connection.begin(),
        ):
            return work(connection)

    async def opened(self) -> None:
        """`open`, off the loop."""
        await self._in_thread(self.open)

    async def reading(self, work: Callable[[Connection], T]) -> T:
        """`read`, off the loop."""
        return await self._in_thread(lambda: self.read(work))

    async def writing(self, work: Callable[[Connection], T]) -> T:
        """`write`, off the loop. Whoever is cancelled meanwhile leaves it running to its end."""
        return await self._in_thread(lambda: self.write(work))

    def close(self) -> None:
        """Wait for what is under way, and let go of the store."""
        self._thread.shutdown(wait=True)
        self._engine.dispose()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            under_way = asyncio.get_running_loop().run_in_executor(self._thread, work)
        except RuntimeError:
            raise StoreError("the store is closed") from None
        return await asyncio.shield(under_way)


@contextmanager
def _told(place: str) -> Iterator[None]:
    """Makes what the driver raises into a `StoreError` that says where."""
    try:
        yield
    except IntegrityError:
        raise
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise StoreError(f"{place}: {str(cause).splitlines()[0]}") from None


def _engine(url: str) -> Engine:
    where = make_url(url)
    if where.get_backend_name() != "sqlite":
        return create_engine(where, pool_size=1, max_overflow=2, pool_pre_ping=True)
    arguments: dict[str, Any] = {
        "connect_args": {"check_same_thread": False, "timeout": _BUSY_SECONDS}
    }
    if where.database in _IN_MEMORY:
        arguments["poolclass"] = StaticPool
    engine = create_engine(where, **arguments)
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
    writes = connection.get_execution_options().get("shim_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _version(connection: Connection) -> str | None:
    """The migration that the tables are at, None before the first."""
    has_table = connection.dialect.has_table(connection, "alembic_version")
    if not has_table:
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)
