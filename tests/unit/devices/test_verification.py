"""Credentials are compared with the secrets of one person's devices."""

from __future__ import annotations

import hashlib

import pytest

from shim.devices.verification import begin_md5, decode_password, find_device
from shim.trust.subsonic_parameters import Parameters


class Phone:
    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.md5 = begin_md5(secret)


PHONE, TABLET = Phone(b"abcd-efgh"), Phone(b"jkmn-pqrs")
ALL = [PHONE, TABLET]


def _token(secret: bytes, salt: bytes) -> bytes:
    return hashlib.md5(secret + salt).hexdigest().encode()


@pytest.mark.parametrize(
    ("credentials", "expected"),
    [
        (Parameters(p=b"abcd-efgh"), PHONE),
        (Parameters(p=b"enc:" + b"jkmn-pqrs".hex().encode()), TABLET),
        (Parameters(p=b"enc:" + b"jkmn-pqrs".hex().upper().encode()), TABLET),
        (Parameters(t=_token(b"jkmn-pqrs", b"s"), s=b"s"), TABLET),
        (Parameters(t=_token(b"abcd-efgh", b"")), PHONE),
        (Parameters(t=_token(b"abcd-efgh", b"x" * 1024), s=b"x" * 1024), PHONE),
        # `p` counts before `t`, as in Navidrome.
        (Parameters(p=b"abcd-efgh", t=_token(b"jkmn-pqrs", b"s"), s=b"s"), PHONE),
        (Parameters(p=b"wrong", t=_token(b"jkmn-pqrs", b"s"), s=b"s"), None),
        (Parameters(t=_token(b"abcd-efgh", b"s").upper(), s=b"s"), None),
        (Parameters(t=_token(b"abcd-efgh", b"s"), s=b"t"), None),
        (Parameters(t=_token(b"abcd-efgh", b"s")[:-1], s=b"s"), None),
        (Parameters(t=_token(b"abcd-efgh", b"s") + b"\n", s=b"s"), None),
        (Parameters(t=b" ".join([_token(b"abcd-efgh", b"s")[:16]] * 2)[:32], s=b"s"), None),
        (Parameters(t=b"", s=b"s"), None),
        (Parameters(t="é".encode() * 16, s=b"s"), None),
        (Parameters(p=b""), None),
        (Parameters(p=b"ABCD-EFGH"), None),
    ],
)
def test_finds(credentials: Parameters, expected: Phone | None) -> None:
    assert find_device(credentials, ALL) is expected


def test_each_salt_is_compared_with_the_secret_alone() -> None:
    for salt in (b"one", b"two", b"one"):
        assert find_device(Parameters(t=_token(TABLET.secret, salt), s=salt), ALL) is TABLET


def test_without_devices_nothing_matches() -> None:
    assert find_device(Parameters(p=b"x"), []) is None


@pytest.mark.parametrize(
    ("text", "password"),
    [
        (b"enc:6162", b"ab"),
        (b"enc:616", b"enc:616"),
        (b"enc:61 62", b"enc:61 62"),
        (b"enc:\t6162", b"enc:\t6162"),
        (b"enc:6162 ", b"enc:6162 "),
        (b"enc:6162\n", b"enc:6162\n"),
        (b"enc:zz", b"enc:zz"),
        ("enc:é".encode(), "enc:é".encode()),
        (b"enc:", b""),
        (b"ENC:6162", b"ENC:6162"),
    ],
)
def test_decodes_as_go_does(text: bytes, password: bytes) -> None:
    assert decode_password(text) == password
