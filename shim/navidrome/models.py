"""The objects of Navidrome's API, as values.

A user keeps the complete record, because a write sets every column: columns that this version of the shim
does not know must be written back unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shim.navidrome.errors import Unavailable

# In the response, but not columns of the record.
_NO_COLUMNS = frozenset({"libraries"})


@dataclass(frozen=True, slots=True)
class Library:
    """A music library. `default`: every new user gets it."""

    id: int
    name: str
    default: bool = False


@dataclass(frozen=True, slots=True)
class User:
    """A Navidrome account. `record` is the record as read, to write back. Times are in Navidrome's format.
    `read_at` is the time of the response in seconds since the epoch, by Navidrome's clock; 0 if not known."""

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
    """An account to create. The caller chooses the id, so that a repeated call creates no second account."""

    id: str
    user_name: str
    name: str
    email: str
    is_admin: bool


@dataclass(frozen=True, slots=True)
class ExternalAuthentication:
    """Navidrome's settings for external authentication.

    `user_header` is `ExtAuth.UserHeader`, `trusted_sources` is the text of `ExtAuth.TrustedSources`.
    `read_by_header`: the configuration was read with the user header alone, so Navidrome obeys it.
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
    """Return the user in a response. Raises `Unavailable` if there is none."""
    if not isinstance(data, dict):
        raise Unavailable("the response from Navidrome is not a user")
    libraries = data.get("libraries") or []
    if not isinstance(libraries, list):
        raise Unavailable("the libraries of a user in Navidrome's response are not a list")
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
    """Return the library in a response. Raises `Unavailable` if there is none."""
    if not isinstance(data, dict) or type(data.get("id")) is not int:
        raise Unavailable("the response from Navidrome is not a library")
    return Library(data["id"], _text(data, "name"), data.get("defaultNewUsers") is True)


def _text(data: Mapping[str, object], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        raise Unavailable(f"a record in Navidrome's response has no {name}")
    return value
