"""The bounded memory: what is admitted, what has to go, and what stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shim.trust.cache import AdmissionCache


def memory(entries: int = 8, size: int = 800) -> AdmissionCache[str, int]:
    return AdmissionCache(entries, size, lambda key, _: 10 * len(key))


def learn(into: AdmissionCache[str, int], key: str, value: int = 1) -> None:
    """What a reader does: ask, and offer what was not there."""
    if into.get(key) is None:
        into.offer(key, value)


def test_what_is_offered_once_is_not_remembered() -> None:
    of = memory()
    of.offer("a", 1)
    assert of.get("a") is None
    assert (len(of), of.size) == (0, 0)
    of.offer("a", 2)
    assert of.get("a") == 2
    assert (len(of), of.size) == (1, 10)


def test_what_is_in_use_stays_while_a_flood_of_things_that_repeat_passes_by() -> None:
    of = memory()
    for _ in range(2):
        learn(of, "mine")
    for number in range(500):
        for _ in range(3):
            learn(of, f"flood{number:03}")
        if number % 4 == 0:
            assert of.get("mine") == 1, number


def test_a_flood_of_things_that_come_once_leaves_no_trace() -> None:
    of = memory()
    kept = ("a", "b", "c")
    for _ in range(2):
        for key in kept:
            learn(of, key)
    for number in range(1000):
        learn(of, f"flood{number}")
    assert [of.get(key) for key in kept] == [1, 1, 1]
    assert len(of) == len(kept)


def test_what_is_used_no_more_makes_room() -> None:
    of = memory()
    for _ in range(2):
        learn(of, "old")
    for number in range(100):
        for _ in range(2):
            learn(of, f"new{number:02}")
    assert of.get("old") is None
    assert of.get("new99") == 1


def test_one_that_is_larger_than_the_memory_pushes_nobody_out() -> None:
    of = memory()
    for _ in range(2):
        learn(of, "small")
    for _ in range(5):
        learn(of, "x" * 81)
    assert of.get("x" * 81) is None
    assert of.get("small") == 1


def test_bytes_bound_it_long_before_entries_do() -> None:
    of = memory(entries=1000, size=100)
    for number in range(200):
        for _ in range(2):
            learn(of, f"{number:05}")  # of 50 each
        assert of.size <= 2 * 100
    assert of.get("00199") == 1


@given(st.lists(st.integers(0, 40), max_size=300), st.integers(1, 8), st.integers(50, 800))
def test_it_is_bounded_in_entries_and_bytes_whatever_is_offered(
    asked: list[int], entries: int, size: int
) -> None:
    of = memory(entries, size)
    for number in asked:
        key = "k" * (1 + number % 9) + str(number)
        found = of.get(key)
        assert found is None or found == number
        if found is None:
            of.offer(key, number)
        # Two generations, each within the bounds.
        assert len(of) <= 2 * entries
        assert of.size <= 2 * size
        assert len(of._seen_once) <= 8 * entries
