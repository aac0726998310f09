"""A PostgreSQL for the tests: created in a folder, on loopback, and stopped by its process id.

It runs as another user where the tests run as root, since PostgreSQL refuses root.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy.engine import URL, make_url

from tests.support.ports import free_port

OWNER = "shim"
# Must not appear in any message.
PASSWORD = "s3cret"

_START_SECONDS = 30.0
# Without durability: no data outlives the tests.
_OPTIONS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "16MB",
    "max_connections": "50",
    "listen_addresses": "127.0.0.1",
}


def programs() -> Path | None:
    """The folder of the newest PostgreSQL's programs, if there is one: Debian does not put them on
    the path.
    """
    for found in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version):
        return found.parent
    beside = shutil.which("initdb")
    return None if beside is None else Path(beside).resolve().parent


class PostgreSQL:
    """A server that can stop and restart with its data.

    Its roles: `postgres`, and `shim`, which owns the databases; both have the same password.
    """

    def __init__(self, bin_folder: Path) -> None:
        self._bin = bin_folder
        self._folder = Path(tempfile.mkdtemp(prefix="shim-postgresql-"))
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._user = _server_user()
        self.port = 0
        if self._user is not None:
            shutil.chown(self._folder, self._user, pwd.getpwnam(self._user).pw_gid)

    # lifecycle

    def create(self) -> None:
        """Create its files, start it, and create the role."""
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        arguments = ["--auth=scram-sha-256", f"--pwfile={secret}", "--username=postgres"]
        arguments += ["--encoding=UTF8", "--locale=C", "--no-sync", str(self._data)]
        with self._log() as log:
            exit_status = self._run("initdb", *arguments, log=log).wait(_START_SECONDS)
        assert exit_status == 0, self.output
        # A new port each time: another process may have taken the one that was free.
        for _ in range(3):
            self.port = free_port()
            if self._comes_up():
                break
        else:
            raise AssertionError(self.output)
        self.do(f"CREATE ROLE {OWNER} LOGIN PASSWORD '{PASSWORD}'")

    def start(self) -> None:
        """Restart it at the same port, if it is stopped."""
        assert self._process is not None or self._comes_up(), self.output

    def stop(self) -> None:
        """Stop it and close all sessions."""
        process, self._process = self._process, None
        if process is None:
            return
        # A fast shutdown; a backend that is stopped can't end it.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    def remove(self) -> None:
        """Stop it, and delete its files."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    # databases

    @contextmanager
    def database(self, encoding: str = "UTF8") -> Iterator[str]:
        """The address of a new and empty database, as a setting, until the block ends."""
        name = f"shim{next(self._numbers)}"
        self.do(f"CREATE DATABASE {name} OWNER {OWNER} TEMPLATE template0 ENCODING '{encoding}'")
        try:
            yield self.url(name)
        finally:
            self.do(f"DROP DATABASE {name} WITH (FORCE)")

    def url(self, database: str, user: str = OWNER, password: str = PASSWORD) -> str:
        """The address of a database."""
        where = URL.create(
            "postgresql+psycopg", user, password, "127.0.0.1", self.port, database
        )  # fmt: skip
        return where.render_as_string(hide_password=False)

    def do(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Return the result of a statement that the superuser runs."""
        with self.session(database) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def wait_for_blocked_sessions(self, url: str, sessions: int) -> None:
        """Wait until this many sessions of a database wait for another session's lock."""
        count = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            f"AND datname = '{make_url(url).database}'"
        )
        end = time.monotonic() + _START_SECONDS
        while (found := self.do(count)) != [(sessions,)]:
            assert time.monotonic() < end, (found, sessions)
            time.sleep(0.02)

    @contextmanager
    def session(self, database: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
        """A session of the superuser, outside any transaction."""
        connection = psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="postgres",
            password=PASSWORD,
            dbname=database,
            autocommit=True,
        )
        with connection:
            yield connection

    @property
    def output(self) -> str:
        """The end of its log."""
        return (self._folder / "log").read_text("utf-8", "replace")[-2000:]

    # process

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _comes_up(self) -> bool:
        options = {
            **_OPTIONS,
            "port": str(self.port),
            "unix_socket_directories": str(self._folder),
        }
        option_arguments = [f"--{name}={value}" for name, value in options.items()]
        with self._log() as log:
            process = self._run("postgres", "-D", str(self._data), *option_arguments, log=log)
        end = time.monotonic() + _START_SECONDS
        while process.poll() is None and time.monotonic() < end:
            if self._is_ready(process.pid):
                self._process = process
                return True
            time.sleep(0.02)
        process.kill()
        process.wait()
        return False

    def _is_ready(self, process: int) -> bool:
        """Return whether the server is ready by its own file: its process id is in the first line,
        its status in the last.
        """
        try:
            lines = (self._data / "postmaster.pid").read_text().split()
        except FileNotFoundError:
            return False
        return lines[:1] == [str(process)] and lines[-1] == "ready"

    @contextmanager
    def _log(self) -> Iterator[int]:
        descriptor = os.open(self._folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _run(self, program: str, *arguments: str, log: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [self._bin / program, *arguments],
            cwd=self._folder,
            env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
            user=self._user,
            group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
            extra_groups=None if self._user is None else [],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _version(initdb: Path) -> float:
    """Sort key that puts the newest version first."""
    try:
        return -float(initdb.parts[-3])
    except ValueError:
        return 0.0


def _server_user() -> str | None:
    """The user that runs the server: None for the current user, but never root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)
