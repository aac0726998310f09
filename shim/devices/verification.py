"""Compare the credentials of a Subsonic request with the secrets of one person's devices.

Pure: no I/O, no clock. Each comparison takes the same time wherever the texts differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from hmac import compare_digest
from typing import Protocol, TypeVar

from shim.trust.subsonic_parameters import Parameters

_HEX = b"enc:"


class HasSecret(Protocol):
    """A device with its secret."""

    secret: bytes


D = TypeVar("D", bound=HasSecret)


def find_device(credentials: Parameters, devices: Iterable[D]) -> D | None:
    """Return the device whose secret is the password `p` or, without one, the base of the token `t`; None if
    there is none.

    `p` may be clear or `enc:` with hexadecimal digits. `t` is md5(secret + `s`) in lower-case hexadecimal
    digits, as Navidrome compares it.
    """
    if credentials.p:
        password = decode_password(credentials.p)
        for device in devices:
            if compare_digest(password, device.secret):
                return device
        return None
    token, salt = credentials.t, credentials.s
    if len(token) != 32:
        return None
    for device in devices:
        digest = hashlib.md5(device.secret + salt, usedforsecurity=False).hexdigest()
        if compare_digest(token, digest.encode()):
            return device
    return None


def decode_password(text: bytes) -> bytes:
    """Return the password in the parameter `p`. As in Navidrome, a text that is not hexadecimal after `enc:`
    is the password itself."""
    if not text.startswith(_HEX):
        return text
    # `bytes.fromhex` skips white space, which Go does not.
    if len(text.split()) != 1:
        return text
    try:
        return bytes.fromhex(text[4:].decode("ascii"))
    except ValueError:
        return text
