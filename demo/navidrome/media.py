"""Generated media: a WAV tone and a JPEG cover.

Both are pure functions of their parameters, so that any slice of a file of any size costs only the
slice: a track of a gigabyte needs no memory.
"""

from __future__ import annotations

import math
import struct
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import pairwise

SAMPLE_RATE = 8000
_BYTES_PER_SECOND = SAMPLE_RATE * 2
_WAV_HEADER = 44
PIECE = 64 * 1024
"""Bytes of media written at a time."""


@dataclass(frozen=True, slots=True)
class Tone:
    """A WAV file of a sine: 16 bits, mono.

    seconds: its length; hertz: a divisor of 8000, so that one period repeats exactly.
    """

    seconds: int
    hertz: int

    @property
    def size(self) -> int:
        """The size of the file in bytes, with its head."""
        return _WAV_HEADER + self.seconds * _BYTES_PER_SECOND

    def slice(self, start: int, end: int) -> bytes:
        """The file's bytes from `start` up to `end`."""
        head = self._head()
        end = min(end, self.size)
        if end <= start:
            return b""
        data_start, data_end = max(start - _WAV_HEADER, 0), max(end - _WAV_HEADER, 0)
        period = self._period()
        first = data_start % len(period)
        needed = data_end - data_start
        repeated = period * ((first + needed) // len(period) + 1)
        return head[start:end] + repeated[first : first + needed]

    async def pieces(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """The same in pieces of 64 KiB."""
        for at in range(start, end, PIECE):
            yield self.slice(at, min(at + PIECE, end))

    def _period(self) -> bytes:
        samples = SAMPLE_RATE // self.hertz
        wave = (int(8000 * math.sin(2 * math.pi * n / samples)) for n in range(samples))
        return b"".join(struct.pack("<h", value) for value in wave)

    def _head(self) -> bytes:
        data = min(self.size - _WAV_HEADER, 0xFFFFFFFF - _WAV_HEADER)
        return struct.pack(
            "<4sI4s4sIHHIIHH4sI",
            b"RIFF",
            data + _WAV_HEADER - 8,
            b"WAVE",
            b"fmt ",
            16,
            1,
            1,
            SAMPLE_RATE,
            _BYTES_PER_SECOND,
            2,
            16,
            b"data",
            data,
        )


def cover(size: int, edge: int, pattern: int) -> bytes:
    """A mosaic in greys as a baseline JPEG (ITU T.81), padded with comments to `size` bytes.

    edge: pixels of each side; pattern: which mosaic. Never shorter than the picture needs.
    """
    blocks = math.ceil(edge / 8)
    # Every DC category has a code of four bits, its number; the one AC code, "0", ends a block.
    levels = [_level(n // blocks, n % blocks, pattern) for n in range(blocks * blocks)]
    steps = (level - before for before, level in pairwise([0, *levels]))
    bits = "".join(f"{_dc_code(step)}0" for step in steps)
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    start = b"\xff\xd8" + _segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
    remainder = (
        _segment(0xDB, b"\0" + b"\x08" * 64)
        + _segment(0xC0, struct.pack(">BHHB", 8, edge, edge, 1) + b"\1\x11\0")
        + _segment(0xC4, b"\0" + _code_lengths({4: 12}) + bytes(range(12)))
        + _segment(0xC4, b"\x10" + _code_lengths({1: 1}) + b"\0")
        + _segment(0xDA, b"\1\1\0\0\x3f\0")
        + scan
        + b"\xff\xd9"
    )
    return start + _comments(size - len(start) - len(remainder)) + remainder


def _level(row: int, column: int, pattern: int) -> int:
    # What a block's one value is: with a quantiser of 8, its brightness above middle grey.
    return (row * 37 + column * 57 + row * column * 11 + pattern * row) % 201 - 100


def _dc_code(step: int) -> str:
    category = abs(step).bit_length()
    if category == 0:
        return "0000"
    value = step if step > 0 else step + (1 << category) - 1
    return f"{category:04b}{value:0{category}b}"


def _code_lengths(counts: dict[int, int]) -> bytes:
    return bytes(counts.get(length, 0) for length in range(1, 17))


def _comments(remaining: int) -> bytes:
    out = bytearray()
    while remaining >= 4:
        text = min(remaining - 4, 0xFFFD)
        out += _segment(0xFE, b"." * text)
        remaining -= text + 4
    return bytes(out)


def _segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload
