"""Events about accounts: bounded, and with a suitable severity."""

from __future__ import annotations

import json

from shim.audit.events import Severity, to_record
from shim.audit.events import provisioning as events


def test_values_from_the_provider_are_bounded() -> None:
    event = events.AccountDeniedEvent(
        time=1,
        peer="192.0.2.1",
        reason="identity_conflict",
        detail="d" * 9000,
        user="n" * 9000,
        uid="u" * 9000,
        groups=tuple(f"{n}" + "g" * 900 for n in range(500)),
        request_id="r",
    )
    assert len(json.dumps(to_record(event))) < 8000
    assert event.severity is Severity.WARNING


def test_an_account_that_was_recreated_by_a_race_needs_attention() -> None:
    event = events.AccountRecreatedByRace(
        time=1, account="alice", trigger="request", user="alice", uid="u"
    )
    assert event.severity is Severity.ERROR
    assert list(to_record(event).items())[7:] == [
        ("trigger", "request"),
        ("account", "alice"),
        ("user", "alice"),
        ("uid", "u"),
    ]
