"""Update the tables with Alembic, without a configuration file."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

from shim.store.errors import UnusableTables


def upgrade(connection: Connection) -> None:
    """Run every missing migration in a write transaction. A second process waits for the first, and then has
    nothing to do. Raises `UnusableTables`."""
    config = configuration()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise UnusableTables(f"tables of another version of the shim: {error}") from None


def configuration() -> Config:
    """Return Alembic's configuration with the path of the migrations."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config
