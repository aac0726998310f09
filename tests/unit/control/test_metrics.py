"""Metrics: values under their documented names."""

from __future__ import annotations

import math

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from shim.control.metrics import Sources, build_registry
from shim.health import Check, State
from shim.proxy.counters import LATENCY_BOUNDS, Counters
from shim.proxy.failures import Failure
from shim.trust.reasons import OUTCOMES, PathClass, Reason, outcome

Labels = dict[str, str]


def read(
    counters: Counters, sources: Sources | None = None
) -> dict[str, list[tuple[Labels, float]]]:
    registry = build_registry(counters, version="9.9.9", sources=sources)
    samples: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


def test_requests_are_counted_by_verdict_reason_and_path_class() -> None:
    counters = Counters()
    counters.requests[outcome(Reason.PUBLIC_PATH, PathClass.PUBLIC).index] = 7

    rows = read(counters)["shim_requests_total"]

    labels = {"verdict": "stripped", "reason": "public_path", "path_class": "public"}
    assert (labels, 7.0) in rows
    assert sum(count for _, count in rows) == 7


def test_an_outcome_that_never_occurred_has_a_row() -> None:
    assert len(read(Counters())["shim_requests_total"]) == len(OUTCOMES)


def test_a_failure_that_never_occurred_has_a_row() -> None:
    samples = read(Counters())
    rows = samples["shim_request_failures_total"] + samples["shim_requests_aborted_total"]
    assert {row["reason"]: count for row, count in rows} == dict.fromkeys(Failure, 0)


def test_a_client_failure_is_not_counted_as_a_server_failure() -> None:
    counters = Counters()
    for failure in Failure:
        counters.failed(failure)

    samples = read(counters)

    statuses = {failure.value: failure.status for failure in Failure}
    failures = {row["reason"] for row, _ in samples["shim_request_failures_total"]}
    aborted = {row["reason"] for row, _ in samples["shim_requests_aborted_total"]}
    assert {statuses[reason] for reason in failures} == {502, 503, 504}
    assert {statuses[reason] for reason in aborted} == {400, 403, 408}


def test_every_counter_and_gauge_of_the_data_plane_is_shown() -> None:
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


def test_values_are_read_again_for_each_scrape() -> None:
    counters = Counters()
    registry = build_registry(counters, version="9.9.9")
    generate_latest(registry)
    counters.streams_open = 5

    assert b"shim_streams_open 5.0" in generate_latest(registry)


def test_build_process_and_trail_losses_are_shown() -> None:
    sources = Sources(events_dropped=lambda: {"log": 3}, events_queued=lambda: {"log": 5})
    samples = read(Counters(), sources)

    assert samples["shim_build_info"][0][0]["version"] == "9.9.9"
    assert samples["process_resident_memory_bytes"][0][1] > 0
    assert samples["shim_audit_events_dropped_total"] == [({"sink": "log"}, 3.0)]
    assert samples["shim_audit_queue_events"] == [({"sink": "log"}, 5.0)]


def test_each_check_has_exactly_one_state_with_1() -> None:
    checks = [Check("navidrome", State.FAILING, "no"), Check("keys", State.WARNING, "old")]
    samples = read(Counters(), Sources(checks=lambda: checks))

    current = {(row["check"], row["state"]) for row, value in samples["shim_check"] if value}
    assert current == {("navidrome", "failing"), ("keys", "warning")}
    assert len(samples["shim_check"]) == 6
    assert samples["shim_ready"] == [({}, 0.0)]


def test_a_warning_does_not_make_the_shim_unready() -> None:
    samples = read(Counters(), Sources(checks=lambda: [Check("keys", State.WARNING, "old")]))
    assert samples["shim_ready"] == [({}, 1.0)]


def test_accounts_events_and_ages_have_their_rows() -> None:
    sources = Sources(
        accounts=lambda: {"active": 2, "denied": 0},
        events=lambda: {"account_created": 4},
        key_set_age=lambda: 12.5,
        name_ages=lambda: {"edge": math.inf},
    )

    samples = read(Counters(), sources)

    assert samples["shim_accounts"] == [({"state": "active"}, 2.0), ({"state": "denied"}, 0.0)]
    assert samples["shim_events_total"] == [({"kind": "account_created"}, 4.0)]
    assert samples["shim_key_set_age_seconds"] == [({}, 12.5)]
    assert samples["shim_name_age_seconds"] == [({"host": "edge"}, math.inf)]


def test_without_a_key_set_its_age_has_no_row() -> None:
    assert "shim_key_set_age_seconds" not in read(Counters())


def test_the_histogram_counts_a_request_in_every_bucket_that_it_fits() -> None:
    counters = Counters()
    for seconds in (LATENCY_BOUNDS[0], 0.0002, 11.0):
        counters.observe_latency(seconds)

    samples = read(counters)

    buckets = {row["le"]: count for row, count in samples["shim_request_processing_seconds_bucket"]}
    assert (buckets["0.0001"], buckets["0.00025"]) == (1.0, 2.0)
    assert (buckets["10.0"], buckets["+Inf"]) == (2.0, 3.0)
    assert len(buckets) == len(LATENCY_BOUNDS) + 1
    assert samples["shim_request_processing_seconds_count"] == [({}, 3.0)]
    assert samples["shim_request_processing_seconds_sum"][0][1] == pytest.approx(11.0003)
