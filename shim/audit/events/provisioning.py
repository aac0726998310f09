"""Events about accounts: one frozen dataclass per kind.

Each has the account, the identity (name, uid and groups at the provider) and the trigger. No event has a
field that could contain a password or a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shim.audit.events import CoalescedEvent, Event, Origin, Severity, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountEvent(Event):
    """An event about the Navidrome account `account`.

    `trigger`: `request`, `reconcile`, `start` or `admin_action`. `user`, `uid` and `groups` are those of the
    identity, `peer`, `client` and `request_id` those of the request, `actor` and `origin` those of the
    administrative action; None without one.
    """

    stream: ClassVar[Stream] = Stream.CHANGES

    account: str
    trigger: str
    user: str | None = None
    uid: str | None = None
    groups: tuple[str, ...] | None = None
    peer: str | None = None
    client: str | None = None
    request_id: str | None = None
    actor: str | None = None
    origin: Origin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountCreated(AccountEvent):
    """An account was created. `notes` lists parts of the identity that were not used, and why."""

    kind: ClassVar[str] = "account_created"

    navidrome_id: str
    admin: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountChanged(AccountEvent):
    """An account was changed. Each entry of `changes` is `field: old → new`."""

    kind: ClassVar[str] = "account_changed"

    changes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLinked(AccountEvent):
    """An existing account was linked to this identity. `credentials_kept`: its password and tokens were not
    changed. `notes` has more information."""

    kind: ClassVar[str] = "account_linked"

    navidrome_id: str
    admin: bool
    credentials_kept: bool = False
    notes: tuple[str, ...] = ()

    @property
    def severity(self) -> Severity:
        return Severity.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountUnlinked(AccountEvent):
    """An account was unlinked from its identity. Another identity may be linked to it."""

    kind: ClassVar[str] = "account_unlinked"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRebound(AccountEvent):
    """An account was bound to another uid of its user, by `users rebind`. `uid_source` is the uid's source,
    in words."""

    kind: ClassVar[str] = "account_rebound"

    uid_source: str

    @property
    def severity(self) -> Severity:
        return Severity.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLocked(AccountEvent):
    """An account got a random password that its user cannot replace. Its Navidrome tokens are void. `detail`
    is the reason in words."""

    kind: ClassVar[str] = "account_locked"

    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountReadmitted(AccountEvent):
    """An account got a random password that its user can replace. The old password and older tokens are void.
    `detail` is the reason in words."""

    kind: ClassVar[str] = "account_readmitted"

    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountDemotionSkipped(AccountEvent):
    """An account stays an admin although its user's groups do not make it one. `detail` is the reason in
    words."""

    kind: ClassVar[str] = "account_demotion_skipped"

    detail: str

    @property
    def severity(self) -> Severity:
        return Severity.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRenamed(AccountEvent):
    """An account was renamed in Navidrome, not by the shim. `account` is the new name."""

    kind: ClassVar[str] = "account_renamed"

    previous_account: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountBindingRemoved(AccountEvent):
    """An account was deleted in Navidrome, so its binding was removed."""

    kind: ClassVar[str] = "account_binding_removed"

    @property
    def severity(self) -> Severity:
        return Severity.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRecreatedByRace(AccountEvent):
    """A write of the shim recreated an account, without a password, that was deleted at the same moment. The
    shim deleted it again."""

    kind: ClassVar[str] = "account_recreated_by_race"

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountDeniedEvent(CoalescedEvent):
    """An identity gets no account. `reason` is the reason of the decision, `detail` the same in words."""

    kind: ClassVar[str] = "account_denied"
    stream: ClassVar[Stream] = Stream.REQUESTS

    reason: str
    detail: str
    user: str
    uid: str | None
    groups: tuple[str, ...] | None
    request_id: str
    client: str | None = None

    @property
    def severity(self) -> Severity:
        return Severity.WARNING

    @property
    def group_key(self) -> tuple[str, ...]:
        return (self.kind, self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisioningFailed(CoalescedEvent):
    """A change to an account failed, with Navidrome's error. `user` is absent if it concerns no single
    account, `peer`, `client` and `request_id` without a request."""

    kind: ClassVar[str] = "provisioning_failed"
    stream: ClassVar[Stream] = Stream.CHANGES

    detail: str
    user: str | None = None
    uid: str | None = None
    groups: tuple[str, ...] | None = None
    client: str | None = None
    request_id: str | None = None
    allowed_stale: bool = False

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminCreated(Event):
    """The shim created its own account. `first`: it is the first account of an empty server."""

    kind: ClassVar[str] = "admin_created"
    stream: ClassVar[Stream] = Stream.CHANGES

    account: str
    first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnAccountSecured(Event):
    """An existing Navidrome account with the shim's name, which this database did not create, got a new
    password, and its tokens became void."""

    kind: ClassVar[str] = "own_account_secured"
    stream: ClassVar[Stream] = Stream.CHANGES

    account: str

    @property
    def severity(self) -> Severity:
        return Severity.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisioningReady(Event):
    """Accounts can be managed."""

    kind: ClassVar[str] = "provisioning_ready"
    stream: ClassVar[Stream] = Stream.CHANGES

    account_count: int
    binding_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisioningUnavailable(Event):
    """Accounts cannot be managed. `detail` is the reason, `remedy` what to do."""

    kind: ClassVar[str] = "provisioning_unavailable"
    stream: ClassVar[Stream] = Stream.CHANGES

    detail: str
    remedy: str | None = None

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class EmptyPasswordsFound(Event):
    """An empty password opens these accounts."""

    kind: ClassVar[str] = "empty_passwords_found"
    stream: ClassVar[Stream] = Stream.CHANGES

    accounts: tuple[str, ...]

    @property
    def severity(self) -> Severity:
        return Severity.ERROR
