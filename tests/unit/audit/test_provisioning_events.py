"""Events about accounts: bounded, loud where they should be, and with no place for a secret."""

from __future__ import annotations

from dataclasses import fields

import pytest

from shim.audit.events import Event, Severity, event_fields
from shim.audit.events import provisioning as events

KINDS = [
    kind
    for kind in vars(events).values()
    if isinstance(kind, type) and issubclass(kind, Event) and hasattr(kind, "event")
]


@pytest.mark.parametrize("kind", KINDS)
def test_no_event_has_a_place_for_a_secret(kind: type[Event]) -> None:
    names = {field.name for field in fields(kind)}
    assert not [name for name in names for word in ("password", "token", "secret") if word in name]


def test_every_kind_has_a_name_of_its_own() -> None:
    assert len({kind.event for kind in KINDS}) == len(KINDS) > 12


def test_what_the_provider_says_is_bounded() -> None:
    event = events.AccountDeniedEvent(
        time=1,
        peer="192.0.2.1",
        reason="identity_conflict",
        detail="d" * 9000,
        name="n" * 9000,
        uid="u" * 9000,
        groups=tuple(f"{n}" + "g" * 900 for n in range(500)),
        request_id="r",
    )
    assert len(repr(event)) < 8000
    assert event.severity is Severity.WARNING


def test_an_account_that_rose_is_an_alarm() -> None:
    event = events.AccountRecreatedByRace(
        time=1, account="alice", trigger="request", name="alice", uid="u"
    )
    assert event.severity is Severity.ERROR
    assert event_fields(event) == {
        "account": "alice",
        "trigger": "request",
        "name": "alice",
        "uid": "u",
    }
