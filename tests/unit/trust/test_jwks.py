"""Parsing of the provider's key set: usable keys, and one algorithm for each."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given
from hypothesis import strategies as st
from jwt.algorithms import HMACAlgorithm
from jwt.exceptions import InvalidKeyError

from shim.trust.jwks import MAX_KEYS, read_key_set, secret_key
from tests.support.jwt_minting import ec_key, ed_key, jwk, key_set, pem, rsa_key

P384 = ec.generate_private_key(ec.SECP384R1())


def test_each_key_has_the_algorithm_of_its_type() -> None:
    keys = read_key_set(key_set(jwk(rsa_key(), "a"), jwk(ec_key(), "b"), jwk(ed_key())))
    assert [(key.kid, key.algorithm) for key in keys] == [
        ("a", "RS256"),
        ("b", "ES256"),
        (None, "EdDSA"),
    ]
    assert len({key.fingerprint for key in keys}) == 3


def test_equal_key_sets_compare_equal_and_others_do_not() -> None:
    one = read_key_set(key_set(jwk(rsa_key(), "a")))
    assert one == read_key_set(key_set(jwk(rsa_key(), "a", use="sig", alg="RS256", x5c=["AA=="])))
    assert one == read_key_set(key_set(jwk(rsa_key(), "a", use=None, alg=None, key_ops=None)))
    assert one != read_key_set(key_set(jwk(rsa_key(), "b")))
    assert one != read_key_set(key_set(jwk(rsa_key(1), "a")))


@pytest.mark.parametrize(
    "entry",
    [
        jwk(rsa_key(), use="enc"),
        jwk(rsa_key(), alg="RS512"),
        jwk(rsa_key(), alg="HS256"),
        jwk(rsa_key(), alg="none"),
        jwk(rsa_key(), key_ops=["encrypt"]),
        jwk(rsa_key(), key_ops="verify"),
        jwk(rsa_key(), d="AQAB"),
        jwk(rsa_key(bits=1024)),
        jwk(P384),
        jwk(ec_key(), crv="P-384"),
        jwk(ec_key(), x="AAAA"),
        jwk(ed_key(), crv="Ed448"),
        jwk(ed_key(), crv="X25519"),
        jwk(ed_key(), x=""),
        jwk(rsa_key(), n=7),
        jwk(rsa_key(), e=""),
        {**jwk(rsa_key()), "kid": 7},
        {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0", "alg": "HS256"},
        {"kty": "RSA"},
        {"kty": None},
        {},
        "RSA",
        None,
    ],
    ids=itertools.count(),
)
def test_an_unusable_key_is_skipped(entry: Any) -> None:
    with pytest.raises(ValueError, match="can be used"):
        read_key_set(key_set(entry))
    assert len(read_key_set(key_set(entry, jwk(rsa_key(1), "good")))) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html><html></html>",
        b"[]",
        b"{}",
        b'{"keys": {}}',
        b'{"keys": []}',
        b'{"keys": "RSA"}',
        b"null",
        b"7",
        b"[" * 100_000,
        b"\xff\xfe",
        key_set(*[jwk(ed_key(), str(n)) for n in range(MAX_KEYS + 1)]),
    ],
    ids=lambda data: repr(data[:24]),
)
def test_an_invalid_key_set_is_rejected(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"key|JSON"):
        read_key_set(data)


@pytest.mark.parametrize(
    "secret",
    [b"", pem(rsa_key()), json.dumps(jwk(rsa_key())).encode()],
    ids=["nothing", "PEM", "JWK"],
)
def test_a_public_key_is_not_accepted_as_a_secret(secret: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        secret_key(secret)


@given(
    st.one_of(st.binary(min_size=1, max_size=40), st.from_regex(r"[!-~ ]{1,40}").map(str.encode))
)
@example(pem(rsa_key()))
@example(json.dumps(jwk(rsa_key())).encode())
@example(b"ssh-rsa AAAA")
@example(b"ssh-ed25519")
@example(b"ecdsa-sha2-nistp256")
@example(b"authentik-client-secret-0123456789")
@example(b"{}")
@example(b"1")
def test_a_secret_is_accepted_exactly_if_pyjwt_accepts_it(secret: bytes) -> None:
    algorithm = HMACAlgorithm(HMACAlgorithm.SHA256)
    try:
        prepared = algorithm.prepare_key(secret)
    except InvalidKeyError:
        with pytest.raises(ValueError, match=r"."):
            secret_key(secret)
        return
    key = secret_key(secret)
    signature = algorithm.sign(b"header.payload", prepared)
    assert key.verify(b"header.payload", signature)
    assert not key.verify(b"header.payloaD", signature)
    assert not key.verify(b"header.payload", signature[:-1])
    assert not key.verify(b"header.payload", b"")


def test_a_secret_loads_no_code_of_public_keys() -> None:
    code = (
        "import sys; from shim.trust.jwks import secret_key; secret_key(b'a-client-secret+/=' * 2); "
        "print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = ran.stdout.split()
    assert "shim.trust.jwks" in modules
    assert not {"jwt", "cryptography", "shim.trust.public_keys"} & set(modules)


def test_the_repr_of_a_key_does_not_show_its_secret() -> None:
    secret = b"do-not-tell-0123456789abcdef0123"
    key = secret_key(secret)
    assert "do-not-tell" not in repr(key) + str(key)
