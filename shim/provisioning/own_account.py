"""What this database knows of the shim's own Navidrome account: whether this database created or adopted it.

Stored in the table of named numbers, so that it survives a restart and is shared by every shim on the
same database. The account's tokens from before are void like those of an account that was locked.
"""

from __future__ import annotations

import time

from sqlalchemy import Connection, delete, func, insert, select, update

from shim.store.database import Database
from shim.store.schema import BINDINGS, CHANGE_COUNTERS, TOKEN_RULES

_IN_USE = "database_in_use"
_ACCOUNT = "own_account "


class OwnAccountRecords:
    """Reads and writes these records. Every method raises `StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def is_in_use(self) -> bool:
        """Whether this database has been used with a Navidrome before, or was confirmed as a new one."""
        return await self._database.read_async(_is_in_use)

    async def confirm(self) -> None:
        """Record that this database is in use, so that it no longer counts as a lost one's replacement."""
        await self._database.write_async(lambda connection: _put(connection, _IN_USE, 1))

    async def knows(self, navidrome_id: str) -> bool:
        """Whether this database created or adopted the account with this id."""
        name = _ACCOUNT + navidrome_id
        return (
            await self._database.read_async(lambda connection: _value(connection, name)) is not None
        )

    async def adopt(self, navidrome_id: str) -> None:
        """Record the account as the shim's own; every token issued until now is void."""
        now = int(time.time()) + 1

        def work(connection: Connection) -> None:
            _put(connection, _IN_USE, 1)
            _put(connection, _ACCOUNT + navidrome_id, now)
            connection.execute(
                delete(TOKEN_RULES).where(TOKEN_RULES.c.navidrome_id == navidrome_id)
            )
            rule = {"navidrome_id": navidrome_id, "locked": False, "void_before": float(now)}
            connection.execute(insert(TOKEN_RULES).values(rule))
            # So that every shim reads the rule.
            changed = update(CHANGE_COUNTERS).where(CHANGE_COUNTERS.c.name == "bindings")
            connection.execute(changed.values(value=CHANGE_COUNTERS.c.value + 1))

        await self._database.write_async(work)


def _is_in_use(connection: Connection) -> bool:
    if _value(connection, _IN_USE) is not None:
        return True
    return connection.execute(select(func.count()).select_from(BINDINGS)).scalar_one() > 0


def _value(connection: Connection, name: str) -> int | None:
    found = connection.execute(
        select(CHANGE_COUNTERS.c.value).where(CHANGE_COUNTERS.c.name == name)
    ).scalar()
    return None if found is None else int(found)


def _put(connection: Connection, name: str, value: int) -> None:
    connection.execute(delete(CHANGE_COUNTERS).where(CHANGE_COUNTERS.c.name == name))
    connection.execute(insert(CHANGE_COUNTERS).values(name=name, value=value))
