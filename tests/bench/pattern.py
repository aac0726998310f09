"""A body of any length that both ends know: one block of noise, repeated."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator

BLOCK = 256 * 1024

_NOISE = random.Random(20261124).randbytes(BLOCK)


def pattern(size: int) -> Iterator[bytes]:
    """`size` bytes in blocks of at most BLOCK bytes."""
    whole, rest = divmod(size, BLOCK)
    for _ in range(whole):
        yield _NOISE
    if rest:
        yield _NOISE[:rest]


def pattern_crc32(size: int) -> int:
    crc = 0
    for block in pattern(size):
        crc = zlib.crc32(block, crc)
    return crc
