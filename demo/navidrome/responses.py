"""Responses as Go's net/http, chi and deluan/rest frame them. Values; nothing here sends.

A body of bytes is sent with a length up to Go's 2048-byte buffer and in chunks beyond it, unless
the response sets its own length; an iterator is sent in chunks unless a length is given. A body
without a `Content-Type` is sent as plain text, and not compressed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, replace

from demo.navidrome.goform import Json, json_bytes

BUFFERED = 2048
"""Bytes that net/http holds back to count before it falls back to chunks."""

HeaderPairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Response:
    """A response to a request."""

    status: int = 200
    headers: HeaderPairs = ()
    body: bytes | AsyncGenerator[bytes, None] = b""

    def has(self, name: str) -> bool:
        """Whether it has a header of this name."""
        return any(each.lower() == name.lower() for each, _ in self.headers)

    def adding(self, *headers: tuple[str, str]) -> Response:
        """The same response with more headers before its own."""
        return replace(self, headers=(*headers, *self.headers))

    def followed_by(self, text: bytes) -> Response:
        """The same response with more text at the end of its body."""
        return replace(self, body=self.body + text) if isinstance(self.body, bytes) else self


def json_response(
    value: Json, status: int = 200, headers: Iterable[tuple[str, str]] = ()
) -> Response:
    """`rest.RespondWithJSON`."""
    return Response(status, (("Content-Type", "application/json"), *headers), json_bytes(value))


def json_error(status: int, message: str) -> Response:
    """`rest.RespondWithError`."""
    return json_response({"error": message}, status)


def text_error(status: int, message: str, headers: Iterable[tuple[str, str]] = ()) -> Response:
    """`http.Error`: plain text with a line end."""
    content_type = ("Content-Type", "text/plain; charset=utf-8")
    return Response(status, (content_type, *headers), f"{message}\n".encode())


def not_found() -> Response:
    """The response of chi where no route matches."""
    return text_error(404, "404 page not found")


def method_not_allowed(*allowed: str) -> Response:
    """The response of chi where a route matches and its method does not: no body, and one header for
    each method that the route has."""
    return Response(405, tuple(("Allow", method) for method in allowed))


def redirect(location: str) -> Response:
    """`http.Redirect` with 302 to a path that needs no escaping."""
    return Response(
        302,
        (("Content-Type", "text/html; charset=utf-8"), ("Location", location)),
        f'<a href="{location}">Found</a>.\n\n'.encode(),
    )
