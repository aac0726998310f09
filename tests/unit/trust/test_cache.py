"""The bounded cache: admission, eviction, and retention of entries in use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shim.trust.cache import AdmissionCache


def build_cache(entries: int = 8, size: int = 800) -> AdmissionCache[str, int]:
    return AdmissionCache(entries, size, lambda key, _: 10 * len(key))


def look_up_or_offer(into: AdmissionCache[str, int], key: str, value: int = 1) -> None:
    """A cache user: look up, and offer on a miss."""
    if into.get(key) is None:
        into.offer(key, value)


def test_an_entry_that_is_offered_once_is_not_cached() -> None:
    of = build_cache()
    of.offer("a", 1)
    assert of.get("a") is None
    assert (len(of), of.size) == (0, 0)
    of.offer("a", 2)
    assert of.get("a") == 2
    assert (len(of), of.size) == (1, 10)


def test_entries_in_use_stay_cached_during_a_flood_of_repeated_entries() -> None:
    of = build_cache()
    for _ in range(2):
        look_up_or_offer(of, "mine")
    for number in range(500):
        for _ in range(3):
            look_up_or_offer(of, f"flood{number:03}")
        if number % 4 == 0:
            assert of.get("mine") == 1, number


def test_a_flood_of_unique_entries_is_not_cached() -> None:
    of = build_cache()
    in_use = ("a", "b", "c")
    for _ in range(2):
        for key in in_use:
            look_up_or_offer(of, key)
    for number in range(1000):
        look_up_or_offer(of, f"flood{number}")
    assert [of.get(key) for key in in_use] == [1, 1, 1]
    assert len(of) == len(in_use)


def test_unused_entries_are_evicted() -> None:
    of = build_cache()
    for _ in range(2):
        look_up_or_offer(of, "old")
    for number in range(100):
        for _ in range(2):
            look_up_or_offer(of, f"new{number:02}")
    assert of.get("old") is None
    assert of.get("new99") == 1


def test_an_entry_larger_than_the_cache_evicts_nothing() -> None:
    of = build_cache()
    for _ in range(2):
        look_up_or_offer(of, "small")
    for _ in range(5):
        look_up_or_offer(of, "x" * 81)
    assert of.get("x" * 81) is None
    assert of.get("small") == 1


def test_the_byte_limit_applies_before_the_entry_limit() -> None:
    of = build_cache(entries=1000, size=100)
    for number in range(200):
        for _ in range(2):
            look_up_or_offer(of, f"{number:05}")  # of 50 each
        assert of.size <= 2 * 100
    assert of.get("00199") == 1


@given(st.lists(st.integers(0, 40), max_size=300), st.integers(1, 8), st.integers(50, 800))
def test_the_cache_is_bounded_in_entries_and_bytes_for_any_input(
    offered: list[int], entries: int, size: int
) -> None:
    of = build_cache(entries, size)
    for number in offered:
        key = "k" * (1 + number % 9) + str(number)
        found = of.get(key)
        assert found is None or found == number
        if found is None:
            of.offer(key, number)
        # Two generations, each within the limits.
        assert len(of) <= 2 * entries
        assert of.size <= 2 * size
        assert len(of._seen_once) <= 8 * entries
