"""Filters over the trail, and what a filter means for one record. Pure: no database here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network

from shim.audit.store.schema import (
    JSON,
    STREAMS,
    Stream,
    column_text,
    column_values,
    folded,
    packed,
    packed_address,
)

MAX_TEXT = 200
# What JSON does not escape.
_UNCHANGED = re.compile(r"[ !#-\[\]-~]+")


class FilterError(ValueError):
    """A filter that cannot be used. The message is one sentence for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which events to return; a field that is not set does not restrict them.

    `since` (included) and `until` (excluded) are microseconds since the epoch. `peer` and `client` are an
    address, a network, or another peer's text (`@`). `user` is the name at the identity provider, trusted or
    claimed, and `account` Navidrome's; both without case. `text` occurs in a value of the event, without
    case. Raises `FilterError`.
    """

    since: int | None = None
    until: int | None = None
    streams: tuple[Stream, ...] = STREAMS
    kinds: tuple[str, ...] = ()
    severities: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    peer: str | None = None
    client: str | None = None
    user: str | None = None
    account: str | None = None
    path_classes: tuple[str, ...] = ()
    request_id: str | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.streams if name not in STREAMS]
        if unknown or not self.streams:
            raise FilterError(f"stream: expected requests or changes, not {', '.join(unknown)!r}")
        for name in ("peer", "client"):
            address_range(name, getattr(self, name))
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise FilterError("since: expected a time before until")
        if self.text is not None and not 1 <= len(self.text) <= MAX_TEXT:
            raise FilterError(f"text: expected 1 to {MAX_TEXT} characters")

    def choices(self) -> dict[str, tuple[str, ...]]:
        """Return the accepted values of each column that must equal one of a few."""
        user, account = folded(self.user), folded(self.account)
        request_id = column_text(self.request_id)
        found = {
            "kind": self.kinds,
            "severity": self.severities,
            "verdict": self.verdicts,
            "reason": self.reasons,
            "path_class": self.path_classes,
            "user": () if user is None else (user,),
            "account": () if account is None else (account,),
            "request_id": () if request_id is None else (request_id,),
        }
        return {name: tuple(dict.fromkeys(values)) for name, values in found.items() if values}

    def ranges(self) -> dict[str, tuple[bytes, bytes]]:
        """Return the lowest and highest accepted value of each column with addresses."""
        found = {name: address_range(name, getattr(self, name)) for name in ("peer", "client")}
        return {name: bounds for name, bounds in found.items() if bounds is not None}

    def matches(self, stream: Stream, record: Mapping[str, JSON]) -> bool:
        """Return whether an event passes, for one that was just read."""
        columns = column_values(record)
        time = columns["time"]
        return (
            stream in self.streams
            and (self.since is None or time >= self.since)
            and (self.until is None or time < self.until)
            and all(columns[name] in values for name, values in self.choices().items())
            and all(
                columns[name] is not None and low <= columns[name] <= high
                for name, (low, high) in self.ranges().items()
            )
            and self.matches_text(record)
        )

    def matches_text(self, record: Mapping[str, JSON]) -> bool:
        """Return whether `text` occurs in a value of the record, and not only in the name of a field."""
        return self.text is None or _occurs(self.text.casefold(), record)

    def needle(self) -> str:
        """Return a part of `text` that the stored JSON has unchanged, for a first search that may find too
        much."""
        return max(_UNCHANGED.findall(self.text or ""), key=len, default="")


def address_range(name: str, text: str | None) -> tuple[bytes, bytes] | None:
    """Return the lowest and highest value of a column for an address, a network or another peer. Raises
    `FilterError` with the filter's name."""
    if text is None:
        return None
    if "/" not in text:
        value = packed(text)
        if value is None or len(text) > 255:
            raise FilterError(f"{name}: expected an address or a network such as 192.0.2.0/24")
        return value, value
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise FilterError(
            f"{name}: expected an address or a network such as 192.0.2.0/24, not {text!r}"
        ) from None
    mapped = isinstance(network, IPv4Network)
    low, high = int(network.network_address), int(network.broadcast_address)
    return packed_address(low, mapped=mapped), packed_address(high, mapped=mapped)


def _occurs(needle: str, value: JSON) -> bool:
    if isinstance(value, Mapping):
        return any(_occurs(needle, each) for each in value.values())
    if isinstance(value, list | tuple):
        return any(_occurs(needle, each) for each in value)
    return value is not None and needle in str(value).casefold()
