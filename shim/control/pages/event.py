"""The page Event: one event in words, what to change, and everything that was recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from shim.audit.events.field_table import FIELDS
from shim.audit.store.results import StoredEvent
from shim.audit.words import in_words, reason_of
from shim.control.pages.events import event_line, microseconds
from shim.settings import SETTINGS
from shim.trust.reasons import Verdict

_TIMES: Final = ("time", "first_time", "last_time")
# What a person need not read, because the page has it elsewhere.
_HIDDEN: Final = frozenset(
    {"schema", "id", "stream", "index", "chain", "kind", "severity", "count"}
)
_OUTCOMES: Final[Mapping[str, str]] = {
    str(Verdict.AUTHENTICATED): "The identity is trusted. Navidrome got one user header.",
    str(Verdict.STRIPPED): "The request was forwarded to Navidrome, without the identity.",
    str(Verdict.REJECTED): "The shim responded itself. Navidrome did not get the request.",
}
_SETTING_NAMES: Final = tuple(setting.name for setting in SETTINGS)


@dataclass(frozen=True, slots=True)
class Rule:
    """The rule that decided: the reason, the view of all its events, and the settings that it names."""

    name: str
    query: str
    settings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """A link to related events or pages, relative to `admin/`."""

    label: str
    target: str


def event_page(event: StoredEvent, identity_header: str) -> dict[str, Any]:
    """Return the values of the template. `identity_header` is the name of the header with the user name."""
    record = event.record
    verdict = str(record.get("verdict", ""))
    decision = record["kind"] == "request_decision"
    order = {name: number for number, name in enumerate(FIELDS)}
    fields = [
        (name, microseconds(record[name]) if name in _TIMES else _shown(record[name]))
        for name in sorted(record, key=lambda name: order.get(name, len(order)))
        if name not in _HIDDEN
    ]
    return {
        "event": event,
        "line": event_line(event),
        "words": in_words(record),
        "decision": decision,
        "outcome": _OUTCOMES.get(verdict, ""),
        "rule": _rule(record),
        "removed": record.get("removed_headers", ()),
        "first_time": microseconds(record["first_time"]) if "first_time" in record else None,
        "fields": fields,
        "try_query": _try_query(record, identity_header) if "path" in record else "",
        "links": _action_links(record),
        "json": json.dumps(record, indent=2, ensure_ascii=True),
    }


def _shown(value: object) -> object:
    return "yes" if value is True else "no" if value is False else value


def _rule(record: Mapping[str, Any]) -> Rule | None:
    reason = reason_of(record.get("reason"))
    if reason is None:
        return None
    named = f"{reason.text} {in_words(record).remedy}".replace(".", " ").replace(",", " ").split()
    settings = tuple(name for name in _SETTING_NAMES if name in named)
    return Rule(str(reason), urlencode({"reason": str(reason)}), settings)


def _try_query(record: Mapping[str, Any], identity_header: str) -> str:
    """Return the query that fills in Explain: peer, method, path, and the headers that are known.

    A recorded request has no values of headers. So only the claimed name and the forwarded address are filled
    in.
    """
    user = record.get("user") or record.get("claimed_user")
    client, peer = record.get("client"), record.get("peer")
    headers = []
    if user and str(user).isprintable():
        headers.append(f"{identity_header}: {user}")
    if client and client != peer:
        headers.append(f"X-Forwarded-For: {client}")
    known = {line.partition(":")[0].lower() for line in headers}
    headers += [
        f"{name}: " for name in record.get("removed_headers", ()) if name.lower() not in known
    ]
    return urlencode(
        {
            "peer": "" if peer in (None, "*") else str(peer),
            "method": str(record.get("method", "GET")),
            "path": str(record.get("path", "/")),
            "headers": "\n".join(headers),
        }
    )


def _action_links(record: Mapping[str, Any]) -> list[Link]:
    found: list[Link] = []
    for name, label in (
        ("request_id", "Same request"),
        ("user", "Same person"),
        ("claimed_user", "Same person"),
        ("account", "Same account"),
        ("client", "Same client"),
    ):
        value = record.get(name)
        if value and value != "*" and label not in [link.label for link in found]:
            field = "user" if name == "claimed_user" else name
            found.append(Link(label, f"trail?{urlencode({field: str(value)})}"))
    return found
