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


@dataclass(frozen=True, slots=True)
class ExternalAuthentication:
    """Navidrome's settings for external authentication.

    `user_header` is `ExtAuth.UserHeader`, `trusted_sources` is `ExtAuth.TrustedSources` as it is written
    there. `read_by_header`: the configuration was read with the user header alone, so Navidrome obeys it.
    """

    user_header: str
    trusted_sources: str
    read_by_header: bool


def read_external_authentication(
    configuration: object, *, read_by_header: bool
) -> ExternalAuthentication:
    """Return the part of `GET /api/config/config` that concerns external authentication. Raises
    `Unavailable` if there is none."""
    found = configuration.get("config") if isinstance(configuration, dict) else None
    settings = found.get("ExtAuth") if isinstance(found, dict) else None
    if not isinstance(settings, dict):
        raise Unavailable("GET /api/config/config: the configuration has no ExtAuth")
    return ExternalAuthentication(
        _text(settings, "UserHeader"), _text(settings, "TrustedSources"), read_by_header
    )


def read_user(data: object) -> User:
    """The user in a response. Raises `Unavailable` where it is none."""
    if not isinstance(data, dict):
        raise Unavailable("Navidrome answered with something that is no user")
    libraries = data.get("libraries") or []
    if not isinstance(libraries, list):
        raise Unavailable("Navidrome answered with a user whose libraries are no list")
    return User(
        id=_text(data, "id"),
        user_name=_text(data, "userName"),
        name=_text(data, "name"),
        email=_text(data, "email"),
        is_admin=data.get("isAdmin") is True,
        created_at=_text(data, "createdAt"),
        updated_at=_text(data, "updatedAt"),
        libraries=frozenset(read_library(each).id for each in libraries),
        record={name: value for name, value in data.items() if name not in _NO_COLUMNS},
    )


def read_library(data: object) -> Library:
    """The library in a response. Raises `Unavailable` where it is none."""
    if not isinstance(data, dict) or type(data.get("id")) is not int:
        raise Unavailable("Navidrome answered with something that is no library")
    return Library(data["id"], _text(data, "name"), data.get("defaultNewUsers") is True)


def _text(data: Mapping[str, object], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        raise Unavailable(f"Navidrome answered with a record without {name}")
    return value
