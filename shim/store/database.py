"""Transactions on the store, in a thread of their own.

There is one connection for a process's writes, so transactions queue in order; each is short. What is
committed is on the disk when it returns, and two processes wait for each other instead of failing. Nobody
waits for ever: a store that does not answer is one that can't be used.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sqlalchemy import URL, Connection, insert, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from shim.store.engine import IN_MEMORY, WRITES, OpenConnections, build_engine
from shim.store.errors import StoreError, StoreReplaced
from shim.store.schema import CHANGE_COUNTERS, HEAD, METADATA, VERSION

T = TypeVar("T")

# Longer than a new connection and a writer's turn take together.
_RESPONSE_SECONDS = 20.0
# How long what is under way may take when the store is closed.
_CLOSE_SECONDS = 5.0


class Database:
    """The store at `url` (SQLAlchemy's form). Made without touching it; `open` or `opened` does. Raises
    `StoreError` where it can't be spoken to at all."""

    def __init__(self, url: str) -> None:
        self._url = _absolute(make_url(url))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        try:
            self._engine = build_engine(self._url)
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
        """Where it is, without a password, and without the query, which may hold one."""
        return self._url.set(query={}).render_as_string(hide_password=True)

    @property
    def fault(self) -> str | None:
        """Why it can't be used, as far as the last transactions tell; None if it can."""
        return self._write_fault or self._read_fault

    @property
    def write_fault(self) -> str | None:
        """Why the last write failed; None if it did not. A read proves nothing about it: a locked file and
        a full disk are read as before."""
        return self._write_fault

    @property
    def file(self) -> Path | None:
        """The file that it is in, where it is in one."""
        if self._url.get_backend_name() != "sqlite" or self._url.database in IN_MEMORY:
            return None
        return Path(str(self._url.database))

    def check(self) -> None:
        """Read from it, and change nothing. Raises `StoreError`, also where `open` would have to make the
        tables and may not."""
        error = self.read(_migration_error)
        if error is not None:
            raise StoreError(f"{self.display_url}: {error}")

    def is_current(self) -> bool:
        """Whether its tables are there and up to date. Changes nothing. Raises `StoreError`."""
        return self.read(_version) == HEAD

    def open(self) -> None:
        """Bring the tables up to date. Raises `StoreError`."""
        self._prepare_file()
        with _translate_errors(self.display_url):
            with self._engine.connect() as connection:
                current = _version(connection)
            if current is None:
                self.write(_create_tables)
                current = self.read(_version)
            if current != HEAD:
                # Alembic costs 10 MB, and only tables of an earlier version need it.
                from shim.store.upgrade import UnknownVersion, upgrade  # noqa: PLC0415

                try:
                    self.write(upgrade)
                except UnknownVersion as error:
                    raise StoreError(f"{self.display_url}: {error}") from None
        self._file_id = self._current_file_id()

    def reopen(self, accepts: Callable[[Connection], bool]) -> bool:
        """Use the file that is there now, if `accepts` finds in it what has to be there; return whether it
        does. Raises `StoreError`."""
        file_id = self._current_file_id()
        if file_id is None:
            raise self._replaced()
        self._engine.dispose()
        with _translate_errors(self.display_url), self._engine.connect() as connection:
            accepted = _version(connection) == HEAD and accepts(connection)
        if accepted:
            self._file_id = file_id
        else:
            self._engine.dispose()
        return accepted

    def _prepare_file(self) -> None:
        """Create the file for its owner alone, or say why that can't be done. SQLite gives the files beside
        it the same mode."""
        file = self.file
        if file is None:
            return
        problem = file_problem(file)
        if problem is not None:
            raise StoreError(f"{self.display_url}: {problem}")
        try:
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
            if file.stat().st_mode & 0o077:
                file.chmod(0o600)
        except OSError as error:
            raise StoreError(f"{self.display_url}: {error.strerror or error}") from None

    def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` finds, in one transaction, which sees one moment."""
        try:
            self._check_file()
            with _translate_errors(self.display_url), self._engine.connect() as connection:
                found = work(connection)
        except StoreError as error:
            self._read_fault = str(error)
            # What a connection remembers of a damaged file is not what a restored one has.
            self._engine.dispose()
            raise
        self._read_fault = None
        return found

    def write(self, work: Callable[[Connection], T]) -> T:
        """Do `work` in one transaction, committed when this returns. What `work` raises undoes it.
        Raises `StoreError`, or SQLAlchemy's IntegrityError as it is."""
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
        """`open`, off the loop."""
        await self._in_thread(self.open)

    async def read_async(self, work: Callable[[Connection], T]) -> T:
        """`read`, off the loop."""
        return await self._in_thread(lambda: self.read(work))

    async def write_async(self, work: Callable[[Connection], T]) -> T:
        """`write`, off the loop. Whoever is cancelled meanwhile leaves it running to its end, and so does
        whoever has waited too long for one that has begun."""
        try:
            return await self._in_thread(lambda: self.write(work))
        except StoreError as error:
            self._write_fault = str(error)
            raise

    async def prove_writable(self) -> None:
        """Write what is there already, to see whether a write works again. Raises `StoreError`."""
        same = update(CHANGE_COUNTERS).values(value=CHANGE_COUNTERS.c.value)
        await self.write_async(lambda connection: connection.execute(same))

    def close(self, within: float | None = None) -> None:
        """Wait for what is under way, at most `within` seconds (by default `_LAST_SECONDS`), and let go of
        the store. What is not done by then is undone."""
        with contextlib.suppress(RuntimeError):  # closed before
            last = self._thread.submit(int)
            self._thread.shutdown(wait=False)
            if not wait({last}, _CLOSE_SECONDS if within is None else within).done:
                self._ends.set()
                self._connections.shutdown()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._engine.dispose()

    async def reopened(self, accepts: Callable[[Connection], bool]) -> bool:
        """`reopen`, off the loop."""
        return await self._in_thread(lambda: self.reopen(accepts))

    def _current_file_id(self) -> tuple[int, int] | None:
        """What tells the file from any other one; None where there is no file."""
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
            f"{self.display_url}: the file was deleted or replaced while the shim runs, so nobody "
            f"new is bound: "
            "put the file back, or restart the shim to go on with the one that is there"
        )

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            under_way = self._thread.submit(work)
        except RuntimeError:
            raise StoreError("the store is closed") from None
        try:
            async with asyncio.timeout(_RESPONSE_SECONDS):
                return await asyncio.shield(asyncio.wrap_future(under_way))
        except TimeoutError:
            # What has not begun by now is never done: whoever asked for it has been told so.
            under_way.cancel()
            raise StoreError(
                f"{self.display_url}: no response for {_RESPONSE_SECONDS:.0f} s"
            ) from None


def _absolute(url: URL) -> URL:
    """The URL with the whole path of an SQLite file: what is said of it names one place."""
    name = url.database
    if url.get_backend_name() != "sqlite" or name in IN_MEMORY or str(name).startswith("file:"):
        return url
    return url.set(database=str(Path(str(name)).absolute()))


def file_problem(file: Path) -> str | None:
    """Why a database can't be in this file, and what to do; None where nothing is known to be wrong."""
    folder = file.absolute().parent
    user = f"user {os.geteuid()}"
    remedy = f"make it writable (chown {os.geteuid()} {folder}), or set SHIM_DATABASE_URL to another place"
    if not folder.is_dir():
        create = "create it (in a container: mount a volume there), or set SHIM_DATABASE_URL"
        return f"there is no folder {folder}: {create}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"the folder {folder} can't be written to by {user}: {remedy}"
    if file.exists() and not os.access(file, os.R_OK | os.W_OK):
        return f"the file {file} can't be written to by {user}: {remedy}"
    return None


@contextmanager
def _translate_errors(display_url: str) -> Iterator[None]:
    """Makes what the driver raises into a `StoreError` that says where."""
    try:
        yield
    except IntegrityError:
        raise
    except SQLAlchemyError as error:
        original = getattr(error, "orig", None) or error
        lines = str(original).splitlines() or [type(original).__name__]
        raise StoreError(f"{display_url}: {lines[0]}") from None


def _migration_error(connection: Connection) -> str | None:
    """Why the tables can't be brought up to date, as far as reading tells."""
    if _version(connection) == HEAD or connection.dialect.name != "postgresql":
        return None
    # Since PostgreSQL 15 only a database's owner may make tables in its schema `public`.
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
    """The migration that the tables are at, None before the first."""
    has_table = connection.dialect.has_table(connection, "alembic_version")
    if not has_table:
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)
