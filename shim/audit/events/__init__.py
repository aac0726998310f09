"""Audit events: one frozen dataclass per kind.

Events hold plain, bounded values, so that a sink can store them as they are. Each event sanitizes its values
when it is created; callers need not.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import ClassVar, Self

from shim.audit.sanitize import LogValue, clip, loggable_path
from shim.trust.reasons import PathClass, Reason, Verdict

MAX_ITEMS = 32


class Severity(IntEnum):
    """The severity of an event, with the numbers of `logging`."""

    DEBUG = logging.DEBUG
    INFO = logging.INFO
    WARNING = logging.WARNING
    ERROR = logging.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event at `time` (seconds since the epoch)."""

    event: ClassVar[str]
    time: float

    @property
    def severity(self) -> Severity:
        return Severity.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class CoalescedEvent(Event):
    """An event that can occur in floods, so that one event can represent many.

    With a `count` above 1 it is a summary of that many events from `first_time` to `last_time`. They share
    `peer` and `group_key`; the other fields are a sample. `peer` is `MANY` if they had several. The sum of
    all written `count` values is the number of events.
    """

    MANY: ClassVar[str] = "*"

    peer: str
    count: int = 1
    first_time: float | None = None
    last_time: float | None = None

    @property
    def group_key(self) -> tuple[str, ...]:
        """What events must share, besides the peer, to be counted together."""
        return (self.event,)

    def summary(self, count: int, last_time: float, *, many_peers: bool) -> Self:
        """Return a summary of `count` events, with this one as the first and the sample. The last one was at
        `last_time`."""
        peer = self.MANY if many_peers else self.peer
        return replace(
            self, time=last_time, peer=peer, count=count, first_time=self.time, last_time=last_time
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDecision(CoalescedEvent):
    """The verdict and reason of a request.

    `client` is the client's address, None if it is not known. `path` can be the request target; its query is
    removed. `user` is the trusted user name, or else the claimed one. `removed_headers` has only names.
    """

    event: ClassVar[str] = "request_decision"

    request_id: str
    peer_trusted: bool
    client: str | None
    method: str
    path: str
    path_class: PathClass
    verdict: Verdict
    reason: Reason
    status: int
    user: str | None = None
    removed_headers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        set_sanitized(
            self,
            client=clip_optional(self.client),
            method=clip(self.method, 32),
            path=loggable_path(self.path),
            user=clip_optional(self.user),
            removed_headers=clip_items(self.removed_headers),
            notes=clip_items(self.notes),
        )

    @property
    def severity(self) -> Severity:
        is_warning = self.verdict in (Verdict.STRIPPED, Verdict.REJECTED)
        return Severity.WARNING if is_warning else Severity.INFO

    @property
    def group_key(self) -> tuple[str, ...]:
        return self.build_group_key(self.reason, self.path_class)

    @classmethod
    def build_group_key(cls, reason: Reason, path_class: PathClass) -> tuple[str, ...]:
        """Return the group key of an event before it is created."""
        return (cls.event, reason, path_class)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFailed(CoalescedEvent):
    """A request or response failed. `reason` is one of the reasons that `/metrics` counts failures by;
    `status` is what the client got, `bytes_sent` how much of an incomplete response."""

    event: ClassVar[str] = "request_failed"

    request_id: str
    method: str
    path: str
    status: int
    reason: str
    client: str | None = None
    user: str | None = None
    bytes_sent: int | None = None

    def __post_init__(self) -> None:
        set_sanitized(
            self,
            method=clip(self.method, 32),
            path=loggable_path(self.path),
            reason=clip(self.reason),
            client=clip_optional(self.client),
            user=clip_optional(self.user),
        )

    @property
    def severity(self) -> Severity:
        # That a client leaves is no fault of anybody: players do it with each track that is skipped.
        return Severity.INFO if self.reason == "client_left" else Severity.WARNING

    @property
    def group_key(self) -> tuple[str, ...]:
        return (self.event, self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access(Event):
    """One request in the access log. `duration_seconds` is the time from the first byte of the request to the
    last byte of the response. `bytes_sent` counts the bytes to the client. `incomplete` is the reason why the
    response is not complete."""

    event: ClassVar[str] = "access"

    request_id: str
    peer: str
    method: str
    path: str
    status: int
    bytes_sent: int
    duration_seconds: float
    client: str | None = None
    user: str | None = None
    incomplete: str | None = None
    verdict: Verdict
    reason: Reason

    def __post_init__(self) -> None:
        set_sanitized(
            self,
            method=clip(self.method, 32),
            path=loggable_path(self.path),
            duration_seconds=round(self.duration_seconds, 6),
            user=clip_optional(self.user),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    """The shim accepts requests on `listen`, and on `control_listen` for the control plane."""

    event: ClassVar[str] = "started"

    version: str
    listen: str
    control_listen: str
    process: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(Event):
    """The shim accepts no more requests. `trigger` is the name of the signal, or the error."""

    event: ClassVar[str] = "stopped"

    trigger: str
    uptime_seconds: float
    aborted_connections: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationLoaded(Event):
    """The settings in force, as `NAME=value`; of a secret only whether it is set. `summary`: who may sign in,
    who is an admin, which proof is in force."""

    event: ClassVar[str] = "configuration_loaded"

    settings: tuple[str, ...]
    summary: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def severity(self) -> Severity:
        return Severity.WARNING if self.warnings else Severity.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamUp(Event):
    """Navidrome responds. `down_seconds` is the length of the outage, None at the start."""

    event: ClassVar[str] = "upstream_up"

    upstream: str
    down_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamDown(Event):
    """Navidrome stopped responding. `reason` is the error."""

    event: ClassVar[str] = "upstream_down"

    upstream: str
    reason: str

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChanged(Event):
    """A new policy is in force, with `number`.

    `subject` is the part that changed (`whitelist`, `base_path`, …), `added` and `removed` are its entries,
    `detail` is the reason in words. `needs_attention` marks a change that an operator should check.
    """

    event: ClassVar[str] = "policy_changed"

    subject: str
    number: int
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    detail: str = ""
    needs_attention: bool = False

    @property
    def severity(self) -> Severity:
        return Severity.WARNING if self.needs_attention else Severity.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsDropped(Event):
    """`sink` did not write `count` events, because it was too slow or failed."""

    event: ClassVar[str] = "events_dropped"

    sink: str
    count: int

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


def event_fields(event: Event) -> dict[str, LogValue]:
    """Return the event's fields in their fixed order, without `time` and without those that are None."""
    values = ((name, getattr(event, name)) for name in _names(type(event)))
    return {name: value for name, value in values if value is not None}


def event_kinds() -> tuple[str, ...]:
    """Return the kinds of all events whose modules are loaded, sorted."""
    found, classes = set[str](), [Event]
    while classes:
        each = classes.pop()
        # A class with slots is created twice; both have the same kind.
        classes += each.__subclasses__()
        if "event" in vars(each):
            found.add(each.event)
    return tuple(sorted(found))


def clip_optional(text: str | None) -> str | None:
    return None if text is None else clip(text)


def clip_items(items: tuple[str, ...]) -> tuple[str, ...]:
    if len(items) > MAX_ITEMS:
        items = (*items[: MAX_ITEMS - 1], "…")
    return tuple(clip(item, 128) for item in items)


def set_sanitized(event: Event, **values: LogValue) -> None:
    for name, value in values.items():
        object.__setattr__(event, name, value)


_LAST = ("count", "first_time", "last_time")
_NAMES: dict[type[Event], tuple[str, ...]] = {}


def _names(kind: type[Event]) -> tuple[str, ...]:
    known = _NAMES.get(kind)
    if known is None:
        names = [field.name for field in fields(kind) if field.name != "time"]
        last = [name for name in _LAST if name in names]
        known = _NAMES[kind] = (*(name for name in names if name not in _LAST), *last)
    return known
