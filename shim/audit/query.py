"""Read filters from text: from the query of an address, and from the options of a command."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, time, timedelta, tzinfo
from ipaddress import ip_address
from typing import Any, Final
from zoneinfo import ZoneInfo

from shim.audit.events import Severity
from shim.audit.events.schema import kinds
from shim.audit.store.filters import FilterError, Filters
from shim.audit.store.schema import STREAMS
from shim.proxy.failures import Failure
from shim.trust.reasons import PathClass, Reason, Verdict

# The filters with one of a few values, and the accepted ones.
CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "stream": STREAMS,
    "kind": tuple(kind.kind for kind in kinds() if kind.stored),
    "severity": tuple(severity.name.lower() for severity in Severity),
    "verdict": tuple(map(str, Verdict)),
    # Those of a decision, of a failed request, of a Navidrome token, and of wrong credentials.
    "reason": tuple(
        dict.fromkeys(
            (
                *map(str, Reason),
                *map(str, Failure),
                "token_mismatch",
                "token_without_identity",
                "wrong_credentials",
                "wrong_token",
            )
        )
    ),
    "path_class": tuple(map(str, PathClass)),
}
TEXTS: Final = ("peer", "client", "user", "account", "request_id", "text")
TIMES: Final = ("since", "until")
NAMES: Final = (*TIMES, *CHOICES, *TEXTS)

_FIELDS: Final = {
    "stream": "streams",
    "kind": "kinds",
    "severity": "severities",
    "verdict": "verdicts",
    "reason": "reasons",
    "path_class": "path_classes",
}
_UNITS: Final = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_AGO: Final = re.compile(r"(\d{1,6})\s*([smhdw])", re.ASCII)
_SHOWN = 40


def parse_filters(given: Iterable[tuple[str, str]], now: int, zone: tzinfo = UTC) -> Filters:
    """Return the filters. A filter with one of a few values can be given several times, or with several
    values separated by commas; of the others the last counts. Empty ones do not restrict. `now` is in µs;
    `zone` is that of times without one. Raises `FilterError`."""
    found: dict[str, Any] = {}
    for name, text in given:
        text = text.strip()
        if name not in NAMES:
            raise FilterError(f"{_shown(name)} is not a filter: use {', '.join(NAMES)}")
        if not text:
            continue
        if name in CHOICES:
            chosen = found.get(_FIELDS[name], ())
            found[_FIELDS[name]] = (*chosen, *_choices(name, text))
        elif name in TIMES:
            found[name] = parse_time(name, text, now, zone)
        else:
            if name in ("peer", "client"):
                _check_address(name, text)
            found[name] = text
    return Filters(**found)


def parse_time(name: str, text: str, now: int, zone: tzinfo = UTC) -> int:
    """Return the time in µs since the epoch. `now` is in µs.

    `2h` is two hours ago (s, m, h, d, w), `today` and `yesterday` are the beginnings of these days, and a
    date or time without a zone is in `zone`. Raises `FilterError`, which names the filter `name`.
    """
    words = text.strip().lower()
    moment = datetime.fromtimestamp(now / 1_000_000, UTC)
    try:
        if words == "now":
            return now
        if (ago := _AGO.fullmatch(words)) is not None:
            return _microseconds(moment - int(ago[1]) * _UNITS[ago[2]])
        if words in ("today", "yesterday"):
            day = moment.astimezone(zone).date() - timedelta(days=words == "yesterday")
            return _microseconds(datetime.combine(day, time(), zone))
        found = datetime.fromisoformat(text.strip())
        return _microseconds(found if found.tzinfo is not None else found.replace(tzinfo=zone))
    except (ValueError, OverflowError):
        raise FilterError(
            f"{name}: {_shown(text)} is not a time: use for example 2h, yesterday, 2026-11-01 or "
            "2026-11-01T08:30Z"
        ) from None


def parse_zone(name: str) -> tzinfo:
    """Return the time zone with this name of the IANA database; empty: UTC. Raises `FilterError`."""
    if not name:
        return UTC
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise FilterError(
            f"zone: {_shown(name)} is not a time zone: use for example Europe/Vienna"
        ) from None


def _check_address(name: str, text: str) -> None:
    """Check that a text that looks like an address is one; `@` and `*` are no addresses. Networks are checked
    by the trail. Raises `FilterError`."""
    if "/" in text or not {".", ":"} & set(text):
        return
    try:
        ip_address(text)
    except ValueError:
        raise FilterError(
            f"{name}: expected an address or a network such as 192.0.2.0/24, not {_shown(text)}"
        ) from None


def _choices(name: str, text: str) -> tuple[str, ...]:
    values = tuple(filter(None, (part.strip().lower() for part in text.split(","))))
    for value in values:
        if value not in CHOICES[name]:
            accepted = ", ".join(sorted(CHOICES[name]))
            raise FilterError(f"{name}: {_shown(value)} is not one of {accepted}")
    return values


def _microseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
