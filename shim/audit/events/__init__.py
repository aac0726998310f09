"""Audit events: one frozen dataclass per kind.

Events hold plain, bounded and printable values, so that a sink can store and show them as they are. Each
event sanitizes its values when it is created; callers need not. `field_table.py` has the meaning of each
field.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum, StrEnum
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar, Final, Literal, Self, TypeAlias, get_type_hints

from shim.audit.events.field_table import FIELDS
from shim.audit.sanitize import clip, loggable_path, timestamp
from shim.trust.reasons import PathClass, Reason, Verdict

JSON: TypeAlias = str | int | float | bool | list[str]
Origin: TypeAlias = Literal["console", "api", "command", "signal"]
ActionResult: TypeAlias = Literal["done", "refused", "failed"]

SCHEMA: Final = 1
# Two processes of one host differ, and so do two starts of one container, which have the same process id.
INSTANCE: Final = f"{socket.gethostname()[:64]}/{os.getpid()}/{secrets.token_hex(4)}"


class Severity(IntEnum):
    """The severity of an event, with the numbers of `logging`."""

    DEBUG = logging.DEBUG
    INFO = logging.INFO
    WARNING = logging.WARNING
    ERROR = logging.ERROR

    @property
    def label(self) -> str:
        """The severity as a record has it."""
        return _LABELS[self]


_LABELS = {severity: severity.name.lower() for severity in Severity}


class Stream(StrEnum):
    """A stream of the audit trail. A flood of requests cannot remove changes from the trail, because each
    stream has its own limits."""

    REQUESTS = "requests"
    CHANGES = "changes"


def new_id() -> str:
    """Return a UUIDv7 (RFC 9562 §5.7). The ids of one process sort by time, to a quarter of a microsecond."""
    now = time.time_ns()
    milliseconds, rest = divmod(now, 1_000_000)
    fraction, random = rest * 4096 // 1_000_000, secrets.token_hex(8)
    # The variant takes the two upper bits of the random part.
    variant = "89ab"[int(random[0], 16) & 3]
    text = f"{milliseconds:012x}"
    return f"{text[:8]}-{text[8:]}-7{fraction:03x}-{variant}{random[1:4]}-{random[4:]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event at `time` (seconds since the epoch). `stored`: it belongs into the audit trail, not only into
    the log."""

    kind: ClassVar[str]
    stream: ClassVar[Stream]
    stored: ClassVar[bool] = True
    # Events of the trail itself are in the stream that they are about.
    in_both_streams: ClassVar[bool] = False

    time: float
    id: str = field(default_factory=new_id, compare=False)

    def __post_init__(self) -> None:
        _layout(type(self)).sanitize(self)

    @property
    def severity(self) -> Severity:
        return Severity.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class CoalescedEvent(Event):
    """An event that can occur in floods, so that one event can represent many.

    With a `count` above 1 it is a summary of that many events from `first_time` to `last_time`. They share
    `peer` and `group_key`; the other fields are a sample. `peer` is `MANY` if they had several, and None
    without a request. The sum of all written `count` values is the number of events.
    """

    MANY: ClassVar[str] = "*"

    peer: str | None = None
    count: int = 1
    first_time: float | None = None
    last_time: float | None = None

    @property
    def group_key(self) -> tuple[str, ...]:
        """What events must share, besides the peer, to be counted together."""
        return (self.kind,)

    def summary(self, count: int, last_time: float, *, many_peers: bool) -> Self:
        """Return a summary of `count` events, with this one as the first and the sample. The last one was at
        `last_time`."""
        return replace(
            self,
            id=new_id(),
            time=last_time,
            peer=self.MANY if many_peers else self.peer,
            count=count,
            first_time=self.time,
            last_time=last_time,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEvent(CoalescedEvent):
    """An event about a request. `path` can be the request target; its query is removed. `user` and `uid` are
    those of the trusted identity, `claimed_user` is the name of one that was not trusted. `device` is the one
    whose password the request has."""

    stream: ClassVar[Stream] = Stream.REQUESTS

    request_id: str
    method: str
    path: str
    client: str | None = None
    user: str | None = None
    claimed_user: str | None = None
    account: str | None = None
    uid: str | None = None
    device: str | None = None
    device_name: str | None = None
    user_agent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDecision(RequestEvent):
    """A request was stripped or rejected. `removed_headers` has only names."""

    kind: ClassVar[str] = "request_decision"

    peer_trusted: bool
    path_class: PathClass
    verdict: Verdict
    reason: Reason
    status: int
    removed_headers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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
        return (cls.kind, reason, path_class)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFailed(RequestEvent):
    """A request or response failed. `reason` is one of the reasons that `/metrics` counts failures by;
    `status` is what the client got. `bytes_sent` is the size of the part of an incomplete response that was
    sent."""

    kind: ClassVar[str] = "request_failed"

    status: int
    reason: str
    bytes_sent: int | None = None

    @property
    def severity(self) -> Severity:
        # That a client leaves is no fault of anybody: players do it with each track that is skipped.
        return Severity.INFO if self.reason == "client_left" else Severity.WARNING

    @property
    def group_key(self) -> tuple[str, ...]:
        return (self.kind, self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentitySeen(RequestEvent):
    """An identity was trusted, for the first time after an hour without a request from this client address.
    `reason` is the proof."""

    kind: ClassVar[str] = "identity_seen"

    path_class: PathClass
    verdict: Verdict
    reason: Reason

    @property
    def group_key(self) -> tuple[str, ...]:
        return (self.kind, self.uid or self.user or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access(Event):
    """One request in the access log, with `SHIM_ACCESS_LOG=true`. It is in the log only."""

    kind: ClassVar[str] = "access"
    stream: ClassVar[Stream] = Stream.REQUESTS
    stored: ClassVar[bool] = False

    request_id: str
    peer: str
    method: str
    path: str
    path_class: PathClass
    verdict: Verdict
    reason: Reason
    status: int
    bytes_sent: int
    duration_seconds: float
    client: str | None = None
    user: str | None = None
    claimed_user: str | None = None
    account: str | None = None
    uid: str | None = None
    device: str | None = None
    device_name: str | None = None
    user_agent: str | None = None
    incomplete: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    """The shim accepts requests on `listen`, and on `control_listen` for the control plane."""

    kind: ClassVar[str] = "started"
    stream: ClassVar[Stream] = Stream.CHANGES

    version: str
    listen: str
    control_listen: str
    process: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(Event):
    """The shim accepts no more requests. `trigger` is the name of the signal, or the error."""

    kind: ClassVar[str] = "stopped"
    stream: ClassVar[Stream] = Stream.CHANGES

    trigger: str
    uptime_seconds: float
    aborted_connections: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationLoaded(Event):
    """The settings in force, after a start or a reload. `changes` are the settings that a reload applied.
    `actor` and `origin` are those of the reload."""

    kind: ClassVar[str] = "configuration_loaded"
    stream: ClassVar[Stream] = Stream.CHANGES

    trigger: str
    settings: tuple[str, ...]
    changes: tuple[str, ...] = ()
    actor: str | None = None
    origin: Origin | None = None
    summary: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def severity(self) -> Severity:
        return Severity.WARNING if self.warnings else Severity.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadRejected(Event):
    """A reload failed because the new settings are invalid. The old ones stay in force."""

    kind: ClassVar[str] = "reload_rejected"
    stream: ClassVar[Stream] = Stream.CHANGES

    faults: tuple[str, ...]
    actor: str | None = None
    origin: Origin | None = None

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


@dataclass(frozen=True, slots=True)
class Operator:
    """Who does an administrative action: `actor`, `origin` and `client` as in `AdminAction`."""

    actor: str
    origin: Origin
    client: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlTokenRejected(CoalescedEvent):
    """A request to the control plane had another token than `SHIM_CONTROL_TOKEN`. `reason` is `wrong_token`,
    or `too_many_failures` if the address had sent too many wrong ones before."""

    kind: ClassVar[str] = "control_token_rejected"
    stream: ClassVar[Stream] = Stream.REQUESTS

    method: str
    path: str
    path_class: PathClass
    reason: str
    status: int
    client: str | None = None
    user_agent: str | None = None

    @property
    def severity(self) -> Severity:
        return Severity.WARNING

    @property
    def group_key(self) -> tuple[str, ...]:
        return (self.kind, self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminAction(Event):
    """An administrative action through the console, the API or a command. `peer` and `client` are set if it
    came over HTTP."""

    kind: ClassVar[str] = "admin_action"
    stream: ClassVar[Stream] = Stream.CHANGES

    action: str
    actor: str
    origin: Origin
    result: ActionResult = "done"
    target: str | None = None
    detail: str | None = None
    changes: tuple[str, ...] = ()
    peer: str | None = None
    client: str | None = None

    @property
    def severity(self) -> Severity:
        return Severity.INFO if self.result == "done" else Severity.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamUp(Event):
    """Navidrome responds. `down_seconds` is the length of the outage, absent at the start."""

    kind: ClassVar[str] = "upstream_up"
    stream: ClassVar[Stream] = Stream.CHANGES

    upstream: str
    down_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamDown(Event):
    """Navidrome stopped responding. `detail` is the error."""

    kind: ClassVar[str] = "upstream_down"
    stream: ClassVar[Stream] = Stream.CHANGES

    upstream: str
    detail: str

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChanged(Event):
    """A new policy is in force. `subject` is the part that changed (`whitelist`, `base_path`, …), `added` and
    `removed` are its entries, `detail` is the reason in words."""

    kind: ClassVar[str] = "policy_changed"
    stream: ClassVar[Stream] = Stream.CHANGES

    subject: str
    policy_number: int
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    detail: str | None = None
    needs_attention: bool = False

    @property
    def severity(self) -> Severity:
        return Severity.WARNING if self.needs_attention else Severity.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsDropped(Event):
    """`sink` did not write `dropped` events, because it was too slow or failed."""

    kind: ClassVar[str] = "events_dropped"
    stream: ClassVar[Stream] = Stream.CHANGES

    sink: str
    dropped: int

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


def to_record(event: Event) -> dict[str, JSON]:
    """Return the event as the JSON object that the log and the audit trail have, in the order of `FIELDS` and
    without the fields that are None."""
    record: dict[str, JSON] = {
        "kind": event.kind,
        "severity": event.severity.label,
        "time": timestamp(event.time),
        "schema": SCHEMA,
        "id": event.id,
        "instance": INSTANCE,
        "stream": event.stream.value,
    }
    layout = _layout(type(event))
    for name, convert, value in zip(
        layout.names, layout.converters, layout.read(event), strict=False
    ):
        if value is not None:
            record[name] = value if convert is None else convert(value)
    return record


def field_types(kind: type[Event]) -> dict[str, Any]:
    """Return the types of the fields of a kind of event, in the order of a record."""
    hints = get_type_hints(kind)
    names = {one.name for one in fields(kind)}
    assert names <= FIELDS.keys(), f"{kind.kind}: describe the fields in FIELDS"
    return {name: hints[name] for name in FIELDS if name in names}


class _Layout:
    """How the values of one kind of event are sanitized and converted. It is compiled once for each kind,
    because the access log makes an event of each request."""

    __slots__ = ("converters", "max_lengths", "names", "read", "read_texts", "sanitizers", "texts")

    def __init__(self, kind: type[Event]) -> None:
        converters: dict[str, Callable[[Any], JSON] | None] = {}
        self.sanitizers: list[tuple[str, Callable[[Any], object]]] = []
        texts: dict[str, int] = {}
        for name, hint in field_types(kind).items():
            if name in ("time", "id"):
                continue
            limits = FIELDS[name]
            converters[name] = None
            if name == "path":
                self.sanitizers.append((name, loggable_path))
            elif name in ("first_time", "last_time"):
                converters[name] = timestamp
            elif hint in (str, str | None):
                texts[name] = limits.max_length
            elif hint in (tuple[str, ...], tuple[str, ...] | None):
                clip_all = partial(
                    _clip_items, max_items=limits.max_items, max_length=limits.max_length
                )
                self.sanitizers.append((name, clip_all))
                converters[name] = list
            elif isinstance(hint, type) and issubclass(hint, StrEnum):
                converters[name] = str
            elif hint in (float, float | None):
                converters[name] = _round
        self.names, self.converters = tuple(converters), tuple(converters.values())
        self.texts, self.max_lengths = tuple(texts), tuple(texts.values())
        # With two names or more, the getter returns a tuple.
        self.read = attrgetter(*self.names, "id")
        self.read_texts = attrgetter(*self.texts, "id", "id")

    def sanitize(self, event: Event) -> None:
        """Replace the values of the event that are too long, or not printable."""
        for name, max_length, value in zip(
            self.texts, self.max_lengths, self.read_texts(event), strict=False
        ):
            if value is not None and (len(value) > max_length or not value.isprintable()):
                object.__setattr__(event, name, clip(value, max_length))
        for name, sanitize in self.sanitizers:
            value = getattr(event, name)
            if value:
                object.__setattr__(event, name, sanitize(value))


_LAYOUTS: dict[type[Event], _Layout] = {}


def _layout(kind: type[Event]) -> _Layout:
    known = _LAYOUTS.get(kind)
    if known is None:
        known = _LAYOUTS[kind] = _Layout(kind)
    return known


def _round(seconds: float) -> float:
    return round(seconds, 6)


def _clip_items(items: tuple[str, ...], *, max_items: int, max_length: int) -> tuple[str, ...]:
    if len(items) > max_items:
        items = (*items[: max_items - 1], "…")
    return tuple([clip(item, max_length) for item in items])
