"""Events about device passwords, and about sign-ins of Subsonic apps that failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shim.audit.events import CoalescedEvent, Event, Severity, clip_optional, set_sanitized
from shim.audit.sanitize import clip


@dataclass(frozen=True, slots=True, kw_only=True)
class _DeviceEvent(Event):
    """A change of one device. `actor` made it, through `origin`; `account` is the account's name in
    Navidrome, if it is known."""

    device: str
    device_name: str
    uid: str
    account: str | None = None
    actor: str
    origin: str

    def __post_init__(self) -> None:
        set_sanitized(
            self,
            device=clip(self.device),
            device_name=clip(self.device_name),
            uid=clip(self.uid),
            account=clip_optional(self.account),
            actor=clip(self.actor),
            origin=clip(self.origin),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAdded(_DeviceEvent):
    """A device got a password."""

    event: ClassVar[str] = "device_added"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRenamed(_DeviceEvent):
    """A device has a new name."""

    event: ClassVar[str] = "device_renamed"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRevoked(_DeviceEvent):
    """A device's password no longer works. `reason` is one word: by whom, or by which change of the
    account."""

    event: ClassVar[str] = "device_revoked"

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKeyRotated(Event):
    """The secrets of all devices were encrypted with another key, whose id is `key_id`."""

    event: ClassVar[str] = "device_key_rotated"

    devices: int
    key_id: str
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesUnavailable(Event):
    """Device passwords are refused, for `detail`. Nothing was deleted."""

    event: ClassVar[str] = "devices_unavailable"

    detail: str
    remedy: str | None = None

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesAvailable(Event):
    """Device passwords work (again). `devices` is the number of those that are in use."""

    event: ClassVar[str] = "devices_available"

    devices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLoginFailed(CoalescedEvent):
    """A Subsonic app sent wrong credentials. `claimed_user` is the name that it sent, None with an API key;
    `app` is its own name. `reason` is `wrong_credentials` (Navidrome rejected them), `api_key_unknown`, or
    `too_many_failures` (the shim rejected them unseen, because of the failures before)."""

    event: ClassVar[str] = "device_login_failed"

    client: str | None
    claimed_user: str | None = None
    app: str | None = None
    reason: str

    def __post_init__(self) -> None:
        set_sanitized(
            self,
            client=clip_optional(self.client),
            claimed_user=clip_optional(self.claimed_user),
            app=clip_optional(self.app),
        )

    @property
    def severity(self) -> Severity:
        return Severity.WARNING

    @property
    def group_key(self) -> tuple[str, ...]:
        return (self.event, self.reason)
