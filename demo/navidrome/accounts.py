"""The accounts of a stand-in Navidrome: a table whose writes have the real one's quirks.

Independent of HTTP and of the client. `put` is Navidrome's `userRepository.Put`: every column is
written, an unknown id is created, and no name is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from demo.navidrome.goform import ZERO_TIME, Json, json_bytes, new_id, time_text

AUTOGEN_PREFIX = "__NAVIDROME_AUTOGEN__"
"""Begins a password that the account's owner never chose, and may replace without knowing it."""

LAST_ACCESS_EVERY = 60.0
"""Seconds within which `lastAccessAt` is written once (`UpdateLastAccessFrequency`)."""


@dataclass(frozen=True, slots=True)
class Library:
    """A music library; `default_new_users` ones are given to every new regular user."""

    id: int
    name: str
    path: str = "/music"
    default_new_users: bool = True


@dataclass(frozen=True, slots=True)
class AccountFields:
    """The fields of an account in a `POST` or `PUT`. A missing one has Go's zero value."""

    id: str = ""
    user_name: str = ""
    name: str = ""
    email: str = ""
    is_admin: bool = False
    last_login_at: str | None = None
    last_access_at: str | None = None
    created_at: str = ZERO_TIME
    scrobble_filter: str = ""
    password: str = ""
    current_password: str = ""


@dataclass(slots=True)
class Account:
    """One row. The password is in clear: Subsonic's token scheme requires it."""

    id: str
    user_name: str = ""
    name: str = ""
    email: str = ""
    is_admin: bool = False
    last_login_at: str | None = None
    last_access_at: str | None = None
    created_at: str = ZERO_TIME
    updated_at: str = ZERO_TIME
    scrobble_filter: str = ""
    password: str = ""
    libraries: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Accounts:
    """All accounts, in the order of their creation. `by_id` holds each under its own id."""

    libraries: tuple[Library, ...]
    clock: Callable[[], float]
    by_id: dict[str, Account] = field(default_factory=dict)
    _touched: dict[tuple[str, str], float] = field(default_factory=dict)

    def find(self, user_name: str) -> Account | None:
        """The first account of that name, as `COLLATE NOCASE` compares: ASCII letters only."""
        lowered = ascii_lower(user_name)
        return next((a for a in self.by_id.values() if ascii_lower(a.user_name) == lowered), None)

    def put(self, fields: AccountFields) -> Account:
        """Write every column; create the account if the id is new or missing."""
        now = time_text(self.clock())
        account = self.by_id.get(fields.id) if fields.id else None
        created = account is None
        if account is None:
            account = Account(fields.id or new_id())
            self.by_id[account.id] = account
        account.user_name = fields.user_name
        account.name = fields.name
        account.email = fields.email
        account.is_admin = fields.is_admin
        account.last_login_at = fields.last_login_at
        account.last_access_at = fields.last_access_at
        account.created_at = now if created else fields.created_at
        account.updated_at = now
        account.scrobble_filter = fields.scrobble_filter
        if fields.password:
            account.password = fields.password
        if account.is_admin:
            account.libraries.update(library.id for library in self.libraries)
        elif created:
            account.libraries.update(lib.id for lib in self.libraries if lib.default_new_users)
        return account

    def delete(self, account_id: str) -> None:
        """Remove an account; a missing one is no error."""
        self.by_id.pop(account_id, None)

    def log_in(self, account: Account) -> None:
        """Record a login."""
        account.last_login_at = time_text(self.clock())

    def access(self, account: Account, api: str) -> None:
        """Record an access, at most once a minute for each account and API."""
        now = self.clock()
        last = self._touched.get((account.id, api))
        if last is None or now - last >= LAST_ACCESS_EVERY:
            self._touched[account.id, api] = now
            account.last_access_at = time_text(now)

    def libraries_for(self, account: Account) -> list[Library]:
        """An account's libraries, by id."""
        return [library for library in self.libraries if library.id in account.libraries]

    def as_json(self, account: Account) -> dict[str, Json]:
        """An account as the API shows it."""
        shown: dict[str, Json] = {
            "id": account.id,
            "userName": account.user_name,
            "name": account.name,
            "email": account.email,
            "isAdmin": account.is_admin,
            "lastLoginAt": account.last_login_at,
            "lastAccessAt": account.last_access_at,
            "createdAt": account.created_at,
            "updatedAt": account.updated_at,
            "scrobbleFilter": account.scrobble_filter,
        }
        libraries = self.libraries_for(account)
        if libraries:
            # The user query selects no statistics: they are zeros here.
            shown["libraries"] = [library_json(library) for library in libraries]
        return shown

    def snapshot(self) -> bytes:
        """Everything that the API shows of all accounts, to compare two states."""
        return json_bytes([self.as_json(account) for account in self.by_id.values()])


def ascii_lower(name: str) -> str:
    """A name as SQLite's `NOCASE` compares it: `A`-`Z` lowered, everything else unchanged."""
    return "".join(c.lower() if "A" <= c <= "Z" else c for c in name)


def library_json(
    library: Library, *, scanned_at: str = ZERO_TIME, totals: Iterable[tuple[str, Json]] = ()
) -> dict[str, Json]:
    """A library as the API shows it, with the given statistics."""
    shown: dict[str, Json] = {
        "id": library.id,
        "name": library.name,
        "path": library.path,
        "remotePath": "",
        "lastScanAt": scanned_at,
        "lastScanStartedAt": ZERO_TIME,
        "fullScanInProgress": False,
        "updatedAt": scanned_at,
        "createdAt": scanned_at,
        "totalSongs": 0,
        "totalAlbums": 0,
        "totalArtists": 0,
        "totalFolders": 0,
        "totalFiles": 0,
        "totalMissingFiles": 0,
        "totalSize": 0,
        "totalDuration": 0,
        "defaultNewUsers": False,
    }
    shown.update(totals)
    return shown
