"""Decode and encode the chunked transfer coding (RFC 9112 §7.1).

The decoder is strict and pure: the caller feeds it bytes in any slicing. It returns the pieces of the
body and the position where the message ends, which httptools does not report. Chunk extensions and
trailers are limited in bytes and dropped.
"""

from __future__ import annotations

import re
import sys

from shim.http1.framing import MAX_LENGTH
from shim.http1.grammar import TOKEN_PATTERN
from shim.http1.header_field import FieldError, split_field

LAST_CHUNK = b"0\r\n\r\n"

# An extension is a name, or a name and a token or quoted text. Blanks are not accepted: no sender uses
# them.
_TEXT = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e])*"'
_PLAIN_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")
_SIZE = re.compile(
    rb"([0-9A-Fa-f]{1,16})(?:;%b(?:=(?:%b|%b))?)*" % (TOKEN_PATTERN, TOKEN_PATTERN, _TEXT)
)
_MAX_LINE = 4096
_MAX_EXTRAS = 16384  # bytes of extensions and trailers in one message


class ChunkedError(ValueError):
    """The body is not in chunked coding."""


class ChunkedDecoder:
    """Decode one chunked body. `done` is true after the last line of the body."""

    __slots__ = ("_end", "_extras", "_line", "_remaining", "_trailers", "done")

    def __init__(self) -> None:
        self.done = False
        self._remaining = 0  # bytes of the current chunk that are not received yet
        self._end = 0  # bytes of the line end after a chunk that are not received yet
        self._line = b""  # an incomplete line
        self._trailers = False
        self._extras = 0

    def feed(self, data: bytes, max_lines: int = sys.maxsize) -> tuple[list[bytes], int]:
        """Decode up to `max_lines` chunk lines and trailers of `data`.

        Returns the pieces of the body and the number of bytes of `data` that were read: all of them,
        unless the body ended (`done`) or `max_lines` was reached. Raises `ChunkedError`.
        """
        pieces: list[bytes] = []
        at, end = 0, len(data)
        while at < end and not self.done:
            if self._remaining:
                piece = data[at : at + self._remaining]
                pieces.append(piece)
                self._remaining -= len(piece)
                at += len(piece)
                self._end = 2 if not self._remaining else 0
            elif self._end:
                if data[at] != (13 if self._end == 2 else 10):
                    raise ChunkedError("a chunk does not end in CRLF")
                self._end -= 1
                at += 1
            elif not max_lines:
                break
            else:
                max_lines -= 1
                at = self._read_chunk(data, at, pieces)
        return pieces, at

    def _read_chunk(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """Read a chunk line, and its chunk if the chunk is complete."""
        size = None if self._line or self._trailers else _PLAIN_SIZE.match(data, at)
        if size is None:  # with extensions, or incomplete, or a trailer
            return self._read_line(data, at)
        self._take_size(size[1])
        start = size.end()
        stop = start + self._remaining
        if stop == start or data[stop : stop + 2] != b"\r\n":
            return start
        pieces.append(data[start:stop])
        self._remaining = 0
        return stop + 2

    def _read_line(self, data: bytes, at: int) -> int:
        stop = data.find(b"\n", at)
        part = data[at:] if stop < 0 else data[at : stop + 1]
        self._line += part
        if len(self._line) > _MAX_LINE:
            raise ChunkedError("a chunk's line or a trailer is too long")
        if stop < 0:
            return len(data)
        line, self._line = self._line, b""
        if line[-2:] != b"\r\n":
            raise ChunkedError("a line does not end in CRLF")
        if self._trailers:
            self._read_trailer(line[:-2])
        else:
            self._read_size(line[:-2])
        return stop + 1

    def _read_size(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line)
        if match is None:
            raise ChunkedError("a chunk's size is not a hexadecimal number")
        self._count(len(line) - len(match[1]))
        self._take_size(match[1])

    def _take_size(self, digits: bytes) -> None:
        self._remaining = int(digits, 16)
        if self._remaining > MAX_LENGTH:
            raise ChunkedError("a chunk is longer than 2^63-1 bytes")
        self._trailers = not self._remaining

    def _read_trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        try:
            split_field(line)
        except FieldError as error:
            raise ChunkedError(f"a trailer: {error}") from None
        self._count(len(line) + 2)

    def _count(self, extra: int) -> None:
        self._extras += extra
        if self._extras > _MAX_EXTRAS:
            raise ChunkedError("too many bytes of chunk extensions and trailers")


def encode_chunk(pieces: list[bytes]) -> bytes:
    """Encode the pieces as one chunk. Returns no bytes for an empty body, since an empty chunk ends the
    body.
    """
    size = sum(map(len, pieces))
    if not size:
        return b""
    return b"%x\r\n%b\r\n" % (size, b"".join(pieces))
