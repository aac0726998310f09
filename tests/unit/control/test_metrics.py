"""Metrics: what was counted, under its names."""

from __future__ import annotations

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from shim.control.metrics import build_registry
from shim.proxy.counters import Counters
from shim.proxy.failures import Failure
from shim.trust.reasons import OUTCOMES, PathClass, Reason, outcome

Labels = dict[str, str]


def read(
    counters: Counters, lost: dict[str, int] | None = None
) -> dict[str, list[tuple[Labels, float]]]:
    registry = build_registry(counters, version="9.9.9", events_dropped=lambda: lost or {})
    samples: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


def test_requests_are_told_apart_by_verdict_reason_and_path_class() -> None:
    counters = Counters()
    counters.requests[outcome(Reason.PUBLIC_PATH, PathClass.PUBLIC).index] = 7

    rows = read(counters)["shim_requests_total"]

    labels = {"verdict": "stripped", "reason": "public_path", "path_class": "public"}
    assert (labels, 7.0) in rows
    assert sum(count for _, count in rows) == 7


def test_an_outcome_that_never_came_has_its_row_too() -> None:
    assert len(read(Counters())["shim_requests_total"]) == len(OUTCOMES)


def test_a_failure_that_never_happened_has_its_row_too() -> None:
    samples = read(Counters())
    rows = samples["shim_request_failures_total"] + samples["shim_requests_aborted_total"]
    assert {row["reason"]: count for row, count in rows} == dict.fromkeys(Failure, 0)


def test_a_failure_of_the_client_is_not_counted_as_one_of_the_server() -> None:
    counters = Counters()
    for failure in Failure:
        counters.failed(failure)

    samples = read(counters)

    statuses = {failure.value: failure.status for failure in Failure}
    failures = {row["reason"] for row, _ in samples["shim_request_failures_total"]}
    aborted = {row["reason"] for row, _ in samples["shim_requests_aborted_total"]}
    assert {statuses[reason] for reason in failures} == {502, 503, 504}
    assert {statuses[reason] for reason in aborted} == {400, 403, 408}


def test_every_figure_of_the_data_plane_is_shown() -> None:
    counters = Counters()
    counters.failed(Failure.CONNECT_FAILED)
    counters.failed(Failure.CONNECT_FAILED)
    expected = {
        "shim_client_connections": 1,
        "shim_clients_rejected_total": 2,
        "shim_streams_open": 3,
        "shim_tunnels_open": 4,
        "shim_upstream_connections": 5,
        "shim_upstream_idle_connections": 6,
        "shim_upstream_waiting_requests": 7,
        "shim_upstream_retries_total": 8,
    }
    counters.client_connections = 1
    counters.clients_rejected = 2
    counters.streams_open = 3
    counters.tunnels_open = 4
    counters.upstream_connections = 5
    counters.upstream_idle = 6
    counters.upstream_waiting = 7
    counters.retries = 8

    samples = read(counters)

    assert {name: samples[name][0][1] for name in expected} == expected
    failures = [row for row in samples["shim_request_failures_total"] if row[1]]
    assert failures == [({"reason": "connect_failed"}, 2.0)]


def test_figures_are_read_again_each_time() -> None:
    counters = Counters()
    registry = build_registry(counters, version="9.9.9")
    generate_latest(registry)
    counters.streams_open = 5

    assert b"shim_streams_open 5.0" in generate_latest(registry)


def test_the_build_the_process_and_what_the_trail_lost_are_shown() -> None:
    samples = read(Counters(), lost={"log": 3})

    assert samples["shim_build_info"][0][0]["version"] == "9.9.9"
    assert samples["process_resident_memory_bytes"][0][1] > 0
    assert samples["shim_audit_events_dropped_total"] == [({"sink": "log"}, 3.0)]
