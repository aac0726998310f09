"""What the store keeps of accounts, as values, and how rows become them.

The JSON in a row is written and read here alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from shim.trust.identity import Identity
from shim.trust.names import fold_name


class BindingState(StrEnum):
    """`refused`: the policy says no to the person. `released`: nobody's, until it is claimed."""

    ACTIVE = "active"
    REFUSED = "refused"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class Written:
    """What the shim wrote last of the fields that their owner may change; None: nothing."""

    name: str | None = None
    email: str | None = None


NOTHING_WRITTEN = Written()


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Which account belongs to whom; the columns are explained at `store.schema.BINDINGS`. `id` is 0
    before it is stored. `version` is that of the row that was read: it is written only if it still has it."""

    id: int = 0
    uid: str | None
    navidrome_id: str
    user_name: str
    claimed_name: str
    made: bool
    state: BindingState = BindingState.ACTIVE
    open_door: bool = False
    first_seen: float
    last_seen: float
    identity: Identity
    written: Written = NOTHING_WRITTEN
    version: int = 0

    @property
    def folded_name(self) -> str:
        """The account's name as Navidrome compares it."""
        return fold_name(self.user_name)

    def released(self) -> Binding:
        """The binding after it was unlinked: the account is nobody's, its password to be replaced."""
        return replace(
            self, uid=None, state=BindingState.RELEASED, open_door=True, written=Written()
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
    since: float


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
class Rest:
    """A freed name, given until `until` to nobody but this person or this account."""

    folded_name: str
    navidrome_id: str
    uid: str | None
    until: float


def binding_values(binding: Binding) -> dict[str, object]:
    """A binding as its row's columns, without the row's own number."""
    return {
        "uid": binding.uid,
        "navidrome_id": binding.navidrome_id,
        "user_name": binding.user_name,
        "folded_name": binding.folded_name,
        "claimed_name": binding.claimed_name,
        "made": binding.made,
        "state": str(binding.state),
        "open_door": binding.open_door,
        "first_seen": binding.first_seen,
        "last_seen": binding.last_seen,
        "identity": _identity_text(binding.identity),
        "written": json.dumps({"name": binding.written.name, "email": binding.written.email}),
        "version": binding.version,
    }


def binding_of(row: Any) -> Binding:
    """The binding in a row."""
    written = json.loads(row.written)
    return Binding(
        id=row.id,
        uid=row.uid,
        navidrome_id=row.navidrome_id,
        user_name=row.user_name,
        claimed_name=row.claimed_name,
        made=row.made,
        state=BindingState(row.state),
        open_door=row.open_door,
        first_seen=row.first_seen,
        last_seen=row.last_seen,
        identity=_identity_of(row.identity),
        written=Written(written.get("name"), written.get("email")),
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
        "since": intent.since,
    }


def intent_of(row: Any) -> Intent:
    """The intent in a row."""
    return Intent(
        key=row.key,
        kind=IntentKind(row.kind),
        navidrome_id=row.navidrome_id,
        user_name=row.user_name,
        uid=row.uid,
        created_at=row.created_at,
        owner=row.owner,
        since=row.since,
    )


def _identity_text(identity: Identity) -> str:
    groups = None if identity.groups is None else list(identity.groups)
    said = [identity.username, identity.name, identity.email, groups, identity.uid]
    return json.dumps(said)


def _identity_of(text: str) -> Identity:
    username, name, email, groups, uid = json.loads(text)
    return Identity(username, name, email, None if groups is None else tuple(groups), uid)
