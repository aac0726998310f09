"""What Navidrome's API says, as values.

A user keeps the whole record as it came, since a write sets every column: what this version of the shim
does not know has to go back as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shim.navidrome.errors import Unavailable

# Shown beside the record, and no columns of it.
_NO_COLUMNS = frozenset({"libraries"})


@dataclass(frozen=True, slots=True)
class Library:
    """A music library. `default`: every new user gets it."""

    id: int
    name: str
    default: bool = False


@dataclass(frozen=True, slots=True)
class User:
    """A Navidrome account. `record` is what was read, to be written back; times are as Navidrome writes
    them. `read_at`: when Navidrome gave it, in seconds since the epoch by Navidrome's own clock; 0 where
    that is not known."""

    id: str
    user_name: str
    name: str
    email: str
    is_admin: bool
    created_at: str
    updated_at: str
    libraries: frozenset[int]
    record: Mapping[str, object] = field(repr=False, compare=False)
    read_at: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class NewUser:
    """An account to be made, under an id that is chosen by who makes it: asking again makes no second
    one."""

    id: str
    user_name: str
    name: str
    email: str
    is_admin: bool


def read_user(said: object) -> User:
    """The user in an answer. Raises `Unavailable` where it is none."""
    if not isinstance(said, dict):
        raise Unavailable("Navidrome answered with something that is no user")
    libraries = said.get("libraries") or []
    if not isinstance(libraries, list):
        raise Unavailable("Navidrome answered with a user whose libraries are no list")
    return User(
        id=_text(said, "id"),
        user_name=_text(said, "userName"),
        name=_text(said, "name"),
        email=_text(said, "email"),
        is_admin=said.get("isAdmin") is True,
        created_at=_text(said, "createdAt"),
        updated_at=_text(said, "updatedAt"),
        libraries=frozenset(read_library(each).id for each in libraries),
        record={name: value for name, value in said.items() if name not in _NO_COLUMNS},
    )


def read_library(said: object) -> Library:
    """The library in an answer. Raises `Unavailable` where it is none."""
    if not isinstance(said, dict) or type(said.get("id")) is not int:
        raise Unavailable("Navidrome answered with something that is no library")
    return Library(said["id"], _text(said, "name"), said.get("defaultNewUsers") is True)


def _text(said: Mapping[str, object], name: str) -> str:
    value = said.get(name)
    if not isinstance(value, str):
        raise Unavailable(f"Navidrome answered with a record without {name}")
    return value
