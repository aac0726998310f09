"""Tokens and the login limit, with a clock that the test sets."""

from __future__ import annotations

from demo.navidrome.accounts import Account
from demo.navidrome.login_limit import LoginLimit
from demo.navidrome.tokens import Tokens

HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_token_expires_48_hours_after_its_last_refresh() -> None:
    clock = Clock()
    tokens = Tokens(48 * HOUR, clock)
    first = tokens.issue(Account("id", "alice", is_admin=True))
    clock.now += 47 * HOUR
    claims = tokens.read(first)
    assert claims is not None
    second = tokens.refresh(claims)
    clock.now += 2 * HOUR
    assert tokens.read(first) is None
    assert tokens.read(second) == claims
    assert (claims.subject, claims.user_id, claims.is_admin) == ("alice", "id", True)


def test_a_token_of_another_key_or_algorithm_is_invalid() -> None:
    clock = Clock()
    mine, other = Tokens(HOUR, clock), Tokens(HOUR, clock)
    token = other.issue(Account("id", "alice"))
    head, payload, _ = token.split(".")
    assert mine.read(token) is None
    assert mine.read(f"eyJhbGciOiJub25lIn0.{payload}.") is None
    assert other.read(f"{head}.{payload}.") is None


def test_logins_are_limited_in_a_sliding_window() -> None:
    clock = Clock()
    limit = LoginLimit(5, 20.0, clock)
    assert [limit.count("10.0.0.1").allowed for _ in range(6)] == [True] * 5 + [False]
    clock.now += 20.0
    assert not limit.count("10.0.0.1").allowed
    clock.now += 20.0
    assert limit.count("10.0.0.1").allowed


def test_ipv6_clients_are_counted_by_their_64_bit_network() -> None:
    limit = LoginLimit(1, 20.0, Clock())
    assert limit.count("2001:db8::1").allowed
    assert not limit.count("2001:db8::2").allowed
    assert limit.count("2001:db8:0:1::1").allowed


def test_a_limit_of_zero_is_no_limit() -> None:
    limit = LoginLimit(0, 20.0, Clock())
    assert all(limit.count("10.0.0.1").allowed for _ in range(20))
