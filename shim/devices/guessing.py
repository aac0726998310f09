"""Limit how often wrong credentials of Subsonic apps may be tried.

Pure but for the state that it keeps: times are passed in, in seconds of any monotonic clock. Failures are
counted for an account and a client together, and for a client alone. After too many, one request at a time is
let through after a pause that doubles with each failure. Before that, requests that are checked at once are
limited too, since each of them may be a failure. A client that once succeeded for an account is not
limited for it. Everything is bounded: the entry that was used longest ago is dropped first.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address

WINDOW_SECONDS = 300.0
ACCOUNT_FAILURES = 10
CLIENT_FAILURES = 30
LONGEST_PAUSE_SECONDS = 60.0
EXEMPT_SECONDS = 30 * 86400.0
# A success that is younger than this is not noted again.
_NOTED_SECONDS = 3600.0
_MAX_ENTRIES = 8192
_MAX_SUCCESSES = 16384
_MAX_ACCOUNT_BYTES = 64
# Requests that are checked at once while none has failed lately: an app with the right password sends many.
MAX_AT_ONCE = 32


class _Failures:
    """The failures of one key: their times, the end of the pause, and whether a request is checked now."""

    __slots__ = ("level", "limit", "pause_until", "probing", "times")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.times = array("d")
        self.level = 0
        self.pause_until = 0.0
        self.probing = False

    def exceeded(self, now: float) -> bool:
        """Return whether there were too many failures in the last minutes."""
        times = self.times
        while times and times[0] <= now - WINDOW_SECONDS:
            del times[0]
        if not times:
            self.level = 0
        return len(times) >= self.limit or now < self.pause_until

    def remaining(self) -> int:
        """Return how many more failures are allowed, at least 1."""
        return max(1, self.limit - len(self.times)) if self.times else MAX_AT_ONCE

    def add(self, now: float) -> None:
        """Count a failure; from the limit on, each one doubles the pause."""
        self.times.append(now)
        if len(self.times) > self.limit:
            del self.times[0]
        if self.exceeded(now):
            self.pause_until = now + min(LONGEST_PAUSE_SECONDS, 2.0**self.level)
            self.level = min(self.level + 1, 6)


@dataclass(slots=True)
class Guess:
    """One request whose credentials are checked by somebody else. `keys`: what it counts for meanwhile."""

    account: bytes
    client: bytes
    probes: tuple[_Failures, ...]
    keys: tuple[tuple[bytes, bytes], ...] = ()


class GuessLimiter:
    """The failures and successes of all clients."""

    def __init__(self) -> None:
        self._failures: OrderedDict[tuple[bytes, bytes], _Failures] = OrderedDict()
        self._successes: OrderedDict[tuple[bytes, bytes], float] = OrderedDict()
        self._running: Counter[tuple[bytes, bytes]] = Counter()

    def begin(self, account: bytes, client: bytes, now: float) -> Guess | None:
        """Return the guess if the request may be checked, None if it is refused."""
        if self._is_exempt(account, client, now):
            return Guess(account, client, ())
        exceeded, keys, running = [], ((account, client), (b"", client)), self._running
        for key in keys:
            failures = self._failures.get(key)
            if failures is None or not failures.exceeded(now):
                if running[key] >= (MAX_AT_ONCE if failures is None else failures.remaining()):
                    return None
                continue
            if now < failures.pause_until or failures.probing:
                return None
            exceeded.append(failures)
        for failures in exceeded:
            failures.probing = True
        for key in keys:
            running[key] += 1
        return Guess(account, client, tuple(exceeded), keys)

    def may_try(self, client: bytes, now: float) -> bool:
        """Return whether credentials that name no account may be checked for this client."""
        failures = self._failures.get((b"", client))
        return failures is None or not failures.exceeded(now) or now >= failures.pause_until

    def is_fresh(self, account: bytes, client: bytes, now: float) -> bool:
        """Return whether this client succeeded for this account a short time ago, so that another success
        need not be recorded."""
        succeeded_at = self._successes.get((account, client))
        return succeeded_at is not None and now - succeeded_at < _NOTED_SECONDS

    def failed(self, account: bytes, client: bytes, now: float) -> None:
        """Count a failure. `account` is empty for credentials that name none."""
        self._add((b"", client), CLIENT_FAILURES, now)
        if account:
            self._add((account, client), ACCOUNT_FAILURES, now)

    def succeeded(self, account: bytes, client: bytes, now: float) -> None:
        """Note a success: from now on the client is not limited for this account."""
        key = (account, client)
        self._successes[key] = now
        self._successes.move_to_end(key)
        self._failures.pop(key, None)
        if len(self._successes) > _MAX_SUCCESSES:
            self._successes.popitem(last=False)

    def end(self, guess: Guess) -> None:
        """End a guess, whatever its result was."""
        for failures in guess.probes:
            failures.probing = False
        for key in guess.keys:
            self._running[key] -= 1
            if not self._running[key]:
                del self._running[key]

    def __len__(self) -> int:
        return len(self._failures) + len(self._successes) + len(self._running)

    def _is_exempt(self, account: bytes, client: bytes, now: float) -> bool:
        succeeded_at = self._successes.get((account, client))
        return succeeded_at is not None and now - succeeded_at < EXEMPT_SECONDS

    def _add(self, key: tuple[bytes, bytes], limit: int, now: float) -> None:
        # An exempt client is never limited for the account, but its failures count for the client alone.
        failures = self._failures.get(key)
        if failures is None:
            failures = self._failures[key] = _Failures(limit)
            if len(self._failures) > _MAX_ENTRIES:
                self._failures.popitem(last=False)
        else:
            self._failures.move_to_end(key)
        failures.add(now)


def account_key(name: bytes) -> bytes:
    """Return the key of an account that an app names, of bounded length: Navidrome ignores ASCII case."""
    return name.lower()[:_MAX_ACCOUNT_BYTES]


@lru_cache(maxsize=1024)
def client_key(client: bytes | None) -> bytes:
    """Return the key of a client: its address, or of IPv6 the first 64 bits, since one client has all
    addresses of such a network."""
    if client is None:
        return b""
    try:
        return ip_address(client.decode("ascii").partition("%")[0]).packed[:8]
    except ValueError:
        return client[:64]
