"""The key that signs sessions and CSRF tokens.

It is in the database, so that all shims on one database accept each other's tokens, and a restart ends no
session. Until it was read, and without a database, the key is random and of this process alone.
"""

from __future__ import annotations

import hmac
import secrets

KEY_BYTES = 32


class ControlKey:
    """Signs and verifies texts. `replace` takes the key of the database once it was read."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(KEY_BYTES)

    def replace(self, key: bytes) -> None:
        """Use this key from now on. Raises ValueError if it is too short."""
        if len(key) < KEY_BYTES:
            raise ValueError(f"a key has at least {KEY_BYTES} bytes")
        self._key = key

    def sign(self, *parts: str) -> str:
        """Return the HMAC-SHA-256 of these parts, in hexadecimal. Each part counts with its length, so that
        no two lists of parts have one signature."""
        text = b"".join(b"%d:%b" % (len(part), part) for part in map(_encoded, parts))
        return hmac.digest(self._key, text, "sha256").hex()

    def verify(self, signature: str, *parts: str) -> bool:
        """Return whether this is the signature of these parts."""
        return hmac.compare_digest(_encoded(signature), _encoded(self.sign(*parts)))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
