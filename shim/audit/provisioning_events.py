"""What happened to accounts: one frozen dataclass per kind of event.

Each says which account, for whom (the provider's name, uid and groups) and on what occasion. No event has
a field that a password or a token could be in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shim.audit.events import Event, Repeatable, Severity, bound, clip_items, clip_optional
from shim.audit.plain import clip


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountEvent(Event):
    """Something that happened to the Navidrome account `account`.

    `cause`: `request`, `reconcile`, `start` or `command`. `name`, `uid` and `groups` are the identity's,
    `peer` and `request_id` the request's, None where there was none.
    """

    account: str
    cause: str
    name: str | None = None
    uid: str | None = None
    groups: tuple[str, ...] | None = None
    peer: str | None = None
    request_id: str | None = None

    def __post_init__(self) -> None:
        groups = None if self.groups is None else clip_items(self.groups)
        bound(
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
        bound(self, changes=clip_items(self.changes))


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLinked(AccountEvent):
    """An account that was there already belongs to this identity from now on. `password_kept`: its password
    and its tokens are as they were. `notes` say what else is to be known."""

    event: ClassVar[str] = "account_linked"

    navidrome_id: str
    admin: bool
    password_kept: bool = False
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

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountReadmitted(AccountEvent):
    """An account got a password that nobody knows and that its owner may replace; `why`. The old password
    and tokens issued before are void."""

    event: ClassVar[str] = "account_readmitted"

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRenamed(AccountEvent):
    """An account was renamed in Navidrome by somebody else; `account` is the new name."""

    event: ClassVar[str] = "account_renamed"

    old_name: str

    def __post_init__(self) -> None:
        AccountEvent.__post_init__(self)
        bound(self, old_name=clip(self.old_name))


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountForgotten(AccountEvent):
    """An account is gone from Navidrome, so its binding is too."""

    event: ClassVar[str] = "account_forgotten"

    @property
    def severity(self) -> Severity:
        return Severity.WARNING


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRisen(AccountEvent):
    """A write met a deletion and brought the account back without a password: it was deleted again."""

    event: ClassVar[str] = "account_risen"

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRefused(Repeatable):
    """An identity gets no account: `reason` is the decision's word, `detail` a sentence."""

    event: ClassVar[str] = "account_refused"

    reason: str
    detail: str
    name: str
    uid: str | None
    groups: tuple[str, ...] | None
    request_id: str

    def __post_init__(self) -> None:
        groups = None if self.groups is None else clip_items(self.groups)
        bound(
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
    def kin(self) -> tuple[str, ...]:
        return (self.event, self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountFailed(Repeatable):
    """What was to be done for an identity could not be; `detail` says what Navidrome said. `name` is
    empty where it was about no one account, `peer` is `-` where no request asked."""

    event: ClassVar[str] = "account_failed"

    detail: str
    name: str = ""
    uid: str | None = None
    groups: tuple[str, ...] | None = None
    request_id: str = ""
    passed: bool = False

    def __post_init__(self) -> None:
        groups = None if self.groups is None else clip_items(self.groups)
        bound(
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
class ProvisioningReady(Event):
    """Navidrome's accounts are known: that many, of which so many are bound."""

    event: ClassVar[str] = "provisioning_ready"

    accounts: int
    bindings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisioningUnready(Event):
    """No account can be looked after: why, and what to do."""

    event: ClassVar[str] = "provisioning_unready"

    detail: str
    remedy: str | None = None

    def __post_init__(self) -> None:
        bound(self, detail=clip(self.detail, 400))

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class EmptyPasswordsFound(Event):
    """Accounts of the server that an empty password opens."""

    event: ClassVar[str] = "empty_passwords_found"

    accounts: tuple[str, ...]

    def __post_init__(self) -> None:
        bound(self, accounts=clip_items(self.accounts))

    @property
    def severity(self) -> Severity:
        return Severity.ERROR
