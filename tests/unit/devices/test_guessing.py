"""Guessing is limited for an account and a client, never for those who succeeded, within bounded memory."""

from __future__ import annotations

import sys

from shim.devices import guessing
from shim.devices.guessing import Guess, GuessLimiter, account_key, client_key

ALICE, BOB, CLIENT, OTHER_CLIENT = b"alice", b"bob", b"\x7f\0\0\1", b"\x7f\0\0\2"


def _fail(limiter: GuessLimiter, times: int, now: float, account: bytes = ALICE) -> None:
    for _ in range(times):
        limiter.failed(account, CLIENT, now)


def _allowed(
    limiter: GuessLimiter, now: float, account: bytes = ALICE, client: bytes = CLIENT
) -> bool:
    guess = limiter.begin(account, client, now)
    if guess is not None:
        limiter.end(guess)
    return guess is not None


def test_ten_failures_pause_this_account_and_client_alone() -> None:
    limiter = GuessLimiter()
    _fail(limiter, 9, 0)
    assert _allowed(limiter, 0)
    _fail(limiter, 1, 0)
    assert not _allowed(limiter, 0) and not _allowed(limiter, 0.9)
    assert _allowed(limiter, 0, BOB) and _allowed(limiter, 0, ALICE, OTHER_CLIENT)


def test_the_pause_doubles_up_to_a_minute() -> None:
    limiter, now = GuessLimiter(), 0.0
    _fail(limiter, 9, now)
    pauses = []
    for _ in range(8):
        _fail(limiter, 1, now)
        start = now
        while not _allowed(limiter, now):
            now += 0.5
        pauses.append(now - start)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_failure_counts_for_five_minutes_and_a_success_for_thirty_days() -> None:
    limiter = GuessLimiter()
    _fail(limiter, 10, 0)
    for now, expected in ((299.0, 1), (301.0, 2)):
        guesses = [limiter.begin(ALICE, CLIENT, now) for _ in range(2)]
        assert len([each for each in guesses if each is not None]) == expected
        for each in guesses:
            if each is not None:
                limiter.end(each)
    limiter.succeeded(ALICE, CLIENT, 1000.0)
    for seconds, allowed in ((29.9 * 86400, True), (30.1 * 86400, False)):
        now = 1000.0 + seconds
        _fail(limiter, 10, now)
        assert _allowed(limiter, now) is allowed


def test_after_a_pause_one_request_is_checked_at_a_time() -> None:
    limiter = GuessLimiter()
    _fail(limiter, 10, 0)
    probe = limiter.begin(ALICE, CLIENT, 2)
    assert probe is not None
    assert limiter.begin(ALICE, CLIENT, 2) is None
    limiter.end(probe)
    assert limiter.begin(ALICE, CLIENT, 2) is not None


def _begin(limiter: GuessLimiter, times: int, account: bytes = ALICE) -> list[Guess]:
    """Begin guesses at once, and return those that are allowed."""
    return [guess for _ in range(times) if (guess := limiter.begin(account, CLIENT, 0)) is not None]


def test_guesses_at_once_are_no_more_than_failures_may_follow() -> None:
    limiter = GuessLimiter()
    first = _begin(limiter, 100)
    assert len(first) == guessing.MAX_AT_ONCE and _begin(limiter, 1, BOB) == []
    for guess in first:
        limiter.end(guess)
    _fail(limiter, 7, 0)
    assert len(_begin(limiter, 100)) == 3
    limiter = GuessLimiter()
    limiter.succeeded(ALICE, CLIENT, 0)
    assert len(_begin(limiter, 100)) == 100
    assert len(limiter) == 1


def test_failures_are_forgotten_after_five_minutes() -> None:
    limiter = GuessLimiter()
    _fail(limiter, 9, 0)
    _fail(limiter, 5, 301)
    assert _allowed(limiter, 301)
    _fail(limiter, 5, 302)
    assert not _allowed(limiter, 302)
    assert _allowed(limiter, 700)


def test_thirty_failures_of_one_client_count_for_all_accounts() -> None:
    limiter = GuessLimiter()
    for number in range(29):
        limiter.failed(b"user%d" % number, CLIENT, 0)
    assert _allowed(limiter, 0, BOB)
    limiter.failed(b"", CLIENT, 0)  # an unknown API key
    assert not _allowed(limiter, 0, BOB) and not limiter.may_try(CLIENT, 0)
    assert _allowed(limiter, 0, BOB, OTHER_CLIENT) and limiter.may_try(OTHER_CLIENT, 0)
    assert limiter.may_try(CLIENT, 2)


def test_a_client_that_succeeded_is_not_limited_for_that_account() -> None:
    limiter = GuessLimiter()
    limiter.succeeded(ALICE, CLIENT, 0)
    _fail(limiter, 100, 10)
    day = 86400
    assert _allowed(limiter, 10) and not _allowed(limiter, 10, BOB)
    _fail(limiter, 100, 29 * day)
    assert _allowed(limiter, 29 * day)
    _fail(limiter, 100, 31 * day)
    assert not _allowed(limiter, 31 * day)


def test_a_success_is_noted_again_after_a_while() -> None:
    limiter = GuessLimiter()
    assert not limiter.is_fresh(ALICE, CLIENT, 0)
    limiter.succeeded(ALICE, CLIENT, 0)
    assert limiter.is_fresh(ALICE, CLIENT, 3599) and not limiter.is_fresh(ALICE, CLIENT, 3601)


def test_memory_is_bounded() -> None:
    limiter = GuessLimiter()
    for number in range(50_000):
        client = number.to_bytes(8, "big")
        limiter.failed(b"a%d" % number, client, 0)
        limiter.succeeded(b"b%d" % number, client, 0)
    assert len(limiter) == guessing._MAX_ENTRIES + guessing._MAX_SUCCESSES
    entry = next(iter(limiter._failures.values()))
    for _ in range(1000):
        entry.add(1.0)
    assert len(entry.times) <= guessing.CLIENT_FAILURES
    assert sys.getsizeof(entry.times) < 1024


def test_keys_are_bounded_and_equal_for_one_account_and_one_client() -> None:
    assert account_key(b"ALICE") == account_key(b"alice") != account_key(b"alic")
    assert len(account_key(b"x" * 10_000)) == 64
    assert client_key(b"2001:db8::1") == client_key(b"2001:db8::ffff") != client_key(b"2001:db9::1")
    assert client_key(b"192.0.2.1") != client_key(b"192.0.2.2")
    assert client_key(None) == b"" and len(client_key(b"x" * 1000)) == 64
