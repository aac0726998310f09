"""Events about the stored trail itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shim.audit.events import Event, Severity, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainStarted(Event):
    """A chain of hashes begins, in the stream of this event, with the key `key_id` (absent: without a key).
    The last row before it has `last_index` and `last_hash`."""

    kind: ClassVar[str] = "audit_chain_started"
    stream: ClassVar[Stream] = Stream.CHANGES
    in_both_streams: ClassVar[bool] = True

    last_index: int
    last_hash: str
    key_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsRemoved(Event):
    """The rows from `first_index` to `last_index` of this event's stream were removed. `last_hash` is the
    hash of the last one. `reason` is `age`, `size` or `prune`."""

    kind: ClassVar[str] = "audit_rows_removed"
    stream: ClassVar[Stream] = Stream.CHANGES
    in_both_streams: ClassVar[bool] = True

    reason: str
    first_index: int
    last_index: int
    last_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(Event):
    """The last row of `checked_stream` in the audit database `database`. It is in the log only: `audit
    verify` compares a copy of the log with the database."""

    kind: ClassVar[str] = "audit_checkpoint"
    stream: ClassVar[Stream] = Stream.CHANGES
    stored: ClassVar[bool] = False

    database: str
    checked_stream: Stream
    last_index: int
    last_hash: str
    key_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailReplaced(Event):
    """The audit database could not be used and was replaced by a new one. `detail` says why, and where the
    old one is."""

    kind: ClassVar[str] = "audit_database_replaced"
    stream: ClassVar[Stream] = Stream.CHANGES

    detail: str

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailUnavailable(Event):
    """No event was stored for ten seconds. `detail` is the error. With `SHIM_AUDIT_FAIL_MODE=closed` no
    identity is accepted until events can be stored again."""

    kind: ClassVar[str] = "audit_unavailable"
    stream: ClassVar[Stream] = Stream.CHANGES

    detail: str

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailAvailable(Event):
    """Events are stored again."""

    kind: ClassVar[str] = "audit_available"
    stream: ClassVar[Stream] = Stream.CHANGES

    down_seconds: float
