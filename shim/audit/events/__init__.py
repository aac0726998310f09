"""What can be written down: one frozen dataclass per kind of event.

Events hold plain values only, each bounded, so that a sink may store them as they are. What must not
be written is taken out here, when an event is made, and not left to its makers.
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
    """How loud an event is; the numbers are those of `logging`."""

    DEBUG = logging.DEBUG
    INFO = logging.INFO
    WARNING = logging.WARNING
    ERROR = logging.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened at `time` (seconds since the epoch)."""

    event: ClassVar[str]
    time: float

    @property
    def severity(self) -> Severity:
        return Severity.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class CoalescedEvent(Event):
    """An event that comes in floods, and may stand for many of its kind.

    With a `count` above 1 it is a summary of that many, seen from `first_time` to `last_time`. Then its
    `peer` and `kin` are those of all of them and the rest is a sample; `peer` is `MANY` where they had
    several. The sum of `count` over what was written is the number of times that it happened.
    """

    MANY: ClassVar[str] = "*"

    peer: str
    count: int = 1
    first_time: float | None = None
    last_time: float | None = None

    @property
    def group_key(self) -> tuple[str, ...]:
        """What events have to share, beside the peer, to be counted together."""
        return (self.event,)

    def summary(self, count: int, last_time: float, *, many_peers: bool) -> Self:
        """This event as the first and the sample of `count`; the last one was at `last_time`."""
        peer = self.MANY if many_peers else self.peer
        return replace(
            self, time=last_time, peer=peer, count=count, first_time=self.time, last_time=last_time
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDecision(CoalescedEvent):
    """What became of a request, and why.

    `client` is the address that was worked out for the client, None where there is none. `path` may be
    given as the request's target. `user` is the name that was believed, or else the one that was
    claimed. `removed_headers` are names only.
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
        """The kin of an event that is not made yet."""
        return (cls.event, reason, path_class)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFailed(CoalescedEvent):
    """A request that Navidrome did not answer, or whose response did not become whole: `bytes_sent` of it
    were written then. `reason` is one of the words that the data plane counts failures by, `status` what the
    client got."""

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
    """One answered request: the access log. `duration_seconds` runs from the request's first byte to the
    response's last, `bytes_sent` is what was written to the client. `incomplete` says why the response did
    not become whole."""

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
    """The shim takes requests: on `listen`, and on `control_listen` for the control plane."""

    event: ClassVar[str] = "started"

    version: str
    listen: str
    control_listen: str
    process: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(Event):
    """The shim takes no more requests; `cause` is the signal's name or the fault."""

    event: ClassVar[str] = "stopped"

    trigger: str
    uptime_seconds: float
    aborted_connections: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationLoaded(Event):
    """What the shim goes by from now on: `NAME=value` each, a secret only as set or not set. `summary`: who
    may sign in, who is an admin, which proof is in force."""

    event: ClassVar[str] = "configuration_loaded"

    settings: tuple[str, ...]
    summary: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def severity(self) -> Severity:
        return Severity.WARNING if self.warnings else Severity.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamUp(Event):
    """Navidrome answers; `down_seconds` is how long it did not, None at the start."""

    event: ClassVar[str] = "upstream_up"

    upstream: str
    down_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamDown(Event):
    """Navidrome does not answer any more, for `reason`."""

    event: ClassVar[str] = "upstream_down"

    upstream: str
    reason: str

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChanged(Event):
    """Another policy is in force, with `number`.

    `subject` says what of it changed (`whitelist`, `base_path`, …), `added` and `removed` what came and
    went, `detail` why, in a sentence. `alarm` marks a change that somebody should look at.
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
    """What `sink` did not get to write, since it was too slow or failed: that many events."""

    event: ClassVar[str] = "events_dropped"

    sink: str
    count: int

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


def event_fields(event: Event) -> dict[str, LogValue]:
    """The event's fields in their fixed order, without `time` and without those that are None."""
    values = ((name, getattr(event, name)) for name in _names(type(event)))
    return {name: value for name, value in values if value is not None}


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
