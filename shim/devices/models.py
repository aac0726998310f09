"""A person's device as a value, the rules for its name, and its secret's form."""

from __future__ import annotations

import secrets
import unicodedata
from dataclasses import dataclass

MAX_DEVICES = 20
"""The number of devices that one person may have at a time."""
MAX_NAME = 64  # characters
MAX_DAYS = 36_500
"""The longest time until a device expires."""
ACCOUNT_CAUSES = frozenset({"locked", "unlinked", "denied", "removed"})
"""Why the shim itself revoked a device: the account was locked, taken from its person, denied or deleted."""

# Without letters and digits that look alike (i, l, o, 0, 1); lower case is easier to type on a phone.
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
_GROUPS = 7
# Persian and many pictures need these two, which have no look of their own.
_JOINERS = {0x200C: None, 0x200D: None}
# Letters and symbols that look like white space: Hangul fillers, and Braille without dots.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
_GROUP = 4


class DeviceError(Exception):
    """The operation on a device is not possible; the message states the reason and a remedy."""


class DeviceExists(DeviceError):
    """A device with this id was added before."""


class UnknownOwner(DeviceError):
    """No account that is linked to a person has this name."""


class UnknownDevice(DeviceError):
    """No device in use has this id, or it belongs to another person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device, without its secret. Times are in seconds since the epoch; None for never.

    `uid` is the person, as the binding has it. `revoked_by` is one word: `owner`, `console`, `command`,
    `locked`, `unlinked`, `denied` or `removed`. `last_client` is an address, `last_app` the app's name.
    """

    id: str
    uid: str
    name: str
    created: float
    expires: float | None = None
    revoked: float | None = None
    revoked_by: str = ""
    last_used: float | None = None
    last_client: str = ""
    last_app: str = ""

    def is_active(self, now: float) -> bool:
        """Return whether the device is neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or self.expires > now)


@dataclass(frozen=True, slots=True)
class NewDevice:
    """A device that was just added, with its secret, which is shown once."""

    device: Device
    secret: str

    def __repr__(self) -> str:
        return f"NewDevice({self.device!r})"


def new_secret() -> str:
    """Return a random secret of 138 bits: groups of letters and digits, to be read aloud and typed."""
    return "-".join(
        "".join(secrets.choice(_ALPHABET) for _ in range(_GROUP)) for _ in range(_GROUPS)
    )


def new_device_id() -> str:
    """Return a random id."""
    return secrets.token_hex(8)


def valid_name(text: str) -> str:
    """Return a device's name without white space at its ends.

    Raises `DeviceError` if it is empty or looks empty, is too long, or has a character that is not shown as
    itself: control characters, line ends, and characters that change the direction of the text.
    """
    name = text.strip()
    if not any(unicodedata.category(each)[0] in "LNPS" and each not in _BLANK for each in name):
        raise DeviceError("A device needs a name, for example: Phone.")
    if len(name) > MAX_NAME:
        raise DeviceError(f"The device's name has more than {MAX_NAME} characters.")
    for character in name.translate(_JOINERS):
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            raise DeviceError(
                f"The device's name has a character that can't be shown (U+{ord(character):04X})."
            )
    return name
