"""Sessions of the control plane's own listener: a browser signs in once with the control token.

A session is a cookie `EXPIRY.ID.SIGNATURE`. The signature covers the control token, so a new token ends every
session. Signing out ends the session in this process; a copy of its cookie stays valid for another process
until it expires.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from shim.control.keys import ControlKey

SESSION_COOKIE = "shim_session"
SESSION_SECONDS = 12 * 3600

SIGN_IN_TRIES = 5
SIGN_IN_SECONDS = 60.0
# The addresses whose wrong tokens are remembered.
_ADDRESSES = 2048
# Ended sessions that are remembered until they would have expired.
_ENDED = 10_000


class Sessions:
    """The sessions that were made with `token`; None: there are no sessions. `now` returns seconds since the
    epoch."""

    def __init__(
        self, key: ControlKey, token: str | None, now: Callable[[], float] = time.time
    ) -> None:
        self._key = key
        self._token = token
        self._token_digest = b"" if token is None else _digest(token)
        self._now = now
        self._ended: OrderedDict[str, float] = OrderedDict()

    def is_token(self, token: str) -> bool:
        """Return whether this is the control token. The time shows nothing of it, not even its length."""
        return self._token is not None and hmac.compare_digest(_digest(token), self._token_digest)

    def create(self) -> str:
        """Return the cookie's value of a new session."""
        assert self._token is not None
        expiry, session = str(int(self._now()) + SESSION_SECONDS), secrets.token_hex(16)
        return f"{expiry}.{session}.{self._key.sign('session', self._token, expiry, session)}"

    def find(self, cookie: str) -> str | None:
        """Return the id of the session in this cookie, None if there is none or it has ended."""
        expiry, session, signature = (*cookie.split("."), "", "", "")[:3]
        if self._token is None or not self._key.verify(
            signature, "session", self._token, expiry, session
        ):
            return None
        return session if int(expiry) > self._now() and session not in self._ended else None

    def end(self, session: str) -> None:
        """End the session with this id."""
        now = self._now()
        self._ended[session] = now + SESSION_SECONDS
        while self._ended and (
            len(self._ended) > _ENDED or next(iter(self._ended.values())) <= now
        ):
            self._ended.popitem(last=False)


class TokenLimit:
    """Limits wrong tokens: `SIGN_IN_TRIES` different ones in `SIGN_IN_SECONDS` for each client address, or
    for each /64 network of IPv6. `clock` returns monotonic seconds.

    The same wrong token again is no further guess, so a program with an old token does not keep others at its
    address out. No address is limited by the tries of another one. At most `max_addresses` are remembered; a
    new one replaces the one whose last try was the longest ago.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, max_addresses: int = _ADDRESSES
    ) -> None:
        self._clock = clock
        self._max_addresses = max_addresses
        self._digest_key = secrets.token_bytes(16)
        # The tries of an address: digests of the tokens, with the time of the first try.
        self._failures: OrderedDict[str, dict[bytes, float]] = OrderedDict()

    def wait_seconds(self, client: str) -> float:
        """Return after how many seconds this client may try again, 0 if it may now."""
        failures = self._current(_network(client))
        if len(failures) < SIGN_IN_TRIES:
            return 0.0
        return max(0.0, min(failures.values()) + SIGN_IN_SECONDS - self._clock())

    def failed(self, client: str, token: str) -> None:
        """Count a wrong token."""
        network = _network(client)
        failures = self._current(network)
        digest = hashlib.blake2b(
            token.encode("utf-8", "surrogateescape"), digest_size=16, key=self._digest_key
        ).digest()
        if len(failures) < SIGN_IN_TRIES:
            failures.setdefault(digest, self._clock())
        self._failures[network] = failures
        self._failures.move_to_end(network)
        while len(self._failures) > self._max_addresses:
            self._failures.popitem(last=False)

    def _current(self, network: str) -> dict[bytes, float]:
        """Return the tries of this network that still count."""
        oldest = self._clock() - SIGN_IN_SECONDS
        failures = self._failures.get(network, {})
        return {digest: first for digest, first in failures.items() if first > oldest}


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _network(client: str) -> str:
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client
    if address.version == 4:
        return str(address)
    mapped = address.ipv4_mapped
    return str(mapped or ipaddress.ip_network((address, 64), strict=False))
