"""Validate every event that a test produces against the JSON Schema in `docs/`.

In this process that is every event that is created; of a shim process it is every line of its log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from shim.audit.events import Event, to_record

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/events.schema.json").read_text())
# Lines of the log that are not events.
OTHER_LINES = ("log_lines_dropped", "log_message", "log_record_unreadable")

_VALIDATORS = {kind: Draft202012Validator(schema) for kind, schema in SCHEMA["$defs"].items()}
_create = Event.__post_init__


def faults(record: Mapping[str, Any]) -> list[str]:
    """Return the validation errors of this record."""
    kind = str(record["kind"])
    if kind not in _VALIDATORS:
        return [f"{kind} is no kind of event"]
    found = _VALIDATORS[kind].iter_errors(dict(record))
    return [f"{kind}: {error.json_path}: {error.message}" for error in found]


def faults_of_line(line: Mapping[str, Any]) -> list[str]:
    """Return the validation errors of this log line."""
    return [] if line.get("kind") in OTHER_LINES else faults(line)


def check_all_events() -> None:
    """Check every event that this process creates from now on. An invalid one raises."""
    Event.__post_init__ = _create_checked  # type: ignore[method-assign]


def _create_checked(self: Event) -> None:
    _create(self)
    # A test may declare its own kind of event.
    if type(self).__module__.startswith("shim."):
        found = faults(json.loads(json.dumps(to_record(self))))
        assert not found, found
