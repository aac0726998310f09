"""What every connection of the data plane shares, and the clock that ends what takes too long.

Deadlines are compared by one sweep instead of one timer for each connection: setting one costs a request
an assignment, and each is at most `TICK` seconds late.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import Iterable

from shim.proxy.counters import Counters
from shim.proxy.gate import AccountGate
from shim.proxy.interfaces import KeyFetcher, Observer, Timed
from shim.proxy.lane import Lane
from shim.proxy.limits import Limits
from shim.proxy.pool import UpstreamPool
from shim.proxy.request_body import BodyBudget
from shim.trust.addresses import Peer
from shim.trust.policy import Policy
from shim.trust.remember import RememberedDecisions

TICK = 0.5
# Connections that are checked again in one turn of the loop.
_CHECKS_PER_TURN = 256
NEVER = math.inf


class DataPlane:
    """The parts that a connection is given.

    `decisions` serves the policy in force, and is replaced by `enforce`. `gate` is None without
    provisioning. `own` is the pool that leads to the control plane, None without one, and
    `own_lines` the header lines that only a request through it carries. `keys` is None where no key set
    is fetched; in the `lane` tokens wait for being looked at. `tls` is for handshakes to come, None where
    the listener speaks plain HTTP. As of the last tick, `now` is the loop's time in seconds, and `time` that
    since the epoch. `strangers` are the open connections of peers that were not on the list. `sign_in` is the
    address that pages without an identity are sent to, empty for none; `contact` is whom a person is told to
    ask who may not in. `body_budget` is for bodies that are read before they are sent on.
    """

    __slots__ = (
        "_checking",
        "_revocations",
        "_ticker",
        "body_budget",
        "contact",
        "counters",
        "decisions",
        "gate",
        "keys",
        "lane",
        "limits",
        "now",
        "observer",
        "own",
        "own_lines",
        "pool",
        "sign_in",
        "strangers",
        "time",
        "timed",
        "tls",
    )

    def __init__(
        self,
        policy: Policy,
        limits: Limits,
        counters: Counters,
        observer: Observer,
        gate: AccountGate | None = None,
    ) -> None:
        self.decisions = RememberedDecisions(policy)
        self.limits = limits
        self.counters = counters
        self.observer = observer
        self.gate = gate
        self.pool: UpstreamPool
        self.own: UpstreamPool | None = None
        self.own_lines = b""
        self.timed: set[Timed] = set()
        self.strangers = 0
        self.keys: KeyFetcher | None = None
        self.lane = Lane()
        self.tls: ssl.SSLContext | None = None
        self.sign_in = ""
        self.contact = ""
        self.now = 0.0
        self.time = time.time()
        self.body_budget = BodyBudget(limits.buffered_bytes)
        self._ticker: asyncio.TimerHandle | None = None
        self._revocations = 0 if gate is None else gate.revocations
        self._checking: list[Timed] = []

    def enforce(self, policy: Policy) -> None:
        """Judge from now on by this policy. Requests under way go on as they were decided."""
        self.decisions = RememberedDecisions(policy)

    def enter(self, peer: Peer) -> bool:
        """Somebody has connected: count them. Whether they are a stranger, which `leave` has to be told."""
        stranger = not self.decisions.policy.lists(peer)
        self.counters.client_connections += 1
        self.strangers += stranger
        return stranger

    def leave(self, *, stranger: bool) -> None:
        """They have gone."""
        self.counters.client_connections -= 1
        self.strangers -= stranger

    def crowded(self, *, stranger: bool) -> bool:
        """Whether there are too many, with one who has just entered. Peers that are not on the list share
        half of the room, so that they can't leave the edge without any."""
        most = self.limits.max_connections
        if self.counters.client_connections <= most and (
            not stranger or self.strangers <= most // 2
        ):
            return False
        self.counters.clients_refused += 1
        return True

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the clock."""
        self.now = loop.time()
        self.time = time.time()
        self._ticker = loop.call_later(TICK, self._tick, loop)

    def stop(self) -> None:
        """Stop the clock, and close what the pools hold."""
        if self._ticker is not None:
            self._ticker.cancel()
        for pool in self._pools():
            pool.close()

    def sweep(self, now: float) -> None:
        """End what is overdue at `now`."""
        self.now = now
        self.time = time.time()
        for connection in list(self.timed):
            if connection.deadline < now:
                connection.expired()
            if connection.stall_deadline < now:
                connection.stalled()
        for pool in self._pools():
            pool.sweep(now)
        gate = self.gate
        if gate is not None and gate.revocations != self._revocations:
            self._revocations = gate.revocations
            idle = not self._checking
            self._checking = list(self.timed)
            if idle:
                self._check_accounts()

    def _check_accounts(self) -> None:
        """End what is under way for accounts that were revoked, some connections in each turn."""
        batch = self._checking[-_CHECKS_PER_TURN:]
        del self._checking[-_CHECKS_PER_TURN:]
        for connection in batch:
            connection.check_account()
        if self._checking:
            asyncio.get_running_loop().call_soon(self._check_accounts)

    def _pools(self) -> Iterable[UpstreamPool]:
        return (self.pool,) if self.own is None else (self.pool, self.own)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ticker = loop.call_later(TICK, self._tick, loop)
        self.sweep(loop.time())
