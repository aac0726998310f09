"""The store's account records as values, their conversion from and to rows, and the context of a change.

Only this module writes and reads the JSON in a row.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypedDict

from shim.audit.events import Origin
from shim.proxy.gate import RequestInfo
from shim.trust.identity import Identity
from shim.trust.names import normalize_name


class BindingState(StrEnum):
    """`denied`: the policy denies the person. `unlinked`: the account belongs to no person until it is
    claimed."""

    ACTIVE = "active"
    DENIED = "denied"
    UNLINKED = "unlinked"


@dataclass(frozen=True, slots=True)
class LastWritten:
    """The last values that the shim wrote to the fields that the owner may change; None: not written."""

    name: str | None = None
    email: str | None = None


NOTHING_WRITTEN = LastWritten()


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Which account belongs to which person; `store.schema.BINDINGS` explains the columns. `id` is 0 before
    it is stored. `version` is that of the row that was read: the binding is written only if the row still has
    it."""

    id: int = 0
    uid: str | None
    navidrome_id: str
    user_name: str
    provider_username: str
    created_by_shim: bool
    state: BindingState = BindingState.ACTIVE
    lock_pending: bool = False
    first_seen: float
    last_seen: float
    identity: Identity
    last_written: LastWritten = NOTHING_WRITTEN
    version: int = 0

    @property
    def normalized_name(self) -> str:
        """Return the account's name as Navidrome compares it."""
        return normalize_name(self.user_name)

    def unlinked(self) -> Binding:
        """Return the binding after unlinking: the account belongs to no person, and its password is to be
        replaced."""
        return replace(
            self,
            uid=None,
            state=BindingState.UNLINKED,
            lock_pending=True,
            last_written=LastWritten(),
        )


class IntentKind(StrEnum):
    """The kind of write that the intent announces."""

    CREATE = "create"
    WRITE = "write"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A write to Navidrome that was committed to the store before it was carried out."""

    key: str
    kind: IntentKind
    navidrome_id: str = ""
    user_name: str = ""
    uid: str | None = None
    created_at: str = ""
    owner: str
    started_at: float


@dataclass(frozen=True, slots=True)
class TokenRule:
    """Which Navidrome tokens of the account `navidrome_id` are void: every one while it is `locked`, else
    those that were not issued after `void_before` (seconds since the epoch, by Navidrome's clock)."""

    navidrome_id: str
    locked: bool = False
    void_before: float = 0.0

    def admits(self, issued_at: float) -> bool:
        """Return whether a token that was issued at this time is valid."""
        return not self.locked and issued_at > self.void_before


@dataclass(frozen=True, slots=True)
class NameHold:
    """A freed name, reserved until `until` (seconds since the epoch) for this person or this account."""

    normalized_name: str
    navidrome_id: str
    uid: str | None
    until: float


def binding_values(binding: Binding) -> dict[str, object]:
    """Return a binding as the columns of its row, without the row's number."""
    return {
        "uid": binding.uid,
        "navidrome_id": binding.navidrome_id,
        "user_name": binding.user_name,
        "normalized_name": binding.normalized_name,
        "provider_username": binding.provider_username,
        "created_by_shim": binding.created_by_shim,
        "state": str(binding.state),
        "lock_pending": binding.lock_pending,
        "first_seen": binding.first_seen,
        "last_seen": binding.last_seen,
        "identity": _identity_text(binding.identity),
        "last_written": json.dumps(
            {"name": binding.last_written.name, "email": binding.last_written.email}
        ),
        "version": binding.version,
    }


def binding_from_row(row: Any) -> Binding:
    """Return the binding in a row."""
    last_written = json.loads(row.last_written)
    return Binding(
        id=row.id,
        uid=row.uid,
        navidrome_id=row.navidrome_id,
        user_name=row.user_name,
        provider_username=row.provider_username,
        created_by_shim=row.created_by_shim,
        state=BindingState(row.state),
        lock_pending=row.lock_pending,
        first_seen=row.first_seen,
        last_seen=row.last_seen,
        identity=_identity_from_text(row.identity),
        last_written=LastWritten(last_written.get("name"), last_written.get("email")),
        version=row.version,
    )


def intent_values(intent: Intent) -> dict[str, object]:
    """Return an intent as the columns of its row."""
    return {
        "key": intent.key,
        "kind": str(intent.kind),
        "navidrome_id": intent.navidrome_id,
        "user_name": intent.user_name,
        "uid": intent.uid,
        "created_at": intent.created_at,
        "owner": intent.owner,
        "started_at": intent.started_at,
    }


def intent_from_row(row: Any) -> Intent:
    """Return the intent in a row."""
    return Intent(
        key=row.key,
        kind=IntentKind(row.kind),
        navidrome_id=row.navidrome_id,
        user_name=row.user_name,
        uid=row.uid,
        created_at=row.created_at,
        owner=row.owner,
        started_at=row.started_at,
    )


def _identity_text(identity: Identity) -> str:
    groups = None if identity.groups is None else list(identity.groups)
    fields = [identity.username, identity.name, identity.email, groups, identity.uid]
    return json.dumps(fields)


def _identity_from_text(text: str) -> Identity:
    username, name, email, groups, uid = json.loads(text)
    return Identity(username, name, email, None if groups is None else tuple(groups), uid)


class RequestFields(TypedDict):
    """The fields of an event that name the request which caused it."""

    peer: str | None
    client: str | None
    request_id: str | None


class AuditFields(RequestFields):
    """The fields of an account's event that state its cause."""

    trigger: str
    user: str | None
    uid: str | None
    groups: tuple[str, ...] | None
    actor: str | None
    origin: Origin | None


@dataclass(frozen=True, slots=True)
class Operator:
    """Who does an administrative action: `actor` and `origin` as in `AdminAction`."""

    actor: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class AuditContext:
    """The cause of a change. `trigger` is that of `AccountEvent`; `request_info` is set for a request,
    `operator` for an administrative action."""

    trigger: str
    identity: Identity | None = None
    request_info: RequestInfo | None = None
    operator: Operator | None = None

    def as_fields(self) -> AuditFields:
        """Return the context as fields of an account's event."""
        identity, operator = self.identity, self.operator
        return {
            "trigger": self.trigger,
            "user": None if identity is None else identity.username,
            "uid": None if identity is None else identity.uid,
            "groups": None if identity is None else identity.groups,
            "actor": None if operator is None else operator.actor,
            "origin": None if operator is None else operator.origin,
            **self.request_fields(),
        }

    def request_fields(self) -> RequestFields:
        """Return the fields of the request, None without one."""
        request_info = self.request_info
        if request_info is None:
            return {"peer": None, "client": None, "request_id": None}
        return {
            "peer": request_info.peer,
            "client": request_info.client,
            "request_id": request_info.request_id,
        }
