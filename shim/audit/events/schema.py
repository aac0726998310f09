"""Describe the events: their JSON Schema and a page for readers, from the dataclasses and `FIELDS`.

`python -m shim.audit.events.schema json` and `… markdown` print them; `make docs` writes them to `docs/`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import sys
from enum import StrEnum
from typing import Any, Literal, get_args, get_origin

import shim.audit.events as package
from shim.audit.events import SCHEMA, Event, Severity, Stream, field_types
from shim.audit.events.field_table import FIELDS

_TIME = {
    "type": "string",
    "format": "date-time",
    "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$",
}
_JSON_TYPES = {bool: "boolean", int: "integer", float: "number"}
_ID = {
    "type": "string",
    "format": "uuid",
    "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
}


def kinds() -> tuple[type[Event], ...]:
    """Return the class of every kind of event, by its name."""
    found: dict[str, type[Event]] = {}
    names = [
        package.__name__,
        *(each.name for each in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")),
    ]
    for name in names:
        for each in vars(importlib.import_module(name)).values():
            if isinstance(each, type) and issubclass(each, Event) and "kind" in vars(each):
                assert found.setdefault(each.kind, each) is each, f"two classes have {each.kind}"
    return tuple(found[kind] for kind in sorted(found))


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a record, which is an event of any kind."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "navidrome-auth-shim audit event",
        "oneOf": [{"$ref": f"#/$defs/{kind.kind}"} for kind in kinds()],
        "$defs": {kind.kind: _kind_schema(kind) for kind in kinds()},
    }


def markdown() -> str:
    """Return the page of all events and their fields."""
    lines = [
        "# Audit events",
        "",
        "The log and the audit trail have the same record for an event, a JSON object. A field without a",
        "value is left out. [events.schema.json](events.schema.json) is the JSON Schema of a record.",
        "",
        "## Kinds",
        "",
        "Every event has `kind`, `severity`, `time`, `schema`, `id`, `instance` and `stream`, and `index` in",
        "the audit trail. Fields in *italics* may be absent.",
        "",
        "| kind | stream | meaning | fields |",
        "|---|---|---|---|",
    ]
    for kind in kinds():
        types_of = field_types(kind)
        names_text = ", ".join(
            f"*`{name}`*" if _is_optional(types_of[name]) else f"`{name}`"
            for name in types_of
            if name not in ("time", "id")
        )
        stream = f"`{kind.stream}`" if kind.stored else "log only"
        lines.append(f"| `{kind.kind}` | {stream} | {_description(kind)} | {names_text} |")
    lines += ["", "## Fields", "", "| field | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {described.meaning} |" for name, described in FIELDS.items()]
    return "\n".join(lines) + "\n"


def _kind_schema(kind: type[Event]) -> dict[str, Any]:
    types_of = field_types(kind)
    properties: dict[str, Any] = {
        "kind": {"const": kind.kind},
        "severity": {"enum": [severity.name.lower() for severity in Severity]},
        "time": _TIME,
        "schema": {"const": SCHEMA},
        "id": _ID,
        "instance": {"type": "string"},
        "stream": {"enum": list(map(str, Stream))}
        if kind.in_both_streams
        else {"const": str(kind.stream)},
        "index": {"type": "integer", "minimum": 1},
        "chain": {"type": "integer", "minimum": 1},
    }
    required = [name for name in properties if name not in ("index", "chain")]
    for name, hint in types_of.items():
        if name not in ("time", "id"):
            properties[name] = _field_schema(name, hint)
            required += [] if _is_optional(hint) else [name]
    return {
        "description": _description(kind),
        "type": "object",
        "properties": {
            name: properties[name] | {"description": FIELDS[name].meaning}
            for name in FIELDS
            if name in properties
        },
        "required": required,
        "additionalProperties": False,
    }


def _field_schema(name: str, hint: Any) -> dict[str, Any]:
    if name in ("first_time", "last_time"):
        return _TIME
    if _is_optional(hint):
        (hint,) = (each for each in get_args(hint) if each is not type(None))
    limits = FIELDS[name]
    text = {"type": "string", "maxLength": limits.max_length}
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    if hint == tuple[str, ...]:
        return {"type": "array", "items": text, "maxItems": limits.max_items}
    if issubclass(hint, StrEnum):
        return {"enum": [str(member) for member in hint]}
    return text if hint is str else {"type": _JSON_TYPES[hint]}


def _is_optional(hint: Any) -> bool:
    return type(None) in get_args(hint)


def _description(kind: type[Event]) -> str:
    return " ".join((inspect.getdoc(kind) or "").split())


if __name__ == "__main__":
    page = (
        markdown() if sys.argv[1:] == ["markdown"] else json.dumps(json_schema(), indent=1) + "\n"
    )
    sys.stdout.write(page)
