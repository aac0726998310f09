"""A file served as Go's `http.ServeContent` does: ranges, conditions, and their refusals.

Values in, an `Answer` out. The rules are RFC 9110 §13 and §14 as net/http's fs.go reads them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from shim.demo.navidrome.answers import Answer, text_error
from shim.demo.navidrome.media import Tone
from shim.demo.navidrome.request import Request

LAST_MODIFIED = "Wed, 01 May 2024 00:00:00 GMT"
_BOUNDARY = "3d6b6a416f9b5e9d9fd0a5a7d9a6e4a1b2c3d4e5f60718293a4b5c6d7e8f"


class InvalidRangeError(ValueError):
    """A `Range` that can't be read or, with `past_end`, lies wholly beyond the file."""

    def __init__(self, *, past_end: bool) -> None:
        super().__init__("invalid range: failed to overlap" if past_end else "invalid range")
        self.past_end = past_end


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `start` up to `end`, the latter not among them."""

    start: int
    end: int

    def content_range(self, size: int) -> str:
        """The value of `Content-Range`."""
        return f"bytes {self.start}-{self.end - 1}/{size}"


def serve_tone(request: Request, tone: Tone, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """The whole of a tone, the ranges asked for, or why not."""
    if request.header("If-Modified-Since") == LAST_MODIFIED:
        return Answer(304, headers)
    size = tone.size
    wanted = request.header("Range")
    if request.header("If-Range") not in {"", LAST_MODIFIED}:
        wanted = ""
    try:
        spans = parse_range(wanted, size)
    except InvalidRangeError as refusal:
        extra = (("Content-Range", f"bytes */{size}"),) if refusal.past_end else ()
        return text_error(416, str(refusal), (*headers, *extra))
    if sum(span.end - span.start for span in spans) > size:
        spans = []
    served = (*headers, ("Accept-Ranges", "bytes"), ("Last-Modified", LAST_MODIFIED))
    if not spans:
        return _file(200, served, tone, Span(0, size))
    if len(spans) == 1:
        found = ("Content-Range", spans[0].content_range(size))
        return _file(206, (*served, found), tone, spans[0])
    return _multipart(served, tone, spans)


def parse_range(text: str, size: int) -> list[Span]:
    """The ranges of a `Range` header that overlap a file; [] if there is no header.

    Raises `InvalidRangeError`.
    """
    if not text:
        return []
    if not text.startswith("bytes="):
        raise InvalidRangeError(past_end=False)
    spans: list[Span] = []
    missed = False
    for part in text.removeprefix("bytes=").split(","):
        spec = part.strip(" \t")
        if not spec:
            continue
        span = _span(spec, size)
        if span is None:
            missed = True
        else:
            spans.append(span)
    if missed and not spans:
        raise InvalidRangeError(past_end=True)
    return spans


def _span(spec: str, size: int) -> Span | None:
    first, dash, last = (part.strip(" \t") for part in spec.partition("-"))
    if not dash or any(part and not (part.isascii() and part.isdigit()) for part in (first, last)):
        raise InvalidRangeError(past_end=False)
    if not first:
        if not last:
            raise InvalidRangeError(past_end=False)
        # A suffix: the last so many bytes.
        return Span(size - min(int(last), size), size)
    start = int(first)
    if start >= size:
        return None
    if not last:
        return Span(start, size)
    if start > int(last):
        raise InvalidRangeError(past_end=False)
    return Span(start, min(int(last) + 1, size))


def _file(status: int, headers: tuple[tuple[str, str], ...], tone: Tone, span: Span) -> Answer:
    length = ("Content-Length", str(span.end - span.start))
    kind = ("Content-Type", "audio/x-wav")
    return Answer(status, (*headers, length, kind), tone.pieces(span.start, span.end))


def _multipart(headers: tuple[tuple[str, str], ...], tone: Tone, spans: list[Span]) -> Answer:
    heads = [
        f"{'' if n == 0 else chr(13) + chr(10)}--{_BOUNDARY}\r\n"
        f"Content-Range: {span.content_range(tone.size)}\r\nContent-Type: audio/x-wav\r\n\r\n".encode()
        for n, span in enumerate(spans)
    ]
    tail = f"\r\n--{_BOUNDARY}--\r\n".encode()
    length = sum(map(len, heads)) + sum(s.end - s.start for s in spans) + len(tail)

    async def parts() -> AsyncGenerator[bytes, None]:
        for head, span in zip(heads, spans, strict=True):
            yield head
            async for piece in tone.pieces(span.start, span.end):
                yield piece
        yield tail

    kind = ("Content-Type", f"multipart/byteranges; boundary={_BOUNDARY}")
    return Answer(206, (*headers, ("Content-Length", str(length)), kind), parts())
