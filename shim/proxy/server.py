"""The state that all connections of the data plane share, and the timer that enforces their deadlines.

One sweep compares all deadlines, instead of one timer for each connection: a deadline costs a request one
assignment, and fires at most `TICK` seconds late.
"""

from __future__ import annotations

import asyncio
import math
import select
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from shim.proxy.counters import Counters
from shim.proxy.device_gate import DeviceGate
from shim.proxy.edge_probe import EdgeProbe
from shim.proxy.gate import AccountGate
from shim.proxy.interfaces import HasDeadlines, KeyFetcher, Observer, PausedConnection
from shim.proxy.limits import Limits
from shim.proxy.pool import UpstreamAddress, UpstreamPool
from shim.proxy.request_body import BodyBudget
from shim.proxy.verification_queue import VerificationQueue
from shim.trust.cached_decisions import DecisionCache
from shim.trust.decision import Decision
from shim.trust.identity_evaluation import TrustResult
from shim.trust.peers import Peer
from shim.trust.policy import Policy
from shim.trust.reasons import PathClass

TICK = 0.5
# The number of connections whose accounts are checked again in one turn of the event loop.
_CHECKS_PER_TURN = 256
# The number of paused sockets that one sweep polls for a hang-up, in rotation. Without POLLRDHUP only a reset
# is detected.
_POLLED = 256
_HANG_UP_EVENTS = getattr(select, "POLLRDHUP", 0)
NEVER = math.inf
_TLS_REPORT_SECONDS = 60.0
_TLS_PEERS = 256
_IDENTITY_SECONDS = 60.0
_IDENTITIES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The values that a reload replaces together, beside the policy.

    `sign_in_url`: where pages without an identity are redirected, empty for no redirect. `sign_out_url` is
    linked on the page of a person who may sign in as another user; `support_contact` is shown to one who is
    denied. `keys` fetches the key set, None without one. `tls` is for the next handshakes, None for plain
    HTTP.
    """

    sign_in_url: str = ""
    sign_out_url: str = ""
    support_contact: str = ""
    keys: KeyFetcher | None = None
    tls: ssl.SSLContext | None = None


class DataPlane:
    """The shared state of all client connections. Complete when constructed; methods replace what may change.

    `decisions` serves the policy in force. `options` are the values that a reload replaces. `pool` connects
    to Navidrome; `control_pool` connects to the control plane, with `control_auth_headers` on each request,
    and is None before `connect_control`. `gate` is None without provisioning; then `devices` is None too. As
    of the last tick, `now` is the event loop's time in seconds, and `time` the seconds since the epoch.
    `paused` are the connections on which reading is paused, the next to be polled for a hang-up first.
    `body_budget` is for bodies that are buffered before they are sent.
    """

    __slots__ = (
        "_checking",
        "_identities_until",
        "_revocations",
        "_ticker",
        "_tls_reported",
        "body_budget",
        "connections",
        "control_auth_headers",
        "control_pool",
        "counters",
        "decisions",
        "devices",
        "edge_probe",
        "gate",
        "identities",
        "limits",
        "now",
        "observer",
        "options",
        "paused",
        "pool",
        "time",
        "untrusted_connections",
        "verification_queue",
    )

    def __init__(
        self,
        policy: Policy,
        limits: Limits,
        counters: Counters,
        observer: Observer,
        upstream: UpstreamAddress,
        *,
        gate: AccountGate | None = None,
        devices: DeviceGate | None = None,
        options: Options | None = None,
        verification_queue: VerificationQueue | None = None,
    ) -> None:
        """Create the plane. `upstream` is Navidrome's address."""
        self.decisions = DecisionCache(policy)
        self.options = Options() if options is None else options
        self.limits = limits
        self.counters = counters
        self.observer = observer
        self.gate = gate
        self.devices = devices
        self.edge_probe: EdgeProbe | None = None
        self.now = 0.0
        self.time = time.time()
        # The results whose identity was reported as used, by their `id`; each is kept, so that the number
        # belongs to it. A cached decision has the same result for all requests of an identity and a client.
        self.identities: dict[int, TrustResult] = {}
        self._identities_until = 0.0
        self.pool = UpstreamPool(self, upstream)
        self.control_pool: UpstreamPool | None = None
        self.control_auth_headers = b""
        self.connections: set[HasDeadlines] = set()
        self.paused: dict[PausedConnection, None] = {}
        self.untrusted_connections = 0
        self.verification_queue = (
            VerificationQueue() if verification_queue is None else verification_queue
        )
        self.body_budget = BodyBudget(limits.buffered_bytes)
        self._ticker: asyncio.TimerHandle | None = None
        self._tls_reported: dict[str, float] = {}  # last log time, by address
        self._revocations = self._count_revocations()
        self._checking: list[HasDeadlines] = []

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.decisions.policy

    def connect_control(
        self, address: UpstreamAddress, auth_headers: bytes, max_connections: int
    ) -> None:
        """Send requests for internal paths to the control plane at `address`. `auth_headers` are the lines
        that authenticate the shim to it, with places for the user: see `Decision.render_control_head`."""
        self.control_pool = UpstreamPool(
            self, address, report_health=False, max_connections=max_connections
        )
        self.control_auth_headers = auth_headers

    def pool_for(self, decision: Decision) -> UpstreamPool:
        """Return the pool that the request is sent over: for an internal path, that of the control plane."""
        if decision.outcome.path_class is PathClass.INTERNAL and self.control_pool is not None:
            return self.control_pool
        return self.pool

    def apply_options(self, options: Options) -> None:
        """Use these options for the next responses, fetches and handshakes."""
        self.options = options

    def apply_policy(self, policy: Policy) -> None:
        """Decide by this policy from now on. Requests in progress continue as they were decided."""
        self.decisions = DecisionCache(policy)

    def connection_opened(self, peer: Peer) -> bool:
        """Count a new connection. Return whether the peer is untrusted, which `connection_closed` needs."""
        untrusted = not self.policy.trusts(peer)
        self.counters.client_connections += 1
        self.untrusted_connections += untrusted
        return untrusted

    def connection_closed(self, *, untrusted: bool) -> None:
        """Stop counting a connection that has closed."""
        self.counters.client_connections -= 1
        self.untrusted_connections -= untrusted

    def over_limit(self, *, untrusted: bool) -> bool:
        """Return whether there are too many connections, including the newest. Untrusted peers share half of
        the limit, so that they can't exhaust the edge's connections."""
        limit = self.limits.max_connections
        if self.counters.client_connections <= limit and (
            not untrusted or self.untrusted_connections <= limit // 2
        ):
            return False
        self.counters.clients_rejected += 1
        return True

    def reports_tls(self, peer: Peer) -> bool:
        """Return whether a TLS handshake of this peer on the plain-HTTP port is logged: once a minute, and
        not at all while too many other peers had theirs."""
        reported = self._tls_reported
        while reported and next(iter(reported.values())) <= self.now - _TLS_REPORT_SECONDS:
            del reported[next(iter(reported))]
        if peer.text in reported or len(reported) >= _TLS_PEERS:
            return False
        reported[peer.text] = self.now
        return True

    def remember_identity(self, decision: Decision) -> None:
        """Add the decision's identity to `identities`, for at most a minute."""
        assert decision.trust_result is not None
        if len(self.identities) >= _IDENTITIES:
            self.identities.clear()
        self.identities[id(decision.trust_result)] = decision.trust_result

    def start_edge_probe(self, prefix: str) -> EdgeProbe:
        """Return a random path below this prefix. The shim responds to one request for it with the
        names of the headers that arrived. A new probe replaces the last one."""
        base = self.policy.paths.base
        self.edge_probe = probe = EdgeProbe.create(base, prefix, self.now)
        return probe

    def take_edge_probe(self, decision: Decision) -> bool:
        """Return whether this is the request that the probe waits for. If so, the probe ends."""
        probe = self.edge_probe
        if probe is None or not probe.matches(decision, self.now):
            return False
        self.edge_probe = None
        return True

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the timer."""
        self.now = loop.time()
        self.time = time.time()
        self._ticker = loop.call_later(TICK, self._tick, loop)

    def stop(self) -> None:
        """Stop the timer, and close the pools."""
        if self._ticker is not None:
            self._ticker.cancel()
        for pool in self._pools():
            pool.close()

    def sweep(self, now: float) -> None:
        """End everything whose deadline is before `now`."""
        self.now = now
        self.time = time.time()
        if now >= self._identities_until:
            self.identities.clear()
            self._identities_until = now + _IDENTITY_SECONDS
        for connection in list(self.connections):
            if connection.deadline < now:
                connection.expired()
            if connection.send_deadline < now:
                connection.send_timed_out()
        for pool in self._pools():
            pool.sweep(now)
        if self.edge_probe is not None and self.edge_probe.deadline < now:
            self.edge_probe = None
        if self.paused:
            self._close_disconnected()
        revocations = self._count_revocations()
        if revocations != self._revocations:
            self._revocations = revocations
            idle = not self._checking
            self._checking = list(self.connections)
            if idle:
                self._check_accounts()

    def _count_revocations(self) -> int:
        """Return how often an account or a device was revoked."""
        accounts = 0 if self.gate is None else self.gate.revocations
        return accounts + (0 if self.devices is None else self.devices.revocations)

    def _check_accounts(self) -> None:
        """Cancel requests whose accounts were revoked, some connections in each turn of the event loop."""
        batch = self._checking[-_CHECKS_PER_TURN:]
        del self._checking[-_CHECKS_PER_TURN:]
        for connection in batch:
            connection.check_account()
        if self._checking:
            asyncio.get_running_loop().call_soon(self._check_accounts)

    def _close_disconnected(self) -> None:
        """Close connections whose clients have disconnected: reading is paused on them, so only a poll
        detects it."""
        polled: dict[int, PausedConnection] = {}
        poll = select.poll()
        for connection in list(islice(self.paused, _POLLED)):
            self.paused[connection] = self.paused.pop(connection)  # is polled last
            descriptor = connection.descriptor()
            if descriptor >= 0:
                polled[descriptor] = connection
                poll.register(descriptor, _HANG_UP_EVENTS)
        for descriptor, events in poll.poll(0):
            polled[descriptor].client_disconnected(
                reset=bool(events & (select.POLLERR | select.POLLHUP))
            )

    def _pools(self) -> Iterable[UpstreamPool]:
        return (self.pool,) if self.control_pool is None else (self.pool, self.control_pool)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ticker = loop.call_later(TICK, self._tick, loop)
        self.sweep(loop.time())
