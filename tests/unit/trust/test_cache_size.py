"""The memory of the caches is accounted for: the process does not hold more than is counted."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from shim.trust.cached_decisions import DecisionCache
from shim.trust.peers import parse_peer
from tests.support.decisions import ADA, POLICY, head

_MAX_CACHED = 1 << 24  # the maximum of all trusted peers' caches, in two generations
_FIXED = 1 << 17  # of the caches themselves, and of keys that were seen once

Block = Callable[[int], list[str]]
BLOCKS: dict[str, Block] = {
    "options": lambda n: [f"Connection: {','.join(f'x{n}-{i}' for i in range(64))}"],
    "long options": lambda n: [f"Connection: {','.join(f'x{n}-{i}' * 60 for i in range(64))}"],
    "identity headers": lambda n: [ADA, *(f"X-authentik-{n}-{i}: x" for i in range(90))],
    "forwarded headers": lambda n: [f"X-Forwarded-{n}-{i}: x" for i in range(90)],
    "lines": lambda n: [f"X{n}-{i}: x" for i in range(90)],
    "groups": lambda n: [ADA, f"X-authentik-groups: {'|'.join(f'{n}{i}' for i in range(2000))}"],
    "wide text": lambda n: [ADA, f"X-authentik-groups: {n}{'a' * 15000}\U0001f600"],
    "invalid text": lambda n: [f"X-authentik-username: {n}{'a' * 15000}"],
    "no UTF-8": lambda n: [f"X-authentik-name: {n}{'a' * 15000}\udcff"],
    "cookies": lambda n: [f"Cookie: a={n}{'x' * 30000}"],
    "tokens of Navidrome": lambda n: [ADA, f"Cookie: jwt={n}{'x' * 30000}"],
}


@pytest.fixture
def _traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("address", ["127.0.0.2", "127.0.0.1"])
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.usefixtures("_traced")
def test_the_size_of_cached_entries_is_counted(name: str, address: str) -> None:
    learn(DecisionCache(POLICY), address, BLOCKS[name], range(2))
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    decisions = DecisionCache(POLICY)
    learn(decisions, address, BLOCKS[name], range(60))
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    assert decisions.size > _FIXED, "something is cached"
    assert held < decisions.size + _FIXED
    assert decisions.size < _MAX_CACHED


def learn(decisions: DecisionCache, address: str, block: Block, numbers: range) -> None:
    context = decisions.connection_context(parse_peer(address), b"http")
    for number in numbers:
        for _ in range(2):
            text = head(
                "GET / HTTP/1.1", *(line.encode(errors="surrogateescape") for line in block(number))
            )
            line, _, rest = text[:-2].partition(b"\r\n")
            decisions.decide(line, rest, context, None, 1.0)
