"""Brings the tables up to date: Alembic, driven from here so that no file of its own is needed."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine, text

# Any number that nobody else locks by.
_LOCK = 0x5348494D


class UnknownVersion(Exception):
    """The tables are of a version that this one knows nothing of."""


def upgrade(engine: Engine) -> None:
    """Run every migration that is missing, in one transaction; a second process waits for the first."""
    config = configuration()
    with engine.connect().execution_options(shim_writes=True) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise UnknownVersion(f"tables of another version of the shim: {error}") from None


def configuration() -> Config:
    """Alembic's configuration: where the migrations are."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config
