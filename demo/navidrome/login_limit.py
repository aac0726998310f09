"""The login limit, and the address it is counted by: the one the client claims.

chi's `middleware.RealIP` trusts these headers from any peer, which is the weakness that a proxy in
front of Navidrome has to close. The counting is go-chi/httprate's sliding window.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field

from demo.navidrome.request import Request


def claimed_address(request: Request) -> str:
    """`True-Client-IP`, else `X-Real-IP`, else the first of `X-Forwarded-For`, else the peer's."""
    claimed = (
        request.header("True-Client-IP")
        or request.header("X-Real-IP")
        or request.header("X-Forwarded-For").partition(",")[0]
    )
    try:
        return str(ipaddress.ip_address(claimed))
    except ValueError:
        return request.peer


@dataclass(frozen=True, slots=True)
class LoginVerdict:
    """Whether a login is allowed, and the response's headers of the limit."""

    allowed: bool
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class LoginLimit:
    """At most `limit` logins within `window` seconds for each address; 0 is no limit."""

    limit: int
    window: float
    clock: Callable[[], float]
    _counts: dict[tuple[str, int], int] = field(default_factory=dict)

    def count(self, address: str) -> LoginVerdict:
        """Count one login from an address, unless it exceeds the limit."""
        if self.limit <= 0:
            return LoginVerdict(allowed=True)
        key = _counter_key(address)
        now = self.clock()
        current = int(now // self.window)
        weight = 1 - (now % self.window) / self.window
        # Go rounds half away from zero; the rate is not negative.
        before = self._counts.get((key, current - 1), 0) * weight
        rate = int(before + self._counts.get((key, current), 0) + 0.5)
        allowed = rate + 1 <= self.limit
        headers = (
            ("X-RateLimit-Limit", str(self.limit)),
            ("X-RateLimit-Reset", str(int((current + 1) * self.window))),
            ("X-RateLimit-Remaining", str(self.limit - rate - allowed)),
        )
        if not allowed:
            return LoginVerdict(allowed, (*headers, ("Retry-After", str(int(self.window)))))
        self._counts = {k: n for k, n in self._counts.items() if k[1] >= current - 1}
        self._counts[key, current] = self._counts.get((key, current), 0) + 1
        return LoginVerdict(allowed, headers)


def _counter_key(address: str) -> str:
    # httprate counts an IPv6 client by its /64.
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.ip_network((parsed, 64), strict=False).network_address)
