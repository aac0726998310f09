"""Events about device passwords, and about sign-ins of Subsonic apps that failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shim.audit.events import Event, Origin, RequestEvent, Severity, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEvent(Event):
    """A change of one device of the person `uid`. `account` is the account's name in Navidrome, if it is
    known. `actor` and `origin` are those of the person who made the change; None if a change of the account
    did it."""

    stream: ClassVar[Stream] = Stream.CHANGES

    device: str
    device_name: str
    uid: str
    account: str | None = None
    actor: str | None = None
    origin: Origin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAdded(DeviceEvent):
    """A device got a password."""

    kind: ClassVar[str] = "device_added"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRenamed(DeviceEvent):
    """A device has a new name."""

    kind: ClassVar[str] = "device_renamed"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRevoked(DeviceEvent):
    """A device's password no longer works. `reason` is who revoked it (`owner`, `console`, `api` or
    `command`), or what happened to the account (`locked`, `unlinked`, `denied` or `removed`)."""

    kind: ClassVar[str] = "device_revoked"

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKeyRotated(Event):
    """The secrets of all devices were encrypted with another key, whose id is `key_id`."""

    kind: ClassVar[str] = "device_key_rotated"
    stream: ClassVar[Stream] = Stream.CHANGES

    device_count: int
    key_id: str
    actor: str
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesUnavailable(Event):
    """Device passwords are refused. `detail` is the reason in words. Nothing was deleted."""

    kind: ClassVar[str] = "devices_unavailable"
    stream: ClassVar[Stream] = Stream.CHANGES

    detail: str
    remedy: str | None = None

    @property
    def severity(self) -> Severity:
        return Severity.ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesAvailable(Event):
    """Device passwords work again. `device_count` is the number of those that are in use."""

    kind: ClassVar[str] = "devices_available"
    stream: ClassVar[Stream] = Stream.CHANGES

    device_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLoginFailed(RequestEvent):
    """A Subsonic app sent wrong credentials. `app` is the app's own name. `reason` is `wrong_credentials`
    (Navidrome rejected them), `api_key_unknown`, or `too_many_failures` (the shim rejected them
    without a check, because of earlier failures)."""

    kind: ClassVar[str] = "device_login_failed"

    reason: str
    app: str | None = None

    @property
    def severity(self) -> Severity:
        return Severity.WARNING

    @property
    def group_key(self) -> tuple[str, ...]:
        return self.build_group_key(self.reason)

    @classmethod
    def build_group_key(cls, reason: str) -> tuple[str, ...]:
        """Return the group key of an event before it is created."""
        return (cls.kind, reason)
