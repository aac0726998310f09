"""Transactions on the store, in a separate thread.

A process has one connection for writes, so transactions queue in order; each is short. A committed
transaction is on disk when the call returns. Two processes wait for each other instead of failing. No call
waits forever: a store that does not respond counts as unusable.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy import URL, Connection, insert, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from shim.store.engine import (
    IN_MEMORY,
    WRITERS_LOCK,
    WRITES,
    OpenConnections,
    build_engine,
)
from shim.store.errors import StoreCorrupt, StoreError, StoreReplaced, UnusableTables
from shim.store.schema import CHANGE_COUNTERS, HEAD, METADATA, VERSION

T = TypeVar("T")

# Longer than a new connection and a writer's turn take together.
_RESPONSE_SECONDS = 20.0
# Time for running transactions when the store is closed.
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of a database: how they are created and updated, and what messages say about it.

    `head` is the current version. `version` returns that of a database, None without tables. `create` makes
    the tables of `head` unless they are there, `upgrade` updates earlier ones; both run in a write
    transaction, and raise `UnusableTables`. `verify` raises it for a version without changing anything, as
    far as it can be known. `missing_right` returns what the role lacks to do so. `setting`
    has the URL, `if_replaced` says what happens if the file was replaced. For `schema` and `lock` see
    `build_engine`.
    """

    head: str
    version: Callable[[Connection], str | None]
    create: Callable[[Connection], None]
    upgrade: Callable[[Connection], None]
    verify: Callable[[Connection, str | None], None]
    missing_right: Callable[[Connection], str | None]
    setting: str
    if_replaced: str
    thread: str
    schema: str | None = None
    lock: int = WRITERS_LOCK


