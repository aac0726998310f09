"""Compressed responses, as chi's `middleware.Compress` sends them.

The first of gzip and deflate that `Accept-Encoding` contains is used, whatever its `q`.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Final

from demo.navidrome.request import Request
from demo.navidrome.responses import Response

_TYPES: Final = frozenset(
    {
        "application/xml",
        "application/json",
        "application/javascript",
        "text/html",
        "text/plain",
        "text/css",
        "text/javascript",
        "text/event-stream",
    }
)
_WINDOW_BITS: Final = {"gzip": 31, "deflate": -15}
"""zlib's parameter for each coding; "deflate" is without zlib's header."""


def compressed(response: Response, request: Request) -> Response:
    """The response in the coding that the client accepts, if its media type is one that is compressed."""
    accepted = request.header("Accept-Encoding").lower()
    coding = next((name for name in _WINDOW_BITS if name in accepted), None)
    kind = next((v for n, v in response.headers if n.lower() == "content-type"), "")
    has_content = not isinstance(response.body, bytes) or bool(response.body)
    if coding is None or kind.partition(";")[0] not in _TYPES or not has_content:
        return response
    encoder = zlib.compressobj(5, zlib.DEFLATED, _WINDOW_BITS[coding])
    remaining = tuple(each for each in response.headers if each[0].lower() != "content-length")
    headers = (*remaining, ("Content-Encoding", coding), ("Vary", "Accept-Encoding"))
    if isinstance(response.body, bytes):
        body: bytes | AsyncGenerator[bytes, None] = (
            encoder.compress(response.body) + encoder.flush()
        )
    else:
        body = _pieces(response.body, encoder)
    return replace(response, headers=headers, body=body)


async def _pieces(
    pieces: AsyncGenerator[bytes, None], encoder: zlib._Compress
) -> AsyncGenerator[bytes, None]:
    try:
        async for piece in pieces:
            yield encoder.compress(piece) + encoder.flush(zlib.Z_SYNC_FLUSH)
        yield encoder.flush()
    finally:
        await pieces.aclose()
