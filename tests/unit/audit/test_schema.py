"""The JSON Schema of the events in `docs/` matches the code, and rejects what is not an event."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from shim.audit.events import EventsDropped, to_record
from shim.audit.events.schema import json_schema, kinds, markdown
from tests.support.audit_samples import access, request_decision, request_failed
from tests.support.event_schema import SCHEMA, faults

DOCS = Path(__file__).parents[3] / "docs"


def test_the_files_in_docs_match_the_code() -> None:
    assert (DOCS / "events.md").read_text() == markdown(), "make docs writes it again"
    assert json_schema() == SCHEMA, "make docs writes it again"


def test_it_is_a_json_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_the_page_has_a_row_for_every_kind() -> None:
    page = markdown()
    assert len(kinds()) > 25
    assert not [kind.kind for kind in kinds() if f"\n| `{kind.kind}` |" not in page]


@pytest.mark.parametrize(
    "event", [request_decision(), request_failed(), access()], ids=lambda event: event.kind
)
def test_the_schema_accepts_an_event_and_its_stored_form(event: Any) -> None:
    record = to_record(event)
    validator = Draft202012Validator(SCHEMA)

    assert validator.is_valid(record)
    assert validator.is_valid({**record, "index": 7})


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"},
        {"stream": "changes"},
        {"severity": "loud"},
        {"schema": 2},
        {"id": "7"},
        {"time": 1.0},
        {"verdict": "unknown"},
        {"status": "200"},
        {"claimed_user": "x" * 256},
        {"notes": "text"},
        {"password": "x"},
        {"index": 0},
    ],
    ids=str,
)
def test_an_invalid_record_is_rejected(change: dict[str, Any]) -> None:
    record = json.loads(json.dumps(to_record(request_decision())))
    assert not faults(record)
    assert faults({**record, **change})
    assert not Draft202012Validator(SCHEMA).is_valid({**record, **change})


def test_a_record_without_a_required_field_is_rejected() -> None:
    record = to_record(request_decision())
    del record["reason"]
    assert faults(record) == ["request_decision: $: 'reason' is a required property"]


def test_an_invalid_event_fails_a_test() -> None:
    with pytest.raises(AssertionError, match="dropped"):
        EventsDropped(time=1.0, sink="log", dropped="many")  # type: ignore[arg-type]
