"""Read the user list in pages. Pure: it chooses the next page and takes the response.

The list is sorted by id. Each page begins with the last user of the page before. If another user is there,
users were deleted (rows moved towards the beginning, and one may be missing) or created (rows moved towards
the end, and some come twice, which is harmless).
"""

from __future__ import annotations

from shim.navidrome.errors import Unavailable
from shim.navidrome.models import User, read_user

PAGE_USERS = 100


class UserPages:
    """One pass over the list.

    `unreadable` counts the records that are too large. `fault` is the reason why the list is incomplete, None
    if it is complete.
    """

    def __init__(self) -> None:
        self.unreadable = 0
        self.fault: str | None = None
        self._users: dict[str, User] = {}
        self._last: str | None = None  # the id of the user before `_next`, if it was read
        self._next = 0
        self._size = PAGE_USERS
        self._min_total: int | None = None
        self._done = False

    @property
    def users(self) -> tuple[User, ...]:
        """Return the users that were read, by id."""
        return tuple(self._users.values())

    def next_range(self) -> tuple[int, int] | None:
        """Return `_start` and `_end` of the next page, or None after the last one."""
        if self._done or self.fault is not None:
            return None
        overlap = 0 if self._last is None else 1
        return self._next - overlap, self._next + self._size

    def too_large(self) -> None:
        """Report that the page was too large: the next page is half of it, or skips the record."""
        if self._size > 1:
            self._size //= 2
        elif self._last is not None:
            self._last = None
        else:
            self.unreadable += 1
            self._next += 1

    def read(self, page: object, total: int | None) -> None:
        """Take a page and the total number of users. Raises `Unavailable` if it is not a list of users."""
        rows = [] if page is None else page
        if not isinstance(rows, list):
            raise Unavailable("GET /api/user: the response is not a list")
        users = [read_user(each) for each in rows]
        overlaps, is_full = self._last is not None, len(users) >= self._size
        if overlaps:
            if not users or users[0].id not in self._users:
                self.fault = "users were deleted while the list was read"
                return
            users = users[1:]
            is_full = len(users) >= self._size
        self._users.update((user.id, user) for user in users)
        self._next += len(users)
        self._last = users[-1].id if users else None
        self._size = min(PAGE_USERS, 2 * self._size)
        if total is not None:
            min_total = self._min_total
            self._min_total = total if min_total is None else min(min_total, total)
        self._done = not users or (not is_full if total is None else self._next >= total)
        if self._done:
            self._check()

    def _check(self) -> None:
        found, min_total = len(self._users) + self.unreadable, self._min_total
        if min_total is not None and found < min_total:
            self.fault = f"got {found} of {min_total} users"
