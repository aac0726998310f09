"""Public keys, by PyJWT and cryptography. They take 9 MB, so a shim without a key set does not load this."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import Algorithm, ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError

# NIST SP 800-131A: shorter keys can be broken.
_MIN_RSA_BITS = 2048
_MAX_RSA_BITS = 8192  # a larger key only costs time

_RS256 = RSAAlgorithm(RSAAlgorithm.SHA256)
_ES256 = ECAlgorithm(ECAlgorithm.SHA256)
_EDDSA = OKPAlgorithm()

Verify = Callable[[bytes, bytes], bool]


def check_secret(secret: bytes) -> None:
    """Check that this is a secret, not a public key, PEM or a JWK. Raises ValueError."""
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except InvalidKeyError as error:
        raise ValueError(str(error)) from None


def read_public_key(kind: str, parts: dict[str, object]) -> tuple[str, Verify] | None:
    """Return the algorithm of a JWK and the function that verifies with it, None if it cannot be used."""
    try:
        found = _read(kind, parts)
    except (InvalidKeyError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    if found is None:
        return None
    name, algorithm, key = found
    return name, partial(_verify, algorithm, key)


def _read(kind: str, parts: dict[str, object]) -> tuple[str, Algorithm, object] | None:
    if kind == "RSA":
        rsa = RSAAlgorithm.from_jwk(parts)
        if isinstance(rsa, RSAPublicKey) and _MIN_RSA_BITS <= rsa.key_size <= _MAX_RSA_BITS:
            return "RS256", _RS256, rsa
    elif kind == "EC":
        curve = ECAlgorithm.from_jwk(parts)
        if isinstance(curve, EllipticCurvePublicKey) and isinstance(curve.curve, SECP256R1):
            return "ES256", _ES256, curve
    elif kind == "OKP":
        edwards = OKPAlgorithm.from_jwk(parts)
        if isinstance(edwards, Ed25519PublicKey):
            return "EdDSA", _EDDSA, edwards
    return None


def _verify(algorithm: Algorithm, key: object, text: bytes, signature: bytes) -> bool:
    return bool(algorithm.verify(text, key, signature))
