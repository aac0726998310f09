"""The counters of the data plane: plain integers, so that counting costs one addition.

The metrics page reads them; only the data plane writes them.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from shim.proxy.failures import Failure
from shim.trust.reasons import OUTCOMES

# Upper bounds, in seconds, of the buckets of `Counters.latency`. A cached decision takes some 20 µs; the
# account of a new user takes some calls of Navidrome's API.
LATENCY_BOUNDS: Final = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
FASTEST: Final = LATENCY_BOUNDS[0]


class Counters:
    """Totals since the start, and current gauges.

    `requests` has one total per `shim.trust.reasons.OUTCOMES` row, by `Outcome.index`. `failures` has one
    total per `Failure`.

    `latency` has the number of requests by the shim's own share of their time: one entry per bucket of
    `LATENCY_BOUNDS`, and one for all above. `latency_seconds` is the sum of these times.
    """

    __slots__ = (
        "client_connections",
        "clients_rejected",
        "failures",
        "latency",
        "latency_seconds",
        "requests",
        "retries",
        "streams_open",
        "tunnels_open",
        "upstream_connections",
        "upstream_idle",
        "upstream_waiting",
    )

    def __init__(self) -> None:
        self.requests: list[int] = [0] * len(OUTCOMES)
        self.failures: dict[Failure, int] = dict.fromkeys(Failure, 0)
        self.latency: list[int] = [0] * (len(LATENCY_BOUNDS) + 1)
        self.latency_seconds = 0.0
        self.client_connections = 0
        self.clients_rejected = 0
        self.streams_open = 0
        self.tunnels_open = 0
        self.upstream_connections = 0
        self.upstream_idle = 0
        self.upstream_waiting = 0
        self.retries = 0

    def failed(self, failure: Failure) -> None:
        """Count one request that got no complete response from Navidrome."""
        self.failures[failure] += 1

    def observe_latency(self, seconds: float) -> None:
        """Count one request that the shim kept for `seconds`."""
        self.latency_seconds += seconds
        self.latency[bisect_left(LATENCY_BOUNDS, seconds)] += 1
