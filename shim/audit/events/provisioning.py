"""Events about accounts: one frozen dataclass per kind.

Each has the account, the identity (name, uid and groups at the provider) and the trigger. No event has a
field that could contain a password or a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shim.audit.events import (
    CoalescedEvent,
    Event,
    Severity,
    clip_items,
    clip_optional,
    set_sanitized,
)
from shim.audit.sanitize import clip


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountEvent(Event):
    """An event about the Navidrome account `account`.

    `trigger`: `request`, `reconcile`, `start` or `command`. `name`, `uid` and `groups` are those of the
    identity, `peer` and `request_id` those of the request; None without one.
    """

    account: str
    trigger: str
    name: str | None = None
    uid: str | None = None
    groups: tuple[str, ...] | None = None
    peer: str | None = None
    request_id: str | None = None

    def __post_init__(self) -> None:
        groups = None if self.groups is None else clip_items(self.groups)
        set_sanitized(
            self,
            account=clip(self.account),
            name=clip_optional(self.name),
            uid=clip_optional(self.uid),
            groups=groups,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountCreated(AccountEvent):
    """An account was created. `notes` lists parts of the identity that were not used, and why."""

    event: ClassVar[str] = "account_created"

    navidrome_id: str
    admin: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountChanged(AccountEvent):
    """An account was changed. Each entry of `changes` is `field: old → new`."""

    event: ClassVar[str] = "account_changed"

    changes: tuple[str, ...]

    def __post_init__(self) -> None:
        AccountEvent.__post_init__(self)
        set_sanitized(self, changes=clip_items(self.changes))


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLinked(AccountEvent):
    """An existing account was linked to this identity. `credentials_kept`: its password and tokens were not
    changed. `notes` has more information."""

    event: ClassVar[str] = "account_linked"

    navidrome_id: str
    admin: bool
    credentials_kept: bool = False
    notes: tuple[str, ...] = ()

    @property
    def severity(self) -> Severity:
        return Severity.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountUnlinked(AccountEvent):
    """An account was unlinked from its identity. Another identity may claim it."""

    event: ClassVar[str] = "account_unlinked"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRebound(AccountEvent):
    """An account was bound to another uid of its user, by `users rebind`. `uid_source` is the uid's source,
    in words."""

    event: ClassVar[str] = "account_rebound"

    uid_source: str

    @property
    def severity(self) -> Severity:
        return Severity.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLocked(AccountEvent):
    """An account got a random password that its user cannot replace. Its Navidrome tokens are void. `reason`
    is the reason in words."""

    event: ClassVar[str] = "account_locked"

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountReadmitted(AccountEvent):
    """An account got a random password that its user can replace. The old password and older tokens are void.
    `reason` is the reason in words."""

    event: ClassVar[str] = "account_readmitted"

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRenamed(AccountEvent):
    """An account was renamed in Navidrome, not by the shim. `account` is the new name."""

    event: ClassVar[str] = "account_renamed"

    previous_name: str

    def __post_init__(self) -> None:
        AccountEvent.__post_init__(self)
        set_sanitized(self, previous_name=clip(self.previous_name))


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountBindingRemoved(AccountEvent):
    """An account was deleted in Navidrome, so its binding was removed."""

    event: ClassVar[str] = "account_binding_removed"

    @property
    def severity(self) -> Severity:
        return Severity.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRecreatedByRace(AccountEvent):
    """A write met a deletion and recreated the account without a password. The shim deleted it again."""

    event: ClassVar[str] = "account_recreated_by_race"

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountDeniedEvent(CoalescedEvent):
    """An identity gets no account. `reason` is the reason of the decision, `detail` the same in words."""

    event: ClassVar[str] = "account_denied"

    reason: str
    detail: str
    name: str
    uid: str | None
    groups: tuple[str, ...] | None
    request_id: str

    def __post_init__(self) -> None:
        groups = None if self.groups is None else clip_items(self.groups)
        set_sanitized(
            self,
            detail=clip(self.detail),
            name=clip(self.name),
            uid=clip_optional(self.uid),
            groups=groups,
        )

    @property
    def severity(self) -> Severity:
        return Severity.WARNING

    @property
    def group_key(self) -> tuple[str, ...]:
        return (self.event, self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisioningFailed(CoalescedEvent):
    """A change to an account failed. `detail` has Navidrome's error. `name` is empty if it concerns no single
    account; `peer` is `-` without a request."""

    event: ClassVar[str] = "provisioning_failed"

    detail: str
    name: str = ""
    uid: str | None = None
    groups: tuple[str, ...] | None = None
    request_id: str = ""
    allowed_stale: bool = False

    def __post_init__(self) -> None:
        groups = None if self.groups is None else clip_items(self.groups)
        set_sanitized(
            self,
            detail=clip(self.detail, 400),
            name=clip(self.name),
            uid=clip_optional(self.uid),
            groups=groups,
        )

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminCreated(Event):
    """The shim created its own account. `first`: it is the first account of an empty server."""

    event: ClassVar[str] = "admin_created"

    account: str
    first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnAccountSecured(Event):
    """An existing Navidrome account with the shim's name, which this database did not create, got a new
    password, and its tokens became void."""

    event: ClassVar[str] = "own_account_secured"

    account: str

    @property
    def severity(self) -> Severity:
        return Severity.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisioningReady(Event):
    """Accounts can be managed. `accounts` and `bindings` are their numbers."""

    event: ClassVar[str] = "provisioning_ready"

    accounts: int
    bindings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisioningUnavailable(Event):
    """Accounts cannot be managed. `detail` is the reason, `remedy` what to do."""

    event: ClassVar[str] = "provisioning_unavailable"

    detail: str
    remedy: str | None = None

    def __post_init__(self) -> None:
        set_sanitized(self, detail=clip(self.detail, 400))

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class EmptyPasswordsFound(Event):
    """An empty password opens these accounts."""

    event: ClassVar[str] = "empty_passwords_found"

    accounts: tuple[str, ...]

    def __post_init__(self) -> None:
        set_sanitized(self, accounts=clip_items(self.accounts))

    @property
    def severity(self) -> Severity:
        return Severity.ERROR
