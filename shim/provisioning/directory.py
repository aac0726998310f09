"""Cache Navidrome's users, and lock the people and names that are worked on.

`Directory`: the users as of the last list, with later writes, for look-ups without I/O. It may be stale:
before a write that depends on it, the user is read again. It is `current` until a request was sent that can
change users, and again once they were listed after that. `KeyLocks`: one lock for each person and each name.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

from shim.navidrome.models import Library, User
from shim.trust.names import normalize_name


class Directory:
    """Users by id and by folded name, and the libraries; empty until they are read."""

    def __init__(self) -> None:
        self._reading = asyncio.Lock()
        self._users: dict[str, User] = {}
        self._by_name: dict[str, User] = {}
        # How many users have a name that is equal without ASCII case.
        self._name_counts: Counter[str] = Counter()
        # Rises whenever a name may belong to another user.
        self.version = 0
        self._libraries: tuple[Library, ...] = ()
        # The number of requests sent that can change users, and how many of them the last list includes.
        self.changes = 0
        self._listed_changes = 0
        # Set for a moment whenever a list was read or could not be read; `unread`: the last one could not.
        self._attempted = asyncio.Event()
        self.unread = False
        # The writes during the reading of a list, by id; None: that user was removed.
        self._written: dict[str, User | None] | None = None

    @property
    def current(self) -> bool:
        """Return whether no request can have changed users since they were listed."""
        return self.changes == self._listed_changes

    def includes(self, changes: int) -> bool:
        """Return whether the users were listed after that many requests that can change them."""
        return self._listed_changes >= changes

    async def next_attempt(self, seconds: float) -> None:
        """Wait until a list was read or failed, at most this many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._attempted.wait()

    @property
    def libraries(self) -> tuple[Library, ...]:
        """Return the libraries as of the last `read_libraries`, empty before it."""
        return self._libraries

    async def read_libraries(
        self, libraries: Callable[[], Awaitable[tuple[Library, ...]]]
    ) -> tuple[Library, ...]:
        """Return the libraries; list them by `libraries` if none is known. Raises what `libraries` raises."""
        if not self._libraries:
            self._libraries = await libraries()
        return self._libraries

    def forget_libraries(self) -> None:
        """Forget the libraries: they may have changed."""
        self._libraries = ()

    def users_may_have_changed(self) -> None:
        """Record that a request was sent that can change users."""
        self.changes += 1

    async def read(self, users: Callable[[], Awaitable[tuple[User, ...]]]) -> tuple[User, ...]:
        """List Navidrome's users by `users` and store them; users that are written meanwhile are kept. Return
        the list. Raises what `users` raises."""
        async with self._reading:
            changes, self._written = self.changes, {}
            try:
                listed = await users()
                self.replace(listed)
                self._listed_changes = changes
                self.unread = False
                written, self._written = self._written, None
            except BaseException:
                self.unread = True
                raise
            finally:
                self._written = None
                self._attempted.set()
                self._attempted.clear()
            for user_id, user in written.items():
                if user is None:
                    self.drop(user_id)
                else:
                    self.put(user)
        return listed

    def replace(self, users: Iterable[User]) -> None:
        """Replace the list."""
        self._users = {user.id: user for user in users}
        self._by_name = {}
        self._name_counts = Counter()
        self.version += 1
        for user in self._users.values():
            # If two names differ in case alone, Navidrome finds the first.
            self._by_name.setdefault(normalize_name(user.user_name), user)
            self._name_counts[normalize_name(user.user_name)] += 1

    def put(self, user: User) -> None:
        """Store one user, as just read or written."""
        version, previous = self.version, self._users.get(user.id)
        self.drop(user.id)
        self._note(user.id, user)
        self._users[user.id] = user
        self._by_name.setdefault(normalize_name(user.user_name), user)
        self._name_counts[normalize_name(user.user_name)] += 1
        renamed = previous is None or previous.user_name != user.user_name
        self.version = version + renamed

    def drop(self, user_id: str) -> None:
        """Remove one user."""
        self._note(user_id, None)
        previous = self._users.pop(user_id, None)
        if previous is None:
            return
        name = normalize_name(previous.user_name)
        self.version += 1
        self._name_counts[name] -= 1
        if self._by_name.get(name) is previous:
            del self._by_name[name]

    def _note(self, user_id: str, user: User | None) -> None:
        if self._written is not None:
            self._written[user_id] = user

    def by_id(self, user_id: str) -> User | None:
        """Return the user with this id."""
        return self._users.get(user_id)

    def by_name(self, user_name: str) -> User | None:
        """Return the user that Navidrome finds by this name."""
        return self._by_name.get(normalize_name(user_name))

    def find(self, user_name: str) -> User | None:
        """Return the user with exactly this name, or else the only one whose name is equal without ASCII
        case."""
        name = normalize_name(user_name)
        first = self._by_name.get(name)
        if first is None or first.user_name == user_name or self._name_counts[name] == 1:
            return first
        return next((each for each in self._users.values() if each.user_name == user_name), None)

    @property
    def is_empty(self) -> bool:
        """Return whether no user is known, for example because Navidrome was not reached yet."""
        return not self._users

    def all(self) -> tuple[User, ...]:
        """Return every user."""
        return tuple(self._users.values())


class KeyLocks:
    """One lock for each key that is held or awaited."""

    __slots__ = ("_locks",)

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, list[None]]] = {}

    @asynccontextmanager
    async def held(self, *keys: str) -> AsyncIterator[None]:
        """Hold all of the keys. They are always acquired in the same order, so that no deadlock can occur."""
        async with AsyncExitStack() as stack:
            for key in sorted(set(keys)):
                await stack.enter_async_context(self._held(key))
            yield

    def __len__(self) -> int:
        return len(self._locks)

    @asynccontextmanager
    async def _held(self, key: str) -> AsyncIterator[None]:
        lock, users = self._locks.setdefault(key, (asyncio.Lock(), []))
        users.append(None)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                del self._locks[key]