class Database:
    """The database at `url` (SQLAlchemy's format) with these tables, by default those of the bindings. The
    constructor does not access it; `open` does. Raises `StoreError` if the driver is missing."""

    def __init__(self, url: str, tables: Tables | None = None) -> None:
        self._url = _absolute(make_url(url))
        self._tables = tables or BINDING_TABLES
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self._tables.thread)
        try:
            self._engine = build_engine(
                self._url, schema=self._tables.schema, lock=self._tables.lock
            )
        except ImportError as error:
            raise StoreError(
                f"{self.display_url}: psycopg, which PostgreSQL needs, is not installed ({error}): install "
                "navidrome-auth-shim[postgres], or build the image with REQUIREMENTS=postgres.txt"
            ) from None
        self._connections = OpenConnections(self._engine)
        self._ends = threading.Event()
        self._file_id: tuple[int, int] | None = None
        self._read_fault: str | None = None
        self._write_fault: str | None = None

    @property
    def display_url(self) -> str:
        """The URL without password and query."""
        return self._url.set(query={}).render_as_string(hide_password=True)

    @property
    def fault(self) -> str | None:
        """The error of the last transactions, None without one."""
        return self._write_fault or self._read_fault

    @property
    def write_fault(self) -> str | None:
        """The error of the last write, None if it succeeded. A successful read does not clear it: a locked
        file and a full disk can still be read."""
        return self._write_fault

    @property
    def file(self) -> Path | None:
        """The SQLite file, or None."""
        if self._url.get_backend_name() != "sqlite" or self._url.database in IN_MEMORY:
            return None
        return Path(str(self._url.database))

    def check(self) -> None:
        """Read from the store, and change nothing. Raises `StoreError`, also if `open` could not create or
        update the tables."""
        error = self.read(self._migration_error)
        if error is not None:
            raise StoreError(f"{self.display_url}: {error}")

    def _migration_error(self, connection: Connection) -> str | None:
        """Return why the tables cannot be updated, as far as a read shows."""
        current = self._tables.version(connection)
        if current == self._tables.head:
            return None
        try:
            self._tables.verify(connection, current)
        except UnusableTables as error:
            return str(error)
        if connection.dialect.name != "postgresql":
            return None
        return self._tables.missing_right(connection)

    def is_current(self) -> bool:
        """Return whether the tables exist and are up to date. Changes nothing. Raises `StoreError`."""
        return self.read(self._tables.version) == self._tables.head

    def open(self) -> None:
        """Create or update the tables. Raises `StoreError`."""
        self._prepare_file()
        with _translate_errors(self.display_url):
            with self._engine.connect() as connection:
                current = self._tables.version(connection)
            try:
                if current is None:
                    self.write(self._tables.create)
                    current = self.read(self._tables.version)
                if current != self._tables.head:
                    self.write(self._tables.upgrade)
            except UnusableTables as error:
                raise StoreError(f"{self.display_url}: {error}") from None
        self._file_id = self._current_file_id()

    def reopen(self, accepts: Callable[[Connection], bool]) -> bool:
        """Use the current file if `accepts` returns True for it. Return whether it did. Raises
        `StoreError`."""
        file_id = self._current_file_id()
        if file_id is None:
            raise self._replaced()
        self._engine.dispose()
        with _translate_errors(self.display_url), self._engine.connect() as connection:
            accepted = self._tables.version(connection) == self._tables.head and accepts(connection)
        if accepted:
            self._file_id = file_id
        else:
            self._engine.dispose()
        return accepted

    def forget_file(self) -> None:
        """Close the connections, so that `open` takes the file that is there then."""
        self._engine.dispose()
        self._file_id = None

    def _prepare_file(self) -> None:
        """Create the file, readable only by its owner. SQLite gives its other files the same mode. Raises
        `StoreError`."""
        file = self.file
        if file is None:
            return
        problem = file_problem(file, self._tables.setting)
        if problem is not None:
            raise StoreError(f"{self.display_url}: {problem}")
        try:
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
            if file.stat().st_mode & 0o077:
                file.chmod(0o600)
        except OSError as error:
            raise StoreError(f"{self.display_url}: {error.strerror or error}") from None

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction with one snapshot, and return its result."""
        try:
            self._check_file()
            with _translate_errors(self.display_url), self._engine.connect() as connection:
                found = work(connection)
        except StoreError as error:
            self._read_fault = str(error)
            # A connection caches pages of a damaged file, which a restored file does not have.
            self._engine.dispose()
            raise
        self._read_fault = None
        return found

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction, committed when this returns. An exception rolls it back. Raises
        `StoreError`, or SQLAlchemy's IntegrityError."""
        try:
            self._check_file()
            with (
                _translate_errors(self.display_url),
                self._engine.connect().execution_options(**{WRITES: self._ends}) as connection,
                connection.begin(),
            ):
                done = work(connection)
        except StoreError as error:
            self._write_fault = str(error)
            raise
        self._write_fault = self._read_fault = None
        return done

    async def open_async(self) -> None:
        """Run `open` in the thread."""
        await self.run_async(self.open)

    async def read_async(self, work: Callable[[Connection], T]) -> T:
        """Run `read` in the thread."""
        return await self.run_async(lambda: self.read(work))

    async def write_async(self, work: Callable[[Connection], T]) -> T:
        """Run `write` in the thread. A transaction that has begun continues if the caller is cancelled or
        times out."""
        try:
            return await self.run_async(lambda: self.write(work))
        except StoreError as error:
            self._write_fault = str(error)
            raise

    async def check_writable(self) -> None:
        """Write an unchanged value, to test whether writes work again. Raises `StoreError`."""
        same = update(CHANGE_COUNTERS).values(value=CHANGE_COUNTERS.c.value)
        await self.write_async(lambda connection: connection.execute(same))

    def close(self, timeout: float | None = None) -> None:
        """Wait at most `timeout` seconds (by default `_LAST_SECONDS`) for running transactions, and close the
        store. Unfinished ones are rolled back."""
        with contextlib.suppress(RuntimeError):  # closed before
            last = self._thread.submit(int)
            self._thread.shutdown(wait=False)
            if not wait({last}, _CLOSE_SECONDS if timeout is None else timeout).done:
                self._ends.set()
                self._connections.shutdown()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._engine.dispose()

    async def reopened(self, accepts: Callable[[Connection], bool]) -> bool:
        """Run `reopen` in the thread."""
        return await self.run_async(lambda: self.reopen(accepts))

    def _current_file_id(self) -> tuple[int, int] | None:
        """Return device and inode of the file, None without a file."""
        try:
            status = None if self.file is None else self.file.stat()
        except OSError:
            return None
        return None if status is None else (status.st_dev, status.st_ino)

    def _check_file(self) -> None:
        if self._file_id is not None and self._current_file_id() != self._file_id:
            raise self._replaced()

    def _replaced(self) -> StoreReplaced:
        return StoreReplaced(
            f"{self.display_url}: the file was deleted or replaced while the shim runs, "
            f"{self._tables.if_replaced}"
        )

    async def run_async(self, work: Callable[[], T]) -> T:
        """Run any work in the thread, after what was begun before, and return its result. Raises `StoreError`
        if it does not end in time; it then continues."""
        try:
            future = self._thread.submit(work)
        except RuntimeError:
            raise StoreError("the store is closed") from None
        try:
            async with asyncio.timeout(_RESPONSE_SECONDS):
                return await asyncio.shield(asyncio.wrap_future(future))
        except TimeoutError:
            # A transaction that has not begun yet is never run, because its caller gets an error now.
            future.cancel()
            raise StoreError(
                f"{self.display_url}: no response for {_RESPONSE_SECONDS:.0f} s"
            ) from None


