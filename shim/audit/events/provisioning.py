"""What happened to accounts: one frozen dataclass per kind of event.

Each says which account, for whom (the provider's name, uid and groups) and on what occasion. No event has
a field that a password or a token could be in.
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
    """Something that happened to the Navidrome account `account`.

    `cause`: `request`, `reconcile`, `start` or `command`. `name`, `uid` and `groups` are the identity's,
    `peer` and `request_id` the request's, None where there was none.
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
    """An account was made. `notes` say what of the identity was not taken over, and why."""

    event: ClassVar[str] = "account_created"

    navidrome_id: str
    admin: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountChanged(AccountEvent):
    """An account was changed; `changes` has `field: old → new` each."""

    event: ClassVar[str] = "account_changed"

    changes: tuple[str, ...]

    def __post_init__(self) -> None:
        AccountEvent.__post_init__(self)
        set_sanitized(self, changes=clip_items(self.changes))


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLinked(AccountEvent):
    """An account that was there already belongs to this identity from now on. `credentials_kept`: its
    password and its tokens are as they were. `notes` say what else is to be known."""

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
    """An account belongs to nobody at the provider any more, until it is claimed again."""

    event: ClassVar[str] = "account_unlinked"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLocked(AccountEvent):
    """An account got a password that nobody knows, which ends its own and its Subsonic tokens; `why`. Its
    Navidrome tokens are void."""

    event: ClassVar[str] = "account_locked"

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountReadmitted(AccountEvent):
    """An account got a password that nobody knows and that its owner may replace; `why`. The old password
    and tokens issued before are void."""

    event: ClassVar[str] = "account_readmitted"

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRenamed(AccountEvent):
    """An account was renamed in Navidrome by somebody else; `account` is the new name."""

    event: ClassVar[str] = "account_renamed"

    previous_name: str

    def __post_init__(self) -> None:
        AccountEvent.__post_init__(self)
        set_sanitized(self, previous_name=clip(self.previous_name))


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountBindingRemoved(AccountEvent):
    """An account is gone from Navidrome, so its binding is too."""

    event: ClassVar[str] = "account_binding_removed"

    @property
    def severity(self) -> Severity:
        return Severity.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRecreatedByRace(AccountEvent):
    """A write met a deletion and brought the account back without a password: it was deleted again."""

    event: ClassVar[str] = "account_recreated_by_race"

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountDeniedEvent(CoalescedEvent):
    """An identity gets no account: `reason` is the decision's word, `detail` a sentence."""

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
    """What was to be done for an identity could not be; `detail` says what Navidrome said. `name` is
    empty where it was about no one account, `peer` is `-` where no request asked."""

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
    """The shim made an account of its own: the first of an empty server, or beside another admin's."""

    event: ClassVar[str] = "admin_created"

    account: str
    first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnAccountSecured(Event):
    """An existing Navidrome account of the shim's name, which this database did not create, got a new
    password and its tokens became void."""

    event: ClassVar[str] = "own_account_secured"

    account: str

    @property
    def severity(self) -> Severity:
        return Severity.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisioningReady(Event):
    """Navidrome's accounts are known: that many, of which so many are bound."""

    event: ClassVar[str] = "provisioning_ready"

    accounts: int
    bindings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisioningUnavailable(Event):
    """No account can be looked after: why, and what to do."""

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
    """Accounts of the server that an empty password opens."""

    event: ClassVar[str] = "empty_passwords_found"

    accounts: tuple[str, ...]

    def __post_init__(self) -> None:
        set_sanitized(self, accounts=clip_items(self.accounts))

    @property
    def severity(self) -> Severity:
        return Severity.ERROR
