"""Write stored events as lines of JSON or CSV.

CSV is read by spreadsheets, which run a cell that begins with `=`, `+`, `-` or `@` as a formula, and the
values are attackers' text. So such a cell gets an apostrophe before it, and control characters are escaped.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Any, Final

from shim.audit.events.field_table import FIELDS
from shim.audit.sanitize import escape
from shim.audit.store.results import StoredEvent

# The columns of CSV; everything else is in `details`, as JSON.
CSV_COLUMNS: Final = (
    "time",
    "stream",
    "index",
    "kind",
    "severity",
    "verdict",
    "reason",
    "count",
    "peer",
    "client",
    "method",
    "path_class",
    "path",
    "user",
    "claimed_user",
    "account",
    "uid",
    "request_id",
    "actor",
    "origin",
    "id",
    "details",
)
_FORMULA: Final = ("=", "+", "-", "@")


def json_line(stored: StoredEvent) -> str:
    """Return the event as one line of JSON, without raw control characters or direction marks."""
    text = json.dumps(record_of(stored), ensure_ascii=False, separators=(",", ":"))
    return escape(text) + "\n"


def csv_header() -> str:
    """Return the first line of a CSV file."""
    return _csv_line(CSV_COLUMNS)


def csv_line(stored: StoredEvent) -> str:
    """Return the event as one line of CSV."""
    record = dict(record_of(stored))
    cells = [_cell(record.pop(name, "")) for name in CSV_COLUMNS[:-1]]
    details = json.dumps(record, ensure_ascii=False, sort_keys=True)
    return _csv_line((*cells, _cell(details)))


def record_of(stored: StoredEvent) -> dict[str, Any]:
    """Return the event's record with its place in the trail, in the order of `FIELDS`."""
    record = {**stored.record, "stream": stored.stream, "index": stored.index}
    known = {name: record.pop(name) for name in FIELDS if name in record}
    return {**known, **record}


def _cell(value: object) -> str:
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    text = escape("" if value is None else str(value))
    # Some programs skip blanks before a formula.
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def _csv_line(cells: Iterable[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(cells)
    return out.getvalue()
