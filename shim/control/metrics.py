"""Prometheus metrics: the data plane's counters and the state of the other parts, with names and labels.

This module counts nothing. It reads the counters when a client requests the metrics, in a thread: it reads
numbers, values and copies.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shim.health import Check, State, is_ready
from shim.proxy.counters import LATENCY_BOUNDS, Counters
from shim.proxy.failures import CLIENT_FAILURES
from shim.trust.reasons import OUTCOMES


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the metrics come from that are not the data plane's.

    `checks`: those of `/readyz`. `events`: number of recorded events by kind. `events_dropped`,
    `events_queued`: number of events that each sink of the audit trail did not get, or is yet to get.
    `accounts`: number of accounts by state. `key_set_age`: seconds since the key set was fetched; infinite
    before the first time, None without a key set. `name_ages`: the same for each host name of the whitelist.
    """

    checks: Callable[[], Iterable[Check]] = tuple
    events: Callable[[], Mapping[str, int]] = dict
    events_dropped: Callable[[], Mapping[str, int]] = dict
    events_queued: Callable[[], Mapping[str, int]] = dict
    accounts: Callable[[], Mapping[str, int]] = dict
    key_set_age: Callable[[], float | None] = lambda: None
    name_ages: Callable[[], Mapping[str, float]] = dict


def build_registry(
    counters: Counters, *, version: str, sources: Sources | None = None
) -> CollectorRegistry:
    """Return a registry with all metrics of this process. Other parts can register more."""
    sources = Sources() if sources is None else sources
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ProxyCollector(counters))
    registry.register(BuildCollector(version))
    registry.register(HealthCollector(sources))
    registry.register(TrailCollector(sources))
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

        yield self._latency()

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

    def _latency(self) -> Metric:
        # Copied at once, so that the buckets fit the total.
        counts, total = tuple(self._counters.latency), 0
        buckets = []
        for bound, count in zip((*LATENCY_BOUNDS, math.inf), counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == math.inf else str(bound), float(total)))
        return HistogramMetricFamily(
            "shim_request_processing_seconds",
            "Time from a complete request head until it is sent on, or until the shim responds itself.",
            buckets=buckets,
            sum_value=self._counters.latency_seconds,
        )


class BuildCollector(Collector):
    """Reports the version."""

    def __init__(self, version: str) -> None:
        self._labels = {"version": version, "python": platform.python_version()}

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("shim_build", "Version of the shim and of Python.", self._labels)


class HealthCollector(Collector):
    """Reports the readiness checks, the accounts, and the age of the values that are looked up."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        sources = self._sources
        checks = tuple(sources.checks())
        yield GaugeMetricFamily(
            "shim_ready", "1 if no check of /readyz fails, else 0.", float(is_ready(checks))
        )
        states = GaugeMetricFamily(
            "shim_check",
            "1 for the current state of each check of /readyz, 0 for its other states.",
            labels=("check", "state"),
        )
        for check in checks:
            for state in State:
                states.add_metric((check.name, state.value), float(check.state is state))
        yield states

        accounts = GaugeMetricFamily(
            "shim_accounts", "Accounts by state, as in `users list`.", labels=("state",)
        )
        for name, count in sources.accounts().items():
            accounts.add_metric((name,), count)
        yield accounts

        key_set = GaugeMetricFamily(
            "shim_key_set_age_seconds", "Time since the provider's key set was fetched."
        )
        age = sources.key_set_age()
        if age is not None:
            key_set.add_metric((), age)
        yield key_set
        names = GaugeMetricFamily(
            "shim_name_age_seconds",
            "Time since the host name of the whitelist was resolved.",
            labels=("host",),
        )
        for host, seconds in sources.name_ages().items():
            names.add_metric((host,), seconds)
        yield names


class TrailCollector(Collector):
    """Reports the events of the audit trail, and those that it could not write."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        sources = self._sources
        events = CounterMetricFamily(
            "shim_events", "Events of the audit trail by kind.", labels=("kind",)
        )
        for kind, count in sources.events().items():
            events.add_metric((kind,), count)
        yield events
        dropped = CounterMetricFamily(
            "shim_audit_events_dropped",
            "Events that a sink of the audit trail did not get.",
            labels=("sink",),
        )
        for sink, count in sources.events_dropped().items():
            dropped.add_metric((sink,), count)
        yield dropped
        queued = GaugeMetricFamily(
            "shim_audit_queue_events",
            "Events that wait to be written to a sink of the audit trail.",
            labels=("sink",),
        )
        for sink, count in sources.events_queued().items():
            queued.add_metric((sink,), count)
        yield queued
