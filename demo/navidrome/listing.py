"""A list for react-admin's parameters: `_sort`, `_order`, `_start`, `_end` (deluan/rest)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from demo.navidrome.goform import Json
from demo.navidrome.request import Params

Row = dict[str, Json]


class OffsetWithoutLimitError(ValueError):
    """A `_start` with no `_end` after it, which is invalid SQL."""


def page_of(rows: Sequence[Row], query: Params) -> tuple[list[Row], int]:
    """The rows of a query, and how many there are without its range.

    An unknown sort field is ignored. Without a range all are returned. Raises
    `OffsetWithoutLimitError`.
    """
    ordered = list(rows)
    key = _camel(query.first("_sort"))
    if key and rows and key in rows[0]:
        ordered.sort(
            key=lambda row: _sort_key(row[key]), reverse=query.first("_order").lower() == "desc"
        )
    start, end = query.number("_start"), query.number("_end")
    if 0 < start >= end:
        raise OffsetWithoutLimitError
    page = ordered[max(start, 0) :]
    if end > start:
        page = page[: end - start]
    return page, len(ordered)


def _camel(name: str) -> str:
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), name)


def _sort_key(value: Json) -> tuple[int, float, str]:
    # SQLite's order: NULL first, then numbers, then texts.
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, int | float):
        return (1, float(value), "")
    return (2, 0.0, str(value))
