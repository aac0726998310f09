"""Events: escaped, bounded, printable, in a fixed order, and with one name for each field."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid

import pytest

from shim.audit.events import (
    INSTANCE,
    AdminAction,
    CoalescedEvent,
    ConfigurationLoaded,
    Event,
    IdentitySeen,
    PolicyChanged,
    Severity,
    Stream,
    UpstreamDown,
    field_types,
    new_id,
    to_record,
)
from shim.audit.events.field_table import FIELDS
from shim.audit.events.schema import json_schema, kinds
from shim.trust.reasons import PathClass, Reason, Verdict
from tests.support.audit_samples import access, request_decision, request_failed


def test_no_event_contains_a_query() -> None:
    for event in (
        request_decision(path="/rest/ping?t=1"),
        request_failed(),
        access(path="/app/?jwt=x"),
    ):
        assert "?" not in str(to_record(event)["path"])


def test_values_of_clients_are_bounded() -> None:
    event = request_decision(
        path="/" + "p" * 9000,
        claimed_user="u" * 9000,
        removed_headers=tuple(f"x-authentik-{'h' * 900}{i}" for i in range(500)),
        notes=("n" * 9000,),
    )

    limits = FIELDS["removed_headers"]
    assert len(event.removed_headers) == limits.max_items
    assert max(map(len, event.removed_headers)) == limits.max_length
    assert event.removed_headers[-1] == "…"
    assert len(json.dumps(to_record(event), ensure_ascii=False)) < 6000


def test_a_record_has_the_common_fields_first_and_the_text_of_clients_last() -> None:
    assert list(to_record(request_decision(claimed_user="ada"))) == [
        "kind",
        "severity",
        "time",
        "schema",
        "id",
        "instance",
        "stream",
        "verdict",
        "reason",
        "status",
        "peer",
        "peer_trusted",
        "client",
        "path_class",
        "request_id",
        "count",
        "claimed_user",
        "method",
        "path",
        "removed_headers",
        "notes",
    ]


def test_a_record_names_the_process_and_the_stream() -> None:
    record = to_record(access())

    assert record["instance"] == INSTANCE
    assert record["stream"] == "requests"
    assert record["schema"] == 1
    assert record["time"] == "1970-01-01T00:16:40.000000Z"


TEXTS = {
    "markup": "<script>alert(1)</script>",
    "formula": "=cmd|' /C calc'!A0",
    "ansi": "\x1b[2J\x1b]0;title\x07\x9b31m",
    "newline": 'ada\r\n{"kind":"forged"}\n\u2028\u2029\x85',
    "nul": "a\x00b",
    "bidirectional": "\u202eada\u2066\u2069\u202a",
    "surrogate": b"ada\xff\xed\xa0\x80".decode("utf-8", "surrogateescape"),
    "emoji": "\N{PILE OF POO}" * 255,
    "long": "x" * 10_000,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_of_an_attacker_can_be_stored_and_printed(text: str) -> None:
    record = to_record(
        dataclasses.replace(
            request_decision(path=f"/{text}", claimed_user=text, removed_headers=(text,)),
            user_agent=text,
            method=text,
        )
    )

    stored = json.dumps(record, ensure_ascii=False)
    assert stored.encode()
    assert stored.isprintable()
    assert json.loads(stored) == record
    for name in ("claimed_user", "user_agent", "method", "path"):
        assert len(str(record[name])) <= FIELDS[name].max_length


def test_an_ordinary_name_is_not_changed() -> None:
    for name in ("ada", "Zoë", "آدا", "👩‍👩‍👧", "a\u00a0b", "日本"):
        assert to_record(request_decision(claimed_user=name))["claimed_user"] == name


def test_a_summary_has_the_common_fields_the_count_and_the_times() -> None:
    sample = request_decision(time=5.0)
    summary = sample.summary(7, 9.0, many_peers=False)

    assert (summary.count, summary.first_time, summary.last_time) == (7, 5.0, 9.0)
    assert summary.time == 9.0
    assert summary.peer == "192.0.2.7"
    assert summary.group_key == request_decision().group_key
    assert summary.id != sample.id


def test_a_summary_of_several_peers_names_none_of_them() -> None:
    assert request_decision().summary(7, 9.0, many_peers=True).peer == CoalescedEvent.MANY


def test_an_id_is_a_version_7_uuid_of_the_current_time() -> None:
    before = time.time_ns() // 1_000_000
    value = uuid.UUID(new_id())
    after = time.time_ns() // 1_000_000

    assert (value.version, value.variant) == (7, uuid.RFC_4122)
    assert before <= value.int >> 80 <= after


def test_ids_differ_and_sort_by_time() -> None:
    first = new_id()
    many = {new_id() for _ in range(1000)}
    start = time.time_ns()
    while time.time_ns() < start + 10_000:
        pass

    assert len(many) == 1000
    assert first < new_id()


@pytest.mark.parametrize(
    ("event", "severity"),
    [
        (request_decision(verdict=Verdict.STRIPPED), Severity.WARNING),
        (request_decision(verdict=Verdict.REJECTED), Severity.WARNING),
        (request_decision(verdict=Verdict.AUTHENTICATED), Severity.INFO),
        (request_failed(), Severity.WARNING),
        (request_failed(reason="client_left"), Severity.INFO),
        (access(), Severity.INFO),
        (UpstreamDown(time=1.0, upstream="unix:/n.sock", detail="connect"), Severity.ERROR),
        (PolicyChanged(time=1.0, subject="whitelist", policy_number=2), Severity.INFO),
        (
            PolicyChanged(time=1.0, subject="base_path", policy_number=3, needs_attention=True),
            Severity.WARNING,
        ),
        (ConfigurationLoaded(time=1.0, trigger="start", settings=()), Severity.INFO),
        (
            ConfigurationLoaded(time=1.0, trigger="start", settings=(), warnings=("nobody",)),
            Severity.WARNING,
        ),
        (AdminAction(time=1.0, action="reload", actor="token", origin="api"), Severity.INFO),
        (
            AdminAction(time=1.0, action="reload", actor="token", origin="api", result="failed"),
            Severity.WARNING,
        ),
    ],
)
def test_severity(event: Event, severity: Severity) -> None:
    assert event.severity is severity
    assert to_record(event)["severity"] == severity.name.lower()


def test_two_identities_behind_one_edge_are_not_counted_together() -> None:
    def seen(user: str) -> IdentitySeen:
        return IdentitySeen(
            time=1.0,
            peer="192.0.2.7",
            request_id="r",
            method="GET",
            path="/app/",
            path_class=PathClass.PROTECTED,
            verdict=Verdict.AUTHENTICATED,
            reason=Reason.TRUSTED_PEER,
            user=user,
        )

    assert seen("ada").group_key != seen("bob").group_key


def test_events_are_frozen_and_slotted() -> None:
    event = request_decision()

    with pytest.raises(dataclasses.FrozenInstanceError):
        event.status = 500  # type: ignore[misc]
    assert not hasattr(event, "__dict__")


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.kind)
def test_every_kind_has_a_stream_and_described_fields(kind: type[Event]) -> None:
    assert kind.stream in Stream
    assert set(field_types(kind)) == {field.name for field in dataclasses.fields(kind)}


def test_every_described_field_is_used() -> None:
    in_every_record = {"kind", "severity", "schema", "index", "instance", "stream", "chain"}
    used = {name for kind in kinds() for name in field_types(kind)}

    assert used | in_every_record == set(FIELDS)


def test_a_field_has_one_type_in_all_kinds() -> None:
    found: dict[str, set[str]] = {}
    for described in json_schema()["$defs"].values():
        for name, value in described["properties"].items():
            found.setdefault(name, set()).add(json.dumps(value))

    # A reason is one of the decisions' or one of the failures'.
    assert {name for name, values in found.items() if len(values) > 1} == {
        "kind",
        "stream",
        "reason",
    }


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.kind)
def test_no_kind_has_a_field_for_a_secret(kind: type[Event]) -> None:
    names = field_types(kind)
    assert not [name for name in names for word in ("password", "token", "secret") if word in name]


def test_the_list_of_kinds_is_complete() -> None:
    assert {kind.kind for kind in kinds()} >= {
        "access",
        "account_created",
        "admin_action",
        "configuration_loaded",
        "events_dropped",
        "identity_seen",
        "key_set_failed",
        "policy_changed",
        "request_decision",
        "request_failed",
        "started",
        "stopped",
        "upstream_down",
        "upstream_up",
    }
