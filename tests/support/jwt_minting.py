"""A provider that signs tokens: its keys, its key set, and the forgeries that an attacker would
try.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

ISSUER = "https://auth.example.org/application/o/navidrome/"
AUDIENCE = "navidrome-client"
NOW = 1_800_000_000.0
SECRET = b"an-authentik-client-secret-of-40-characters"

Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def rsa_key(number: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    """One of several keys; the same key for the same arguments."""
    return _rsa_key(number, bits)


@cache
def _rsa_key(number: int, bits: int) -> rsa.RSAPrivateKey:
    del number
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def claims(**changes: Any) -> dict[str, Any]:
    """The claims that authentik sends for ada, with these changes; None removes a claim."""
    entries = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "5a1c",
        "exp": int(NOW) + 300,
        "iat": int(NOW) - 10,
        "preferred_username": "ada",
        "name": "Ada Lovelace",
        "email": "ada@example.org",
        "groups": ["family", "admins"],
        **changes,
    }
    return {name: value for name, value in entries.items() if value is not None}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def encoded(part: Any) -> str:
    return b64(part if isinstance(part, bytes) else json.dumps(part).encode())


def signature_of(signed: bytes, algorithm: str, key: Private | bytes) -> bytes:
    """The signature of `signed` by this key, in the algorithm's own format."""
    if isinstance(key, bytes):
        return hmac.new(key, signed, hashlib.sha256).digest()
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    if isinstance(key, ec.EllipticCurvePrivateKey):
        r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")
    assert algorithm
    return key.sign(signed)


def token(
    payload: Any = None,
    *,
    key: Private | bytes | None = None,
    algorithm: str = "RS256",
    kid: str | None = "rsa-0",
    **header: Any,
) -> str:
    """A signed token. `header` is added to its header; a value of None removes an entry."""
    head = {"alg": algorithm, "typ": "JWT", "kid": kid, **header}
    text = encoded({name: value for name, value in head.items() if value is not None})
    text += "." + encoded(claims() if payload is None else payload)
    signer = rsa_key() if key is None else key
    return f"{text}.{b64(signature_of(text.encode(), algorithm, signer))}"


def jwk(key: Private, kid: str | None = None, **more: Any) -> dict[str, Any]:
    """The public key as an entry of a key set."""
    public = key.public_key()
    entry: dict[str, Any]
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        entry = {"kty": "RSA", "n": _number(numbers.n), "e": _number(numbers.e)}
    elif isinstance(public, ec.EllipticCurvePublicKey):
        point = public.public_numbers()
        size = (public.curve.key_size + 7) // 8
        crv = {"secp256r1": "P-256", "secp384r1": "P-384"}[public.curve.name]
        entry = {"kty": "EC", "crv": crv, "x": _number(point.x, size), "y": _number(point.y, size)}
    else:
        raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        entry = {"kty": "OKP", "crv": "Ed25519", "x": b64(raw)}
    if kid is not None:
        entry["kid"] = kid
    return {**entry, **more}


def key_set(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(entries)}).encode()


def pem(key: Private) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _number(value: int, size: int | None = None) -> str:
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


@dataclass
class Provider:
    """A key set that can be rotated."""

    keys: dict[str, Private] = field(default_factory=lambda: {"rsa-0": rsa_key()})

    @property
    def key_set(self) -> bytes:
        return key_set(*(jwk(key, kid, use="sig") for kid, key in self.keys.items()))
