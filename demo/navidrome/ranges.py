"""A file served like Go's `http.ServeContent`: ranges, conditions, and their errors.

Values in, a `Response` out. The rules are RFC 9110 §13 and §14 as net/http's fs.go implements them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from demo.navidrome.media import Tone
from demo.navidrome.request import Request
from demo.navidrome.responses import Response, text_error

LAST_MODIFIED = "Wed, 01 May 2024 00:00:00 GMT"
_MODIFIED = parsedate_to_datetime(LAST_MODIFIED).timestamp()
_BOUNDARY = "3d6b6a416f9b5e9d9fd0a5a7d9a6e4a1b2c3d4e5f60718293a4b5c6d7e8f"


class InvalidRangeError(ValueError):
    """A `Range` that is malformed or, with `past_end`, lies completely beyond the file."""

    def __init__(self, *, past_end: bool) -> None:
        super().__init__("invalid range: failed to overlap" if past_end else "invalid range")
        self.past_end = past_end


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes `start` to `end`, exclusive."""

    start: int
    end: int

    def content_range(self, size: int) -> str:
        """The value of `Content-Range`."""
        return f"bytes {self.start}-{self.end - 1}/{size}"


def serve_tone(request: Request, tone: Tone, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """The whole tone, the requested ranges, or an error."""
    failed = _failed_condition(request)
    if failed == 304:
        return Response(304, headers)
    if failed:
        return Response(failed, (*headers, ("Last-Modified", LAST_MODIFIED)))
    size = tone.size
    range_header = request.header("Range")
    if request.header("If-Range") not in {"", LAST_MODIFIED}:
        range_header = ""
    try:
        byte_ranges = parse_range(range_header, size)
    except InvalidRangeError as error:
        extra = (("Content-Range", f"bytes */{size}"),) if error.past_end else ()
        return text_error(416, str(error), (*headers, *extra))
    if sum(byte_range.end - byte_range.start for byte_range in byte_ranges) > size:
        byte_ranges = []
    served = (*headers, ("Accept-Ranges", "bytes"), ("Last-Modified", LAST_MODIFIED))
    if not byte_ranges:
        return _file(200, served, tone, ByteRange(0, size))
    if len(byte_ranges) == 1:
        found = ("Content-Range", byte_ranges[0].content_range(size))
        return _file(206, (*served, found), tone, byte_ranges[0])
    return _multipart(served, tone, byte_ranges)


def _failed_condition(request: Request) -> int:
    """The status for a condition that is not met, 0 for none. A tone has no `ETag`."""
    if request.header("If-Match") not in {"", "*"}:
        return 412
    since = _seconds(request.header("If-Unmodified-Since"))
    if since is not None and not request.header("If-Match") and since < _MODIFIED:
        return 412
    if request.header("If-None-Match"):
        return 304 if request.header("If-None-Match").strip() == "*" else 0
    since = _seconds(request.header("If-Modified-Since"))
    return 304 if since is not None and since >= _MODIFIED else 0


def _seconds(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except ValueError:
        return None


def parse_range(text: str, size: int) -> list[ByteRange]:
    """The ranges of a `Range` header that overlap a file; [] if there is no header.

    Raises `InvalidRangeError`.
    """
    if not text:
        return []
    if not text.startswith("bytes="):
        raise InvalidRangeError(past_end=False)
    byte_ranges: list[ByteRange] = []
    unsatisfiable = False
    for part in text.removeprefix("bytes=").split(","):
        spec = part.strip(" \t")
        if not spec:
            continue
        byte_range = _byte_range(spec, size)
        if byte_range is None:
            unsatisfiable = True
        else:
            byte_ranges.append(byte_range)
    if unsatisfiable and not byte_ranges:
        raise InvalidRangeError(past_end=True)
    return byte_ranges


def _byte_range(spec: str, size: int) -> ByteRange | None:
    first, dash, last = (part.strip(" \t") for part in spec.partition("-"))
    if not dash or any(part and not (part.isascii() and part.isdigit()) for part in (first, last)):
        raise InvalidRangeError(past_end=False)
    if not first:
        if not last:
            raise InvalidRangeError(past_end=False)
        # A suffix: the last bytes of this number.
        return ByteRange(size - min(int(last), size), size)
    start = int(first)
    if start >= size:
        return None
    if not last:
        return ByteRange(start, size)
    if start > int(last):
        raise InvalidRangeError(past_end=False)
    return ByteRange(start, min(int(last) + 1, size))


def _file(
    status: int, headers: tuple[tuple[str, str], ...], tone: Tone, byte_range: ByteRange
) -> Response:
    length = ("Content-Length", str(byte_range.end - byte_range.start))
    kind = ("Content-Type", "audio/x-wav")
    return Response(status, (*headers, length, kind), tone.pieces(byte_range.start, byte_range.end))


def _multipart(
    headers: tuple[tuple[str, str], ...], tone: Tone, byte_ranges: list[ByteRange]
) -> Response:
    heads = [
        f"{'' if n == 0 else chr(13) + chr(10)}--{_BOUNDARY}\r\n"
        f"Content-Range: {byte_range.content_range(tone.size)}\r\nContent-Type: audio/x-wav\r\n\r\n".encode()
        for n, byte_range in enumerate(byte_ranges)
    ]
    tail = f"\r\n--{_BOUNDARY}--\r\n".encode()
    length = sum(map(len, heads)) + sum(s.end - s.start for s in byte_ranges) + len(tail)

    async def parts() -> AsyncGenerator[bytes, None]:
        for head, byte_range in zip(heads, byte_ranges, strict=True):
            yield head
            async for piece in tone.pieces(byte_range.start, byte_range.end):
                yield piece
        yield tail

    kind = ("Content-Type", f"multipart/byteranges; boundary={_BOUNDARY}")
    return Response(206, (*headers, ("Content-Length", str(length)), kind), parts())
