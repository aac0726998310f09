"""The page Trail: filters in the address, a page of events, and links to other views."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from shim.audit.query import CHOICES, NAMES, TIMES, parse_filters, parse_zone
from shim.audit.store.filters import Filters
from shim.audit.store.reader import TrailReader
from shim.audit.store.results import Page
from shim.control.pages.events import event_lines

LIMIT: Final = 50

_MORE: Final = (
    "stream",
    "kind",
    "severity",
    "reason",
    "path_class",
    "account",
    "peer",
    "request_id",
)


@dataclass(frozen=True, slots=True)
class Query:
    """The address of a view. `values` are the filters as they were given, without empty ones."""

    values: Mapping[str, str]
    cursor: str | None = None

    @classmethod
    def parse(cls, given: Iterable[tuple[str, str]]) -> Query:
        """Return the query of an address. Unknown names stay in it, for `filters` to reject."""
        values: dict[str, str] = {}
        for name, given_text in given:
            text = given_text.strip()
            if text:
                joined = name in CHOICES and name in values
                values[name] = f"{values[name]},{text}" if joined else text
        cursor = values.pop("cursor", None)
        if not set(TIMES) & values.keys():
            values.pop("zone", None)
        return cls(values, cursor)

    def filters(self, now: int) -> Filters:
        """Return the filters. `now` is in µs. Raises `FilterError`."""
        filters = ((name, text) for name, text in self.values.items() if name != "zone")
        return parse_filters(filters, now, parse_zone(self.values.get("zone", "")))

    def link(self, **changes: str | None) -> str:
        """Return `?…` for the same view with other values; None removes a filter. The cursor is left out."""
        values = {**self.values, **changes}
        remaining = {name: value for name, value in values.items() if value}
        if not set(TIMES) & remaining.keys():
            remaining.pop("zone", None)
        return f"?{urlencode(remaining)}" if remaining else ""


@dataclass(frozen=True, slots=True)
class Link:
    """A link to another view of the trail."""

    label: str
    query: str
    current: bool = False


@dataclass(frozen=True, slots=True)
class Chip:
    """A filter in force. `link_without` is the view without it."""

    name: str
    value: str
    link_without: str


_VIEWS: Final[tuple[tuple[str, dict[str, str]], ...]] = (
    ("All", {}),
    ("Refused", {"verdict": "stripped,rejected"}),
    ("Visits", {"kind": "identity_seen"}),
    ("Changes", {"stream": "changes"}),
)


def read_page(filters: Filters, cursor: str | None) -> Callable[[TrailReader], Page]:
    """Return the work for the trail's reader."""

    def read(reader: TrailReader) -> Page:
        return reader.page(filters, cursor=cursor, limit=LIMIT)

    return read


def trail(query: Query, page: Page | None, fault: str = "") -> dict[str, Any]:
    """Return the values of the template. `page` is None if the filters cannot be used; `fault` says why."""
    values_shown = {name: value for name, value in query.values.items() if name != "zone"}
    events = event_lines(page.events) if page is not None else []
    live = page is not None and query.cursor is None and "until" not in values_shown
    older_cursor = page is not None and page.next_cursor
    fault_in = fault.partition(":")[0]
    return {
        "fault": fault,
        "fault_in": fault_in,
        "form": {name: query.values.get(name, "") for name in (*NAMES, "zone")},
        "options": {name: _options(name, values_shown.get(name, "")) for name in CHOICES},
        "more_open": any(name in values_shown or name == fault_in for name in _MORE),
        "filtered": bool(values_shown),
        "chips": [
            Chip(name, value, query.link(**{name: None})) for name, value in values_shown.items()
        ],
        "views": [
            Link(label, f"?{urlencode(values)}" if values else "", values_shown == values)
            for label, values in _VIEWS
        ],
        "heading": "Newest events" if query.cursor is None else "Older events",
        "events": events,
        "note": page.note if page is not None else None,
        "next_page": _with_cursor(query, page.next_cursor) if older_cursor and page else "",
        "first_page": query.link() or "?" if query.cursor is not None else "",
        "live": {"rows": f"trail{query.link()}", "query": query.link(since=None)} if live else None,
    }


def _with_cursor(query: Query, cursor: str | None) -> str:
    return query.link(cursor=cursor)


def _options(name: str, chosen: str) -> tuple[str, ...]:
    """Return the values to choose from, and the chosen combination if it is one."""
    options = CHOICES[name] if name == "stream" else tuple(sorted(CHOICES[name]))
    return (chosen, *options) if "," in chosen else options
