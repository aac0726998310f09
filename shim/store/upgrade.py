"""Brings the tables up to date: Alembic, driven from here so that no file of its own is needed."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection


class UnknownVersion(Exception):
    """The tables are of a version that this one knows nothing of."""


def upgrade(connection: Connection) -> None:
    """Run every migration that is missing, within a writer's transaction: a second process waits for the
    first, and finds nothing left to do."""
    config = configuration()
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
