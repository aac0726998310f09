"""Create and recognize the trail's tables."""

from __future__ import annotations

import uuid
from pathlib import Path

from sqlalchemy import Connection, insert, inspect, select, text

from shim.audit.store.schema import META, METADATA, TABLES, VERSION
from shim.store.database import Database, Tables
from shim.store.errors import UnusableTables

SCHEMA = "shim_audit"
SETTING = "SHIM_AUDIT_DATABASE_URL"
# The advisory lock of all writers to one trail, another one than that of the bindings.
_LOCK = 0x5348494E


def build_database(url: str) -> Database:
    """Return the trail's database at `url` for a writer. Raises `StoreError` if the driver is missing."""
    return Database(url, TRAIL_TABLES)


def default_url(database_url: str) -> str:
    """Return where the trail is if no setting says so: `audit.db` beside the SQLite file of the bindings, or
    their PostgreSQL database."""
    prefix = "sqlite:///"
    if not database_url.startswith(prefix):
        return database_url
    return prefix + str(Path(database_url.removeprefix(prefix)).with_name("audit.db"))


def _version(connection: Connection) -> str | None:
    if not connection.dialect.has_table(connection, META.name):
        return None
    found = connection.execute(select(META.c.value).where(META.c.name == "version")).scalar()
    return "unknown" if found is None else str(found)


def _create(connection: Connection) -> None:
    """Create the tables, unless another process did so meanwhile."""
    if _version(connection) is not None:
        return
    if connection.dialect.name == "postgresql":
        known = text("SELECT 1 FROM pg_namespace WHERE nspname = :name")
        if connection.execute(known, {"name": SCHEMA}).first() is None:
            connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    _verify(connection, None)
    for table in TABLES.values():
        for index in table.indexes:
            if "where" in index.info:
                options = index.dialect_options[connection.dialect.name]
                options["where"] = index.info["where"]
    METADATA.create_all(connection, checkfirst=False)
    connection.execute(
        insert(META),
        [{"name": "version", "value": VERSION}, {"name": "id", "value": str(uuid.uuid4())}],
    )


def _upgrade(connection: Connection) -> None:
    _verify(connection, _version(connection))


def _verify(connection: Connection, version: str | None) -> None:
    """Raise `UnusableTables` for tables of another program or version."""
    if version is not None:
        raise UnusableTables(
            f"the audit trail's tables have version {version}, this shim knows {VERSION}: use the shim that "
            "wrote them"
        )
    schema = SCHEMA if connection.dialect.name == "postgresql" else None
    others = inspect(connection).get_table_names(schema=schema)
    if others:
        raise UnusableTables(
            f"it has tables of another program ({', '.join(others[:3])}): set {SETTING} to a database of "
            "the trail's own"
        )


def _missing_right(connection: Connection) -> str | None:
    found = connection.execute(
        text(
            "SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = :name), "
            "has_database_privilege(current_database(), 'CREATE')"
        ),
        {"name": SCHEMA},
    ).one()
    if found[0] or found[1]:
        return None
    return (
        f"role lacks CREATE on the database; grant it, or create the schema {SCHEMA} for the role"
    )


TRAIL_TABLES = Tables(
    head=VERSION,
    version=_version,
    create=_create,
    upgrade=_upgrade,
    verify=_verify,
    missing_right=_missing_right,
    setting=SETTING,
    if_replaced="so it is opened again.",
    thread="trail",
    schema=SCHEMA,
    lock=_LOCK,
)