def _absolute(url: URL) -> URL:
    """Return the URL with the absolute path of an SQLite file, so that messages are unambiguous."""
    name = url.database
    if url.get_backend_name() != "sqlite" or name in IN_MEMORY or str(name).startswith("file:"):
        return url
    return url.set(database=str(Path(str(name)).absolute()))


def file_problem(file: Path, setting: str = "SHIM_DATABASE_URL") -> str | None:
    """Return why this file cannot hold the database of `setting`, with the remedy; None if no problem is
    known."""
    folder = file.absolute().parent
    user = f"user {os.geteuid()}"
    remedy = f"make it writable (chown {os.geteuid()} {folder}), or set {setting} to another place"
    if not folder.is_dir():
        create = f"create it (in a container: mount a volume there), or set {setting}"
        return f"there is no folder {folder}: {create}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"the folder {folder} can't be written by {user}: {remedy}"
    if file.exists() and not os.access(file, os.R_OK | os.W_OK):
        return f"the file {file} can't be written by {user}: {remedy}"
    return None


@contextmanager
def _translate_errors(display_url: str) -> Iterator[None]:
    """Turn errors of the driver into a `StoreError` with the URL."""
    try:
        yield
    except IntegrityError:
        raise
    except SQLAlchemyError as error:
        original = getattr(error, "orig", None) or error
        lines = str(original).splitlines() or [type(original).__name__]
        kind = StoreCorrupt if _is_corrupt(original) else StoreError
        raise kind(f"{display_url}: {lines[0]}") from None


def _is_corrupt(error: BaseException) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _missing_right(connection: Connection) -> str | None:
    # Since PostgreSQL 15 only the owner of a database can create tables in its schema `public`.
    query = text("SELECT coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)")
    if connection.execute(query).scalar_one():
        return None
    return "role lacks CREATE on the schema; make it the database owner"


def _create_tables(connection: Connection) -> None:
    """Create the tables of the last version, unless another process did so meanwhile."""
    if _version(connection) is None:
        # Tables that are there without a version are somebody else's: creating them again fails.
        METADATA.create_all(connection, checkfirst=False)
        connection.execute(insert(CHANGE_COUNTERS).values(name="bindings", value=0))
        connection.execute(insert(VERSION).values(version_num=HEAD))


def _version(connection: Connection) -> str | None:
    """Return the migration of the tables, None before the first."""
    has_table = connection.dialect.has_table(connection, "alembic_version")
    if not has_table:
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def _upgrade(connection: Connection) -> None:
    # Alembic costs 10 MB, and only tables of an earlier version need it.
    from shim.store.upgrade import upgrade  # noqa: PLC0415

    upgrade(connection)


BINDING_TABLES = Tables(
    head=HEAD,
    version=_version,
    create=_create_tables,
    upgrade=_upgrade,
    verify=lambda _connection, _version: (
        None
    ),  # Alembic knows the versions, and is loaded to upgrade alone
    missing_right=_missing_right,
    setting="SHIM_DATABASE_URL",
    if_replaced=(
        "so no new account is bound. Put the file back, or restart the shim to use the new file."
    ),
    thread="store",
)
