"""Prometheus metrics: the data plane's counters with names and labels.

This module counts nothing. It reads the counters when a client requests the metrics.
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
    """Return a registry with all metrics of this process. Other parts can register more.

    `events_dropped` returns, for each sink of the audit trail, the number of events that it did not get.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ProxyCollector(counters))
    registry.register(BuildCollector(version))
    registry.register(TrailCollector(events_dropped))
    ProcessCollector(registry=registry)
    return registry


class ProxyCollector(Collector):
    """Reads `Counters`. Every outcome and every failure has a row, also with zero: Prometheus sees no
    increase in a row that appears with its first request, so an alert on it would not fire."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        counters = self._counters
        requests = CounterMetricFamily(
            "shim_requests",
            "Requests by verdict, reason and path class.",
            labels=("verdict", "reason", "path_class"),
        )
        for outcome, count in zip(OUTCOMES, counters.requests, strict=True):
            requests.add_metric((outcome.verdict, outcome.reason, outcome.path_class), count)
        yield requests

        failures = CounterMetricFamily(
            "shim_request_failures",
            "Requests that got 502, 503 or 504, or whose response Navidrome ended early.",
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
            "Requests sent again because Navidrome had closed an idle connection.",
            counters.retries,
        )
        yield CounterMetricFamily(
            "shim_clients_rejected", "Client connections over the limit.", counters.clients_rejected
        )
        for name, text, value in (
            (
                "shim_client_connections",
                "Open client connections.",
                counters.client_connections,
            ),
            ("shim_streams_open", "Responses in progress.", counters.streams_open),
            ("shim_tunnels_open", "Open WebSocket tunnels.", counters.tunnels_open),
            (
                "shim_upstream_connections",
                "Open connections to Navidrome.",
                counters.upstream_connections,
            ),
            (
                "shim_upstream_idle_connections",
                "Idle connections to Navidrome.",
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
    """Reports the version."""

    def __init__(self, version: str) -> None:
        self._labels = {"version": version, "python": platform.python_version()}

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("shim_build", "Version of the shim and of Python.", self._labels)


class TrailCollector(Collector):
    """Reports the events that the audit trail could not write."""

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
