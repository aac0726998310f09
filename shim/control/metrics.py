"""What Prometheus reads: the data plane's counters, named and labelled.

Nothing is counted here. The figures are read when somebody asks, so that they cost nobody else anything.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shim.proxy.counters import Counters
from shim.proxy.failures import CLIENT_FAILURES
from shim.trust.reasons import OUTCOMES


def build_registry(
    counters: Counters, *, version: str, events_dropped: Callable[[], Mapping[str, int]] = dict
) -> CollectorRegistry:
    """A registry with all metrics of this process; other parts may register theirs beside them.

    `events_dropped`: by the name of each sink of the audit trail, the events that it did not get.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ProxyCollector(counters))
    registry.register(BuildCollector(version))
    registry.register(TrailCollector(events_dropped))
    ProcessCollector(registry=registry)
    return registry


class ProxyCollector(Collector):
    """Reads `Counters`. Every outcome and every failure has its row, also one of zero: a row
    that first appears with its first request is no increase to Prometheus, and an alert on it would not
    fire."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        counters = self._counters
        requests = CounterMetricFamily(
            "shim_requests",
            "Requests by what was decided.",
            labels=("verdict", "reason", "path_class"),
        )
        for outcome, count in zip(OUTCOMES, counters.requests, strict=True):
            requests.add_metric((outcome.verdict, outcome.reason, outcome.path_class), count)
        yield requests

        failures = CounterMetricFamily(
            "shim_request_failures",
            "Requests that the shim answered 502, 503 or 504, or whose response Navidrome cut.",
            labels=("reason",),
        )
        aborted = CounterMetricFamily(
            "shim_requests_aborted",
            "Requests that ended early because of the client (gone, too slow, too much data) or its account.",
            labels=("reason",),
        )
        for failure, count in counters.failures.items():
            family = aborted if failure in CLIENT_FAILURES else failures
            family.add_metric((failure.value,), count)
        yield failures
        yield aborted

        yield CounterMetricFamily(
            "shim_upstream_retries",
            "Requests sent once more, since a kept connection was closed.",
            counters.retries,
        )
        yield CounterMetricFamily(
            "shim_clients_rejected", "Connections beyond the limit.", counters.clients_rejected
        )
        for name, text, value in (
            (
                "shim_client_connections",
                "Open connections of clients.",
                counters.client_connections,
            ),
            ("shim_streams_open", "Answers that are being sent.", counters.streams_open),
            ("shim_tunnels_open", "Open WebSocket tunnels.", counters.tunnels_open),
            (
                "shim_upstream_connections",
                "Open connections to Navidrome.",
                counters.upstream_connections,
            ),
            (
                "shim_upstream_idle_connections",
                "Of these, the unused ones.",
                counters.upstream_idle,
            ),
            (
                "shim_upstream_waiting_requests",
                "Requests that wait for a connection to Navidrome.",
                counters.upstream_waiting,
            ),
        ):
            yield GaugeMetricFamily(name, text, value)


class BuildCollector(Collector):
    """Says which build this is."""

    def __init__(self, version: str) -> None:
        self._labels = {"version": version, "python": platform.python_version()}

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("shim_build", "The build that runs.", self._labels)


class TrailCollector(Collector):
    """Says what the audit trail could not write."""

    def __init__(self, events_dropped: Callable[[], Mapping[str, int]]) -> None:
        self._events_dropped = events_dropped

    def collect(self) -> Iterator[Metric]:
        dropped = CounterMetricFamily(
            "shim_audit_events_dropped",
            "Events that a sink of the audit trail did not get.",
            labels=("sink",),
        )
        for sink, count in self._events_dropped().items():
            dropped.add_metric((sink,), count)
        yield dropped
