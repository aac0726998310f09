"""Credentials in a query and a form are found as Go finds them, and removed without a trace."""

from __future__ import annotations

import base64
from urllib.parse import parse_qsl, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.trust.subsonic_parameters import (
    ConflictingParameters,
    CredentialText,
    Parameters,
    TooManyParameters,
    find_basic,
    first_parameter,
    has_authorization,
    read_basic,
    read_parameters,
    split_credentials,
    without_authorization,
)

NAMES = {b"u", b"p", b"t", b"s", b"apiKey", b"jwt"}


@pytest.mark.parametrize(
    ("text", "credentials", "other"),
    [
        (b"", b"", b""),
        (b"v=1&c=x", b"", b"v=1&c=x"),
        (b"u=a&p=b", b"&u=a&p=b", b""),
        (b"v=1&u=a&id=2&p=b", b"&u=a&p=b", b"v=1&id=2"),
        (b"%75=a&size=1&s=2&%73ize=3", b"&%75=a&s=2", b"size=1&%73ize=3"),
        (b"api%4Bey=k&apikey=l&apiKeyX=m", b"&api%4Bey=k", b"apikey=l&apiKeyX=m"),
        (b"u&t=&x=u=1", b"&u&t=", b"x=u=1"),
        (b"U=a&P=b&tt=c", b"", b"U=a&P=b&tt=c"),
        (b"jwt=x&%6Awt=y", b"&jwt=x&%6Awt=y", b""),
        (b"a;u=x&v=1", b"", b"a;u=x&v=1"),
        (b"&&u=a&&", b"&u=a", b"&&&"),
    ],
)
def test_splits(text: bytes, credentials: bytes, other: bytes) -> None:
    assert split_credentials(text) == (credentials, other)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["u", "p", "t", "s", "apiKey", "jwt", "id", "size", "us", "%75", "%69d"]
            ),
            st.text("ab%25+=;é\n ", max_size=5),
        ),
        max_size=24,
    )
)
def test_no_credential_is_left_and_nothing_else_is_lost(pairs: list[tuple[str, str]]) -> None:
    text = "&".join(f"{name}={value.replace('&', '')}" for name, value in pairs).encode()
    try:
        found, other = split_credentials(text)
    except ConflictingParameters:
        assert sum(unquote_to_bytes(name) in NAMES for name, _ in pairs) > 12
        return
    parts = [part for part in text.split(b"&") if part]
    kept = [p for p in parts if unquote_to_bytes(p.partition(b"=")[0]) not in NAMES]
    taken = [p for p in parts if unquote_to_bytes(p.partition(b"=")[0]) in NAMES]
    assert [part for part in other.split(b"&") if part] == kept
    assert [part for part in found.split(b"&") if part] == taken
    assert not {key.encode() for key, _ in parse_qsl(other.decode("latin-1"))} & NAMES


def test_reads_values_as_go_decodes_them() -> None:
    assert read_parameters(b"&u=a+b&%70=%C3%A9&s=") == Parameters(u=b"a b", p="é".encode())
    assert read_parameters(b"&apiKey=k&jwt=j") == Parameters(api_key=b"k", jwt=b"j")
    assert read_parameters(b"&u=a&s=1", b"&t=x&u=a") == Parameters(u=b"a", t=b"x", s=b"1")


@pytest.mark.parametrize("query", [b"&u=a;b&p=c", b"&u=%zz&p=c", b"&u=%4"])
def test_values_that_navidrome_rejects_are_no_credentials(query: bytes) -> None:
    assert read_parameters(query) is None


@pytest.mark.parametrize("salt", [b"s" * 1025, b"%73" * 1025, b"+" * 10_000, b"s" * 100_000])
def test_a_value_that_no_device_has_is_too_long(salt: bytes) -> None:
    found = read_parameters(b"&u=a&t=b&s=" + salt)
    assert found is not None and found.too_long and found.u == b"a"
    found = read_parameters(b"&u=a&t=b&s=" + b"s" * 1024)
    assert found is not None and not found.too_long


@pytest.mark.parametrize(
    ("query", "body"),
    [
        (b"&u=a&u=a", b""),
        (b"&u=a&%75=b", b""),
        (b"&p=a&p=a", b""),
        (b"", b"&t=a&t=b"),
        (b"&u=a", b"&u=b"),
        (b"&u=a&u=", b""),
        (b"&apiKey=k&u=a", b""),
        (b"&apiKey=k", b"&s=1"),
        (b"&apiKey=k&p=x", b""),
        (b"&apiKey=k&t=x", b""),
        (b"&jwt=a", b"&jwt=b"),
        (b"&apiKey=a", b"&apiKey=b"),
    ],
)
def test_conflicts(query: bytes, body: bytes) -> None:
    with pytest.raises(ConflictingParameters):
        read_parameters(query, body)


def test_more_parameters_than_navidrome_takes_are_not_read() -> None:
    assert split_credentials(b"u=a" + b"&a" * 9_999)[0] == b"&u=a"
    for text in (b"u=a" + b"&a" * 10_000, b"&" * 1_000_000):
        with pytest.raises(TooManyParameters):
            split_credentials(text)
    with pytest.raises(ConflictingParameters):
        split_credentials(b"u=a&" * 20)


def test_the_key_tells_different_credentials_apart() -> None:
    texts = [
        CredentialText(b"&u=a"),
        CredentialText(b"", b"&u=a"),
        CredentialText(b"", b"", b"&u=a"),
        CredentialText(b"&u=a", b"&u=a"),
        CredentialText(b"&u=b"),
    ]
    assert len({text.key for text in texts}) == len(texts)


def test_basic() -> None:
    def lines(value: bytes, name: bytes = b"Authorization") -> bytes:
        return b"Host: x\r\n%b: %b\r\nAccept: y\r\n" % (name, value)

    pair = base64.b64encode(b"alice:pass:word")
    assert read_basic(find_basic(lines(b"Basic " + pair))) == Parameters(u=b"alice", p=b"pass:word")
    assert find_basic(lines(b"bAsIc  " + pair, b"authorization")) == pair
    assert find_basic(lines(b"Bearer x")) == b""
    assert find_basic(lines(b"Basic a") + lines(b"Basic b")) == b""
    for bad in (b"!", base64.b64encode(b"nobody"), base64.b64encode(b":x"), b"A" * 5000):
        assert read_basic(bad) is None
    assert has_authorization(lines(b"x")) and not has_authorization(lines(b"x", b"X-Authorization"))
    assert without_authorization(lines(b"Basic x")) == b"Host: x\r\nAccept: y\r\n"


def test_first_parameter() -> None:
    assert first_parameter(b"c", b"cc=1&c=My+App&c=2") == b"My App"
    assert first_parameter(b"callback", b"%63allback=a") == b"a"
    assert first_parameter(b"c", b"c=1", b"c=2") == b"2"
    assert first_parameter(b"c", b"x=1") == b""
    assert first_parameter(b"c", b"c=" + b"x" * 5000) == b""
