"""Lines of JSON and CSV that contain an attacker's text."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from shim.audit.export import CSV_COLUMNS, csv_header, csv_line, json_line
from shim.audit.store.results import StoredEvent

ATTACKS = [
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@SUM(1)",
    "\t=1",
    "  =1",
    "\r=1",
    '"; DROP TABLE x',
    "a\r\nb",
    "\x1b[31mred\x1b[0m",
    "\u202egpj.exe",
    "\u2066x\u2069",
    "<script>alert(1)</script>",
    "\ud800",
    "\U0001f600" * 255,
    "\x00\x7f\x9b",
    "\u2028",
]


def stored(**fields: Any) -> StoredEvent:
    record = {"kind": "request_decision", "time": "2026-11-27T02:30:15.250000Z", **fields}
    return StoredEvent("requests", 7, 1, record, "ab")


def cells(text: str) -> list[str]:
    (row,) = csv.reader(io.StringIO(text, newline=""))
    return row


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("field", ["user", "path", "user_agent", "notes"])
def test_csv_has_one_line_for_an_event_and_no_formula(field: str, attack: str) -> None:
    value: object = [attack, attack] if field == "notes" else attack
    line = csv_line(stored(**{field: value}))
    row = cells(line)
    assert len(row) == len(CSV_COLUMNS)
    assert line.endswith("\r\n")
    assert line[:-2].isprintable()
    for cell in row:
        assert not cell.lstrip().startswith(("=", "+", "-", "@"))


@pytest.mark.parametrize("attack", ATTACKS)
def test_json_has_one_line_for_an_event_and_the_same_text(attack: str) -> None:
    line = json_line(stored(user=attack))
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert json.loads(line)["user"] == attack


def test_the_columns_are_those_of_the_header_and_the_rest_is_in_details() -> None:
    event = stored(user="ada", count=3, removed_headers=["A", "B"], changes=["x: 1 → 2"])
    row = dict(zip(cells(csv_header()), cells(csv_line(event)), strict=True))
    assert (row["user"], row["count"], row["index"], row["stream"]) == ("ada", "3", "7", "requests")
    assert json.loads(row["details"]) == {"changes": ["x: 1 → 2"], "removed_headers": ["A", "B"]}


def test_json_begins_with_the_kind() -> None:
    assert next(iter(json.loads(json_line(stored(user="ada"))))) == "kind"
