"""The interface between the data plane and device passwords.

The data plane calls `identify` on a Subsonic request that has no identity; it does no I/O. This module does
not depend on the devices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from shim.proxy.gate import Account
from shim.trust.decision import Decision, DeviceIdentity
from shim.trust.reasons import Reason
from shim.trust.subsonic_parameters import CredentialText


@dataclass(frozen=True, slots=True)
class DeviceMatch:
    """The credentials are those of a device. `identity` is that of its person, and `account` is the account
    that the request is sent as."""

    identity: DeviceIdentity
    account: Account


@dataclass(frozen=True, slots=True)
class DeviceRefused:
    """The shim answers the request itself, with a Subsonic error. `detail` is for the log; `user` is the name
    that was sent, empty without one."""

    reason: Reason
    detail: str
    user: bytes = b""


@dataclass(frozen=True, slots=True)
class OtherCredentials:
    """The credentials are not those of a device, so the request is forwarded. `account` is the key of the
    account that they name, empty if Navidrome does not check them; `user` is the name as it was sent."""

    account: bytes = b""
    user: bytes = b""


class NoMatch(Enum):
    """Why no device was found."""

    NOT_LISTED = auto()  # it may be one of a device: wait until Navidrome's users are listed


class Attempt(Protocol):
    """A request whose credentials Navidrome checks, until its response has come."""

    def failed(self) -> None:
        """Count a response that says that the credentials are wrong."""

    def succeeded(self) -> None:
        """Note a response that a request with wrong credentials would not get."""

    def ended(self) -> None:
        """End the attempt without a result."""


class DeviceGate(Protocol):
    """Knows the devices of all people, and limits guessing."""

    @property
    def revocations(self) -> int:
        """Rises whenever a device ends. The data plane then checks responses in progress again."""

    def identify(
        self, credentials: CredentialText, client: bytes | None, *, listed: bool = False
    ) -> DeviceMatch | DeviceRefused | OtherCredentials | NoMatch:
        """Return the device whose credentials these are. No I/O.

        `listed`: Navidrome's users were listed after the request arrived.
        """

    def is_current(self, match: DeviceMatch, *, listed: bool = False) -> bool:
        """Return whether the device is still in use, and its account still belongs to its person. No I/O."""

    def is_active(self, match: DeviceMatch) -> bool:
        """Return whether the device is still in use. No I/O."""

    def use_is_due(self, match: DeviceMatch) -> bool:
        """Return whether `record_use` has something to do: the last use was recorded a while ago."""

    def record_use(self, match: DeviceMatch, decision: Decision, app: bytes) -> None:
        """Record that a request of this device, whose name is `app`, is sent."""

    def refused(self, decision: Decision, refused: DeviceRefused, request_id: str) -> None:
        """Record credentials that the shim refused by itself."""

    def begin_attempt(
        self, other_credentials: OtherCredentials, decision: Decision, request_id: Callable[[], str]
    ) -> Attempt | DeviceRefused | None:
        """Count a request whose credentials are passed on to Navidrome. `request_id` returns its id.

        Returns None if its response need not be looked at, and a refusal after too many failures.
        """
