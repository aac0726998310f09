"""The circuit breaker: it opens, allows one trial call, and closes again."""

from __future__ import annotations

from shim.navidrome.breaker import Breaker


def failed(breaker: Breaker, times: int, now: float) -> None:
    for _ in range(times):
        assert breaker.wait(now) == 0
        breaker.failed(now)


def test_it_opens_after_a_number_of_consecutive_failures() -> None:
    breaker = Breaker(failures=3, first=2)
    failed(breaker, 2, 0)
    assert breaker.wait(0) == 0
    breaker.succeeded()
    failed(breaker, 3, 0)
    assert breaker.is_open
    assert breaker.wait(0.5) == 1.5


def test_one_successful_trial_call_closes_it() -> None:
    breaker = Breaker(failures=1, first=2)
    failed(breaker, 1, 0)
    assert breaker.wait(2) == 0
    assert breaker.wait(2) > 0
    breaker.succeeded()
    assert not breaker.is_open and breaker.wait(2) == 0


def test_each_failed_trial_doubles_the_pause_up_to_a_maximum() -> None:
    breaker, now, pauses = Breaker(failures=1, first=1, last=5), 0.0, []
    failed(breaker, 1, now)
    for _ in range(4):
        pause = breaker.wait(now)
        pauses.append(pause)
        now += pause
        failed(breaker, 1, now)
    assert pauses == [1, 2, 4, 5]


def test_a_cancelled_trial_allows_the_next_one() -> None:
    breaker = Breaker(failures=1, first=1)
    failed(breaker, 1, 0)
    assert breaker.wait(1) == 0
    breaker.cancelled()
    assert breaker.wait(1) == 0
