"""What this database knows of the shim's own Navidrome account: whether this database created or adopted it,
and the time before which its Navidrome tokens are void.

Stored in the table of named numbers, so that it survives a restart and is shared by every shim on the
same database.
"""

from __future__ import annotations

import time

from sqlalchemy import Connection, delete, func, insert, select

from shim.store.database import Database
from shim.store.schema import BINDINGS, MARKS

_IN_USE = "database_in_use"
_ACCOUNT = "own_account "


class OwnAccountRecords:
    """Reads and writes these records. Every method raises `StoreError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def is_in_use(self) -> bool:
        """Whether this database has been used with a Navidrome before, or was confirmed as a new one."""
        return await self._database.reading(_is_in_use)

    async def confirm(self) -> None:
        """Record that this database is in use, so that it no longer counts as a lost one's replacement."""
        await self._database.writing(lambda connection: _put(connection, _IN_USE, 1))

    async def knows(self, navidrome_id: str) -> bool:
        """Whether this database created or adopted the account with this id."""
        return await self.tokens_void_before(navidrome_id) is not None

    async def tokens_void_before(self, navidrome_id: str) -> int | None:
        """The time, in seconds since the epoch, before which the account's tokens are void; None for an
        account that this database does not know."""
        return await self._database.reading(
            lambda connection: _value(connection, _ACCOUNT + navidrome_id)
        )

    async def adopt(self, navidrome_id: str) -> None:
        """Record the account as the shim's own; every token issued until now is void."""
        now = int(time.time()) + 1

        def work(connection: Connection) -> None:
            _put(connection, _IN_USE, 1)
            _put(connection, _ACCOUNT + navidrome_id, now)

        await self._database.writing(work)


def _is_in_use(connection: Connection) -> bool:
    if _value(connection, _IN_USE) is not None:
        return True
    return connection.execute(select(func.count()).select_from(BINDINGS)).scalar_one() > 0


def _value(connection: Connection, name: str) -> int | None:
    found = connection.execute(select(MARKS.c.value).where(MARKS.c.name == name)).scalar()
    return None if found is None else int(found)


def _put(connection: Connection, name: str, value: int) -> None:
    connection.execute(delete(MARKS).where(MARKS.c.name == name))
    connection.execute(insert(MARKS).values(name=name, value=value))
