"""Events: plain, bounded, in a fixed order, and as loud as they deserve."""

from __future__ import annotations

import dataclasses

import pytest

from shim.audit.events import (
    MAX_ITEMS,
    CoalescedEvent,
    ConfigurationLoaded,
    Event,
    PolicyChanged,
    Severity,
    UpstreamDown,
    event_fields,
)
from shim.trust.reasons import Verdict
from tests.support.audit_samples import access, request_decision, request_failed


def test_no_event_keeps_a_query() -> None:
    for event in (
        request_decision(path="/rest/ping?t=1"),
        request_failed(),
        access(path="/app/?jwt=x"),
    ):
        assert "?" not in str(event_fields(event)["path"])


def test_what_a_client_sent_is_bounded() -> None:
    event = request_decision(
        path="/" + "p" * 9000,
        user="u" * 9000,
        removed_headers=tuple(f"x-authentik-{'h' * 900}{i}" for i in range(500)),
        notes=("n" * 9000,),
    )

    assert len(repr(event)) < MAX_ITEMS * 130 + 2000
    assert event.removed_headers[-1] == "…"


def test_fields_come_in_their_order_and_without_those_that_are_none() -> None:
    assert list(event_fields(request_decision(user=None))) == [
        "peer",
        "request_id",
        "peer_trusted",
        "client",
        "method",
        "path",
        "path_class",
        "verdict",
        "reason",
        "status",
        "removed_headers",
        "notes",
        "count",
    ]


def test_a_summary_has_what_all_share_its_count_and_its_times() -> None:
    summary = request_decision(time=5.0).summary(7, 9.0, many_peers=False)

    assert (summary.count, summary.first_time, summary.last_time) == (7, 5.0, 9.0)
    assert summary.time == 9.0
    assert summary.peer == "192.0.2.7"
    assert summary.group_key == request_decision().group_key


def test_a_summary_of_several_peers_names_none_of_them() -> None:
    assert request_decision().summary(7, 9.0, many_peers=True).peer == CoalescedEvent.MANY


@pytest.mark.parametrize(
    ("event", "severity"),
    [
        (request_decision(verdict=Verdict.STRIPPED), Severity.WARNING),
        (request_decision(verdict=Verdict.REJECTED), Severity.WARNING),
        (request_decision(verdict=Verdict.AUTHENTICATED), Severity.INFO),
        (request_failed(), Severity.WARNING),
        (access(), Severity.INFO),
        (UpstreamDown(time=1.0, upstream="unix:/n.sock", reason="connect"), Severity.ERROR),
        (PolicyChanged(time=1.0, subject="whitelist", number=2), Severity.INFO),
        (
            PolicyChanged(time=1.0, subject="base_path", number=3, needs_attention=True),
            Severity.WARNING,
        ),
        (ConfigurationLoaded(time=1.0, settings=()), Severity.INFO),
        (ConfigurationLoaded(time=1.0, settings=(), warnings=("nobody",)), Severity.WARNING),
    ],
)
def test_severity(event: Event, severity: Severity) -> None:
    assert event.severity is severity


def test_events_are_frozen_and_slotted() -> None:
    event = request_decision()

    with pytest.raises(dataclasses.FrozenInstanceError):
        event.status = 500  # type: ignore[misc]
    assert not hasattr(event, "__dict__")


def test_every_kind_of_event_has_a_name_of_its_own() -> None:
    def kinds(of: type[Event]) -> list[type[Event]]:
        return [kind for child in of.__subclasses__() for kind in (child, *kinds(child))]

    names = {kind.event for kind in kinds(Event) if hasattr(kind, "event")}

    assert names >= {
        "request_decision",
        "request_failed",
        "access",
        "started",
        "stopped",
        "configuration_loaded",
        "upstream_up",
        "upstream_down",
        "policy_changed",
        "events_dropped",
    }
