"""What the store keeps of accounts, as values, and how rows become them; and why something is done to one.

The JSON in a row is written and read here alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypedDict

from shim.proxy.gate import RequestInfo
from shim.trust.identity import Identity
from shim.trust.names import normalize_name


class BindingState(StrEnum):
    """`refused`: the policy says no to the person. `released`: nobody's, until it is claimed."""

    ACTIVE = "active"
    DENIED = "denied"
    UNLINKED = "unlinked"


@dataclass(frozen=True, slots=True)
class LastWritten:
    """What the shim wrote last of the fields that their owner may change; None: nothing."""

    name: str | None = None
    email: str | None = None


NOTHING_WRITTEN = LastWritten()


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Which account belongs to whom; the columns are explained at `store.schema.BINDINGS`. `id` is 0
    before it is stored. `version` is that of the row that was read: it is written only if it still has it."""

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
        """The account's name as Navidrome compares it."""
        return normalize_name(self.user_name)

    def unlinked(self) -> Binding:
        """The binding after it was unlinked: the account is nobody's, its password to be replaced."""
        return replace(
            self,
            uid=None,
            state=BindingState.UNLINKED,
            lock_pending=True,
            last_written=LastWritten(),
        )


class IntentKind(StrEnum):
    """What was about to be done."""

    CREATE = "create"
    WRITE = "write"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A write to Navidrome that was committed to the store before it was made."""

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
        """Return whether a token that was issued at this time may pass."""
        return not self.locked and issued_at > self.void_before


@dataclass(frozen=True, slots=True)
class NameHold:
    """A freed name, given until `until` to nobody but this person or this account."""

    normalized_name: str
    navidrome_id: str
    uid: str | None
    until: float


def binding_values(binding: Binding) -> dict[str, object]:
    """A binding as its row's columns, without the row's own number."""
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
    """The binding in a row."""
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
    """An intent as its row's columns."""
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
    """The intent in a row."""
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


class AuditFields(TypedDict):
    """The fields of an account's event that tell of its occasion."""

    trigger: str
    name: str | None
    uid: str | None
    groups: tuple[str, ...] | None
    peer: str | None
    request_id: str | None


@dataclass(frozen=True, slots=True)
class AuditContext:
    """`cause` is one of the words of `AccountEvent`; `asker` is set for a request."""

    trigger: str
    identity: Identity | None = None
    request_info: RequestInfo | None = None

    def as_fields(self) -> AuditFields:
        """It as fields of an event."""
        identity, request_info = self.identity, self.request_info
        return {
            "trigger": self.trigger,
            "name": None if identity is None else identity.username,
            "uid": None if identity is None else identity.uid,
            "groups": None if identity is None else identity.groups,
            "peer": None if request_info is None else request_info.peer,
            "request_id": None if request_info is None else request_info.request_id,
        }
