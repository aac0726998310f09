"""Events: plain, bounded, in a fixed order, and as loud as they deserve."""

from __future__ import annotations

import dataclasses

import pytest

from shim.audit.events import (
    MAX_ITEMS,
    ConfigurationInForce,
    Event,
    PolicyChanged,
    Repeatable,
    Severity,
    UpstreamDown,
    fields_of,
)
from shim.trust.reasons import Verdict
from tests.unit.audit.samples import accessed, failed, judged


def test_no_event_keeps_a_query() -> None:
    for event in (judged(path="/rest/ping?t=1"), failed(), accessed(path="/app/?jwt=x")):
        assert "?" not in str(fields_of(event)["path"])


def test_what_a_client_sent_is_bounded() -> None:
    event = judged(
        path="/" + "p" * 9000,
        user="u" * 9000,
        removed_headers=tuple(f"x-authentik-{'h' * 900}{i}" for i in range(500)),
        notes=("n" * 9000,),
    )

    assert len(repr(event)) < MAX_ITEMS * 130 + 2000
    assert event.removed_headers[-1] == "…"


def test_fields_come_in_their_order_and_without_those_that_are_none() -> None:
    assert list(fields_of(judged(user=None))) == [
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
    summary = judged(time=5.0).summary(7, 9.0, many_peers=False)

    assert (summary.count, summary.first_time, summary.last_time) == (7, 5.0, 9.0)
    assert summary.time == 9.0
    assert summary.peer == "192.0.2.7"
    assert summary.kin == judged().kin


def test_a_summary_of_several_peers_names_none_of_them() -> None:
    assert judged().summary(7, 9.0, many_peers=True).peer == Repeatable.MANY


@pytest.mark.parametrize(
    ("event", "severity"),
    [
        (judged(verdict=Verdict.STRIPPED), Severity.WARNING),
        (judged(verdict=Verdict.REJECTED), Severity.WARNING),
        (judged(verdict=Verdict.AUTHENTICATED), Severity.INFO),
        (failed(), Severity.WARNING),
        (accessed(), Severity.INFO),
        (UpstreamDown(time=1.0, upstream="unix:/n.sock", reason="connect"), Severity.ERROR),
        (PolicyChanged(time=1.0, subject="whitelist", number=2), Severity.INFO),
        (PolicyChanged(time=1.0, subject="base_path", number=3, alarm=True), Severity.WARNING),
        (ConfigurationInForce(time=1.0, settings=()), Severity.INFO),
        (ConfigurationInForce(time=1.0, settings=(), warnings=("nobody",)), Severity.WARNING),
    ],
)
def test_severity(event: Event, severity: Severity) -> None:
    assert event.severity is severity


def test_events_are_frozen_and_slotted() -> None:
    event = judged()

    with pytest.raises(dataclasses.FrozenInstanceError):
        event.status = 500  # type: ignore[misc]
    assert not hasattr(event, "__dict__")


def test_every_kind_of_event_has_a_name_of_its_own() -> None:
    def kinds(of: type[Event]) -> list[type[Event]]:
        return [kind for child in of.__subclasses__() for kind in (child, *kinds(child))]

    names = {kind.event for kind in kinds(Event) if hasattr(kind, "event")}

    assert names >= {
        "request_judged",
        "upstream_failed",
        "accessed",
        "started",
        "stopped",
        "configuration_in_force",
        "upstream_up",
        "upstream_down",
        "policy_changed",
        "events_lost",
    }
