"""Navidrome's users as they were listed last, with what was written since: to look names up without asking.

A picture, not the truth: what depends on it is asked again before it is done.
"""

from __future__ import annotations

from collections.abc import Iterable

from shim.navidrome.models import Library, User
from shim.trust.names import fold_name


class Directory:
    """Users by id and by folded name, and the libraries, empty until they are asked for."""

    def __init__(self) -> None:
        self._users: dict[str, User] = {}
        self._by_name: dict[str, User] = {}
        self.libraries: tuple[Library, ...] = ()

    def replace(self, users: Iterable[User]) -> None:
        """Take a new list."""
        self._users = {user.id: user for user in users}
        self._by_name = {}
        for user in self._users.values():
            # Of two that differ in case alone, Navidrome finds the first.
            self._by_name.setdefault(fold_name(user.user_name), user)

    def put(self, user: User) -> None:
        """Take over one user, as just read or written."""
        self.drop(user.id)
        self._users[user.id] = user
        self._by_name.setdefault(fold_name(user.user_name), user)

    def drop(self, user_id: str) -> None:
        """Take one out."""
        old = self._users.pop(user_id, None)
        if old is not None and self._by_name.get(fold_name(old.user_name)) is old:
            del self._by_name[fold_name(old.user_name)]

    def of_id(self, user_id: str) -> User | None:
        """The user with this id."""
        return self._users.get(user_id)

    def of_name(self, user_name: str) -> User | None:
        """The user whom Navidrome takes this name for."""
        return self._by_name.get(fold_name(user_name))

    def all(self) -> tuple[User, ...]:
        """Every user."""
        return tuple(self._users.values())
