"""Requests with forged tokens, no two alike, generated faster than a server can verify them.

All but the signature is as the provider would send it: issuer, audience, times and the key id are
right, and the headers match the claims. So only the signature shows that a token is forged.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.bench.browsers import BROWSERS, header_block

# Each with the bytes of its signatures.
ALGORITHMS = {"HS256": 32, "RS256": 256, "ES256": 64, "EdDSA": 64}
_COUNTED = 20  # characters of the signature that number the token


class Forger:
    """Requests whose tokens say that they were signed with `algorithm`."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self._pieces = [_pieces(browser, algorithm) for browser in range(BROWSERS)]
        self._numbers = itertools.count()

    def requests(self) -> Iterator[bytes]:
        """Yield requests without end, each with another token."""
        for number in self._numbers:
            before, after = self._pieces[number % BROWSERS]
            yield b"GET /api/song?f=%d HTTP/1.1\r\n%b%0*d%b" % (
                number,
                before,
                _COUNTED,
                number,
                after,
            )


def key_set() -> bytes:
    """A JWK Set with a new key for each algorithm that has public ones."""
    keys = {
        "RS256": RSAAlgorithm.to_jwk(
            rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
        ),
        "ES256": ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key()),
        "EdDSA": OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate().public_key()),
    }
    return json.dumps(
        {"keys": [{**json.loads(key), "kid": name} for name, key in keys.items()]}
    ).encode()


def _pieces(browser: int, algorithm: str) -> tuple[bytes, bytes]:
    """A browser's header block before and after the characters that number the token."""
    block = header_block(browser)
    before, _, rest = block.partition("X-Authentik-Jwt: ")
    token, _, after = rest.partition("\r\n")
    head = {"alg": algorithm, "typ": "JWT"} | ({} if algorithm == "HS256" else {"kid": algorithm})
    header = base64.urlsafe_b64encode(json.dumps(head).encode()).rstrip(b"=").decode()
    payload = token.split(".")[1]
    # Digits first, then a whole number of bytes: base64url in its canonical form.
    signature = base64.urlsafe_b64encode(b"\x10" * ALGORITHMS[algorithm]).rstrip(b"=").decode()
    return (
        f"{before}X-Authentik-Jwt: {header}.{payload}.".encode(),
        f"{signature[_COUNTED:]}\r\n{after}".encode(),
    )
