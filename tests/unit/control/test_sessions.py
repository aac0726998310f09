"""The lifetime of sessions and CSRF tokens, and the limit of failed sign-ins."""

from __future__ import annotations

import pytest

from shim.control.csrf import CSRF_SECONDS, CsrfTokens
from shim.control.keys import ControlKey
from shim.control.sessions import SESSION_SECONDS, SIGN_IN_TRIES, Sessions, TokenLimit


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def __call__(self) -> float:
        return self.seconds


def test_a_session_is_valid_for_twelve_hours() -> None:
    clock = Clock()
    sessions = Sessions(ControlKey(), "token", clock)
    cookie = sessions.create()
    clock.seconds += SESSION_SECONDS - 1
    assert sessions.find(cookie) is not None
    clock.seconds += 1
    assert sessions.find(cookie) is None


def test_tokens_of_any_length_are_compared_as_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    """`compare_digest` takes longer for a longer text, and returns at once for one of another length."""
    lengths = []

    def compare(one: bytes, other: bytes) -> bool:
        lengths.append((len(one), len(other)))
        return one == other

    sessions = Sessions(ControlKey(), "token")
    monkeypatch.setattr("hmac.compare_digest", compare)
    tokens = ("", "t", "token", "token\udcff", "x" * 1000)
    assert [sessions.is_token(each) for each in tokens] == [False, False, True, False, False]
    assert lengths == [(32, 32)] * len(tokens)


def test_a_csrf_token_is_valid_for_twelve_hours() -> None:
    clock = Clock()
    tokens = CsrfTokens(ControlKey(), clock)
    token = tokens.issue("uid:1")
    clock.seconds += CSRF_SECONDS - 1
    assert tokens.is_valid(token, "uid:1")
    clock.seconds += 1
    assert not tokens.is_valid(token, "uid:1")


def test_a_csrf_token_is_for_one_subject_and_one_key() -> None:
    key = ControlKey()
    token = CsrfTokens(key).issue("uid:1")
    assert CsrfTokens(key).is_valid(token, "uid:1")
    assert not CsrfTokens(key).is_valid(token, "uid:2")
    assert not CsrfTokens(ControlKey()).is_valid(token, "uid:1")
    for nonsense in ("", ".", "x", "9999999999.", "9999999999.x", ".".join("xyz"), "é.é", "\udcff"):
        assert not CsrfTokens(key).is_valid(nonsense, "uid:1")


def test_parts_of_a_signed_text_cannot_be_moved() -> None:
    key = ControlKey()
    assert key.sign("ab", "c") != key.sign("a", "bc")
    assert not key.verify(key.sign("session", "1"), "csrf", "1")


def test_a_key_of_the_database_replaces_the_random_one() -> None:
    one, other = ControlKey(), ControlKey()
    one.replace(b"k" * 32)
    other.replace(b"k" * 32)
    assert one.sign("x") == other.sign("x")
    with pytest.raises(ValueError, match="32"):
        one.replace(b"short")


def fail(limit: TokenLimit, client: str, tries: int = SIGN_IN_TRIES) -> None:
    for number in range(tries):
        limit.failed(client, f"wrong-{number}")


def test_wrong_tokens_count_for_a_minute_by_address() -> None:
    clock = Clock()
    limit = TokenLimit(clock)
    for number in range(SIGN_IN_TRIES):
        assert limit.wait_seconds("192.0.2.1") == 0
        limit.failed("192.0.2.1", str(number))
        clock.seconds += 1
    assert limit.wait_seconds("192.0.2.1") == 55
    assert limit.wait_seconds("::ffff:192.0.2.1") == 55
    assert limit.wait_seconds("192.0.2.2") == 0
    clock.seconds += 55
    assert limit.wait_seconds("192.0.2.1") == 0


def test_one_wrong_token_again_and_again_counts_once() -> None:
    limit = TokenLimit(Clock())
    for _ in range(100):
        limit.failed("192.0.2.1", "the old token")
    assert limit.wait_seconds("192.0.2.1") == 0
    fail(limit, "192.0.2.1", SIGN_IN_TRIES - 1)
    assert limit.wait_seconds("192.0.2.1") > 0


def test_an_ipv6_network_has_one_count() -> None:
    limit = TokenLimit(Clock())
    for last in range(SIGN_IN_TRIES):
        limit.failed(f"2001:db8::{last:x}", str(last))
    assert limit.wait_seconds("2001:db8::ffff") > 0
    assert limit.wait_seconds("2001:db8:0:1::1") == 0


def test_wrong_tokens_from_many_addresses_limit_no_other_one_and_use_bounded_memory() -> None:
    limit = TokenLimit(Clock(), max_addresses=100)
    for number in range(300):
        fail(limit, f"10.0.{number // 256}.{number % 256}", 2 * SIGN_IN_TRIES)
    assert limit.wait_seconds("198.51.100.1") == 0
    assert limit.wait_seconds("10.0.1.43") > 0  # one of the last hundred
    assert len(limit._failures) == 100
    assert {len(each) for each in limit._failures.values()} == {SIGN_IN_TRIES}
