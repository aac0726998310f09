"""Find the accounts that an empty password opens.

Each test is a failed login in Navidrome's log. So an account is tested once, and again only after it was
changed (`updatedAt`, which every write sets); the results are kept in the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, delete, insert, select

from shim.navidrome.api import Navidrome
from shim.navidrome.models import User
from shim.store.database import Database
from shim.store.schema import PASSWORD_TESTS


@dataclass(frozen=True, slots=True)
class PasswordTest:
    """What was found: whether an empty password opened the account as it was at `updated_at`."""

    updated_at: str
    empty: bool


class EmptyPasswords:
    """Tests accounts, and remembers the results in `database`; None remembers them in memory alone."""

    def __init__(self, api: Navidrome, database: Database | None) -> None:
        self._api = api
        self._database = database
        self._tests: dict[str, PasswordTest] = {}

    async def find(self, users: Iterable[User]) -> tuple[str, ...]:
        """Return the names of these accounts that an empty password opens, sorted. Raises what the API
        and the store raise."""
        there = {user.id: user for user in users if user.user_name}
        if self._database is not None and any(self._is_due(user) for user in there.values()):
            # Another process may have tested them.
            self._tests = await self._database.read_async(_stored)
        await self._test([user for user in there.values() if self._is_due(user)], there)
        return tuple(
            sorted(user.user_name for user in there.values() if self._tests[user.id].empty)
        )

    def _is_due(self, user: User) -> bool:
        test = self._tests.get(user.id)
        return test is None or test.updated_at != user.updated_at

    async def _test(self, due: list[User], there: Mapping[str, User]) -> None:
        found: dict[str, PasswordTest] = {}
        try:
            for user in due:
                empty = await self._api.opens_without_password(user.user_name)
                found[user.id] = PasswordTest(user.updated_at, empty)
        finally:
            # What was tested before a failure is not tested again.
            gone = self._tests.keys() - there.keys()
            self._tests.update(found)
            for navidrome_id in gone:
                del self._tests[navidrome_id]
            if self._database is not None and (found or gone):
                await self._database.write_async(lambda connection: _store(connection, found, gone))


def _stored(connection: Connection) -> dict[str, PasswordTest]:
    return {
        row.navidrome_id: PasswordTest(row.updated_at, row.empty)
        for row in connection.execute(select(PASSWORD_TESTS))
    }


def _store(connection: Connection, found: Mapping[str, PasswordTest], gone: Iterable[str]) -> None:
    previous = [{"old": navidrome_id} for navidrome_id in (*found, *gone)]
    connection.execute(
        delete(PASSWORD_TESTS).where(PASSWORD_TESTS.c.navidrome_id == bindparam("old")), previous
    )
    new = [
        {"navidrome_id": navidrome_id, "updated_at": test.updated_at, "empty": test.empty}
        for navidrome_id, test in found.items()
    ]
    if new:
        connection.execute(insert(PASSWORD_TESTS), new)
