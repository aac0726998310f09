"""The bounded cache: admission, eviction, and retention of entries in use."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shim.trust.cache import AdmissionCache


def build_cache(entries: int = 8, size: int = 800) -> AdmissionCache[str, int]:
    return AdmissionCache(entries, size, lambda key, _: 10 * len(key))


def look_up_or_offer(cache: AdmissionCache[str, int], key: str, value: int = 1) -> None:
    """A cache user: look up, and offer on a miss."""
    if cache.get(key) is None:
        cache.offer(key, value)


def test_an_entry_that_is_offered_once_is_not_cached() -> None:
    cache = build_cache()
    cache.offer("a", 1)
    assert cache.get("a") is None
    assert (len(cache), cache.size) == (0, 0)
    cache.offer("a", 2)
    assert cache.get("a") == 2
    assert (len(cache), cache.size) == (1, 10)


def test_entries_in_use_stay_cached_during_a_flood_of_repeated_entries() -> None:
    cache = build_cache()
    for _ in range(2):
        look_up_or_offer(cache, "mine")
    for number in range(500):
        for _ in range(3):
            look_up_or_offer(cache, f"flood{number:03}")
        if number % 4 == 0:
            assert cache.get("mine") == 1, number


def test_a_flood_of_unique_entries_is_not_cached() -> None:
    cache = build_cache()
    in_use = ("a", "b", "c")
    for _ in range(2):
        for key in in_use:
            look_up_or_offer(cache, key)
    for number in range(1000):
        look_up_or_offer(cache, f"flood{number}")
    assert [cache.get(key) for key in in_use] == [1, 1, 1]
    assert len(cache) == len(in_use)


def test_unused_entries_are_evicted() -> None:
    cache = build_cache()
    for _ in range(2):
        look_up_or_offer(cache, "old")
    for number in range(100):
        for _ in range(2):
            look_up_or_offer(cache, f"new{number:02}")
    assert cache.get("old") is None
    assert cache.get("new99") == 1


def test_an_entry_larger_than_the_cache_evicts_nothing() -> None:
    cache = build_cache()
    for _ in range(2):
        look_up_or_offer(cache, "small")
    for _ in range(5):
        look_up_or_offer(cache, "x" * 81)
    assert cache.get("x" * 81) is None
    assert cache.get("small") == 1


def test_the_byte_limit_applies_before_the_entry_limit() -> None:
    cache = build_cache(entries=1000, size=100)
    for number in range(200):
        for _ in range(2):
            look_up_or_offer(cache, f"{number:05}")  # of 50 each
        assert cache.size <= 2 * 100
    assert cache.get("00199") == 1


@given(st.lists(st.integers(0, 40), max_size=300), st.integers(1, 8), st.integers(50, 800))
def test_the_cache_is_bounded_in_entries_and_bytes_for_any_input(
    offered: list[int], entries: int, size: int
) -> None:
    cache = build_cache(entries, size)
    for number in offered:
        key = "k" * (1 + number % 9) + str(number)
        found = cache.get(key)
        assert found is None or found == number
        if found is None:
            cache.offer(key, number)
        # Two generations, each within the limits.
        assert len(cache) <= 2 * entries
        assert cache.size <= 2 * size
        assert len(cache._seen_once) <= 8 * entries
