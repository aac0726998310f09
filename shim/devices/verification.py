"""Compare the credentials of a Subsonic request with the secrets of one person's devices.

Pure: no I/O, no clock. Each comparison takes the same time wherever the texts differ.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from hmac import compare_digest
from typing import TYPE_CHECKING, Protocol, TypeVar

from shim.trust.subsonic_parameters import Parameters

if TYPE_CHECKING:
    from hashlib import _Hash

_HEX = re.compile(rb"enc:((?:[0-9A-Fa-f]{2})*)")
_TOKEN = re.compile(rb"[0-9a-f]{32}")


class HasSecret(Protocol):
    """A device with its secret. `md5` is its digest so far: a copy is cheaper than a new one."""

    secret: bytes
    md5: _Hash


def begin_md5(secret: bytes) -> _Hash:
    """Return the digest of a secret, to be continued with a salt."""
    return hashlib.md5(secret, usedforsecurity=False)


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
    if _TOKEN.fullmatch(credentials.t) is None:
        return None
    token, salt = bytes.fromhex(credentials.t.decode()), credentials.s
    for device in devices:
        digest = device.md5.copy()
        digest.update(salt)
        if compare_digest(token, digest.digest()):
            return device
    return None


def decode_password(text: bytes) -> bytes:
    """Return the password in the parameter `p`. As in Navidrome, a text that is not hexadecimal after `enc:`
    is the password itself."""
    found = _HEX.fullmatch(text)
    return text if found is None else bytes.fromhex(found[1].decode())
