"""The hash chain of a stream: pure functions over rows.

Each row's hash covers its record, as canonical JSON with index and chain, and the hash of the row before it:
HMAC-SHA-256 with a key, SHA-256 without. A row of kind `audit_chain_started` begins each chain; another one
follows when the first key changes. Its hash covers the last hash of the chain before.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

# The hash before the first row.
GENESIS = bytes(32)
NO_KEY = ""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of `SHIM_AUDIT_KEY`, by their ids. The first one signs; without any, `NO_KEY` does."""

    secrets: tuple[bytes, ...] = ()

    @property
    def signing(self) -> str:
        """The id of the key that signs new rows."""
        return key_id(self.secrets[0]) if self.secrets else NO_KEY

    def find(self, wanted_id: str) -> bytes | None:
        """Return the key with this id; None if it is not known. `NO_KEY` has an empty one."""
        if wanted_id == NO_KEY:
            return b""
        return next((secret for secret in self.secrets if key_id(secret) == wanted_id), None)


def build_keys(secrets: Sequence[str]) -> Keys:
    """Return the keys of a setting."""
    return Keys(tuple(secret.encode() for secret in secrets))


def key_id(secret: bytes) -> str:
    """Return the public id of a key: 8 hexadecimal digits."""
    return hmac.new(secret, b"navidrome-shim audit key id", sha256).hexdigest()[:8]


def row_hash(secret: bytes, previous: bytes, data: str) -> bytes:
    """Return the hash of a row after the row with the hash `previous`. `secret` is empty without a key."""
    content = previous + data.encode("ascii", "backslashreplace")
    if not secret:
        return sha256(content).digest()
    return hmac.digest(secret, content, "sha256")
