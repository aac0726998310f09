"""The counters of the data plane: plain integers, so that counting costs one addition.

The metrics page reads them; only the data plane writes them.
"""

from __future__ import annotations

from shim.proxy.failures import Failure
from shim.trust.reasons import OUTCOMES


class Counters:
    """Totals since the start, and current gauges.

    `requests` has one total per `shim.trust.reasons.OUTCOMES` row, by `Outcome.index`. `failures` has one
    total per `Failure`.
    """

    __slots__ = (
        "client_connections",
        "clients_rejected",
        "failures",
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
