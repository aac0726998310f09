"""Parse the key set of a provider into the keys that verify its tokens.

A key has exactly one algorithm, which follows from the type of the key (RFC 8725 §3.1): a token or the
key set can only exclude a key by its algorithm. Keys that contain a secret are skipped, since a key set
is public.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

MAX_KEYS = 64
# No public key looks like this, in any format: PEM has spaces, an SSH key begins with its type, JSON has
# quotes, DER has control characters.
_PLAIN_SECRET = re.compile(rb"(?!ssh-|ecdsa-|sk-)[0-9A-Za-z!#-&(-+./:;<=>?@^_`|~-]+")


@dataclass(frozen=True, slots=True)
class Key:
    """A key and the one algorithm that it verifies.

    `kid` is the key ID in tokens, None if the key has none. `fingerprint` identifies the key and reveals
    nothing of it. Two keys are equal if `kid`, algorithm and fingerprint are equal.
    """

    kid: str | None
    algorithm: str
    fingerprint: str
    _verify: Callable[[bytes, bytes], bool] = field(repr=False, compare=False)

    def verify(self, text: bytes, signature: bytes) -> bool:
        """Return whether the signature of the text was made with this key."""
        try:
            return self._verify(text, signature)
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"{self.kid or self.fingerprint} ({self.algorithm})"


def secret_key(secret: bytes) -> Key:
    """Create the key of tokens that are signed with HS256.

    It matches every `kid`, since providers send none or one of their own. Raises ValueError if the value
    is not a secret: a public key, PEM or a JWK.
    """
    if not _PLAIN_SECRET.fullmatch(secret):
        from shim.trust.public_keys import check_secret  # noqa: PLC0415 - megabytes, for public keys alone

        check_secret(secret)
    fingerprint = hashlib.sha256(b"HS256 " + secret).hexdigest()[:16]

    def verify(text: bytes, signature: bytes) -> bool:
        return hmac.compare_digest(hmac.digest(secret, text, "sha256"), signature)

    return Key(None, "HS256", fingerprint, verify)


def read_key_set(data: bytes) -> tuple[Key, ...]:
    """Parse a JWK Set (RFC 7517 §5) and return its usable keys in order.

    A key that cannot be used (another type, too short, for encryption, private) is skipped. Raises
    ValueError with the reason if the data is not a key set or none of its keys can be used.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("the response is not JSON") from None
    if found in ({}, {"keys": []}):
        raise ValueError("the key set is empty: the provider signs this token with no key")
    entries = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(entries, list):
        entries = []
    if not entries:
        raise ValueError("the response is JSON, but not a key set: it has no list of keys")
    if len(entries) > MAX_KEYS:
        raise ValueError(f"the key set has more than {MAX_KEYS} keys")
    keys: dict[Key, None] = {}
    for entry in entries:
        key = _read_key(entry) if isinstance(entry, dict) else None
        if key is not None:
            keys[key] = None
    if not keys:
        raise ValueError(f"none of the {len(entries)} keys of the set can be used")
    return tuple(keys)


def _read_key(entry: Mapping[str, object]) -> Key | None:
    from shim.trust.public_keys import read_public_key  # noqa: PLC0415 - megabytes, for public keys alone

    kid = entry.get("kid")
    if (
        not (kid is None or isinstance(kid, str))
        or "d" in entry
        or entry.get("use") not in (None, "sig")
    ):
        return None
    operations = entry.get("key_ops")
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        return None
    # Only the parameters of the key itself are read: no x5c, no x5u (RFC 7517 §4.6 and §4.7).
    kind = entry.get("kty")
    parts = {name: value for name in _PARTS.get(str(kind), ()) if (value := entry.get(name))}
    key = read_public_key(str(kind), {"kty": kind, **parts})
    if key is None:
        return None
    algorithm, verify = key
    if entry.get("alg") not in (None, algorithm, _OTHER_NAMES.get(algorithm)):
        return None
    return Key(kid, algorithm, _fingerprint(str(kind), parts), verify)


_PARTS = {"RSA": ("e", "n"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_OTHER_NAMES = {"EdDSA": "Ed25519"}  # RFC 9864 §2.2


def _fingerprint(kind: str, parts: Mapping[str, object]) -> str:
    """Return the beginning of the key's thumbprint (RFC 7638)."""
    required = json.dumps({**parts, "kty": kind}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(required.encode()).hexdigest()[:16]
