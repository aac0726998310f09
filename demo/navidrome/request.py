"""A request as the stand-in's handlers use it, and its record for tests.

Headers, cookies and parameters are parsed like Go's net/http does.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

HeaderPairs = tuple[tuple[str, str], ...]
Receive = Callable[[], Awaitable[Any]]

FORM_LIMIT = 10 << 20
"""Bytes of a form that Navidrome reads."""
MOST_PARAMETERS = 10_000
"""Parameters of a query, or of a form, that Go parses (`urlmaxqueryparams`)."""
_KEPT = 16 << 20
"""Bytes of a body that are kept; what is beyond is read and dropped."""
_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
_MEDIA_PARAMETER = r';\s*[^\s=;"]+=([^\s;"]+|"(?:[^"\\]|\\.)*")\s*'
_MEDIA_TYPE = re.compile(rf"([^\s;/]+(?:/[^\s;/]+)?)\s*(?:{_MEDIA_PARAMETER})*;?\s*")


class ClientDisconnected(Exception):
    """The client left before its request was complete."""


class FormError(Exception):
    """A query or a form that Go's `ParseForm` rejects; the text is Go's."""


class RequestBody:
    """The body of a request, which a handler reads or leaves unread, as in Go: `100 Continue` is sent
    when it is read first.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._content: bytes | None = None

    @property
    def is_read(self) -> bool:
        """Whether a handler read it."""
        return self._content is not None

    async def read(self) -> bytes:
        """The whole body. Raises `ClientDisconnected`."""
        if self._content is None:
            buffered = bytearray()
            more = True
            while more:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnected
                if len(buffered) < _KEPT:
                    buffered += message.get("body", b"")
                more = message.get("more_body", False)
            self._content = bytes(buffered)
        return self._content


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """One received request. For tests and the demo; Navidrome has no such feature.

    target: the request line's, escaped as received, with its query.
    headers: names with their spelling, in order, repeated ones separate.
    peer: the socket's peer, an address or `@`.
    """

    method: str
    target: str
    headers: HeaderPairs
    peer: str

    def values(self, name: str) -> list[str]:
        """Every value of a header, whatever its name's case."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


@dataclass(frozen=True, slots=True)
class Params:
    """A query or a form, decoded; every value of a name is kept, in order."""

    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Params:
        """Read `a=b&c=d`. A pair that Go's `url.ParseQuery` rejects is dropped; of too many, all are."""
        pairs = text.split("&")
        if len(pairs) > MOST_PARAMETERS:
            return cls()
        buffered = "&".join(pair for pair in pairs if ";" not in pair and not _ESCAPE.search(pair))
        return cls(tuple(parse_qsl(buffered, keep_blank_values=True, errors="replace")))

    def all(self, name: str) -> list[str]:
        """Every value of a parameter."""
        return [value for key, value in self.pairs if key == name]

    def first(self, name: str) -> str:
        """The first value of a parameter, "" if it is missing."""
        return next((value for key, value in self.pairs if key == name), "")

    def number(self, name: str) -> int:
        """A parameter as a number, 0 if it is not a number (`strconv.Atoi`, its error ignored)."""
        text = self.first(name)
        digits = text[1:] if text[:1] in {"+", "-"} else text
        return int(text) if digits.isascii() and digits.isdigit() else 0


@dataclass(frozen=True, slots=True)
class Request:
    """A complete request.

    path: escaped as received, below the base path; routing is on this one.
    query, query_text: the query, decoded and as received.
    peer: the socket's peer, an address or `@`.
    trusted: whether that peer may send the user header.
    """

    method: str
    path: str
    query: Params
    query_text: str
    headers: HeaderPairs
    body: RequestBody
    peer: str
    trusted: bool

    def header(self, name: str) -> str:
        """The first value of a header, "" if it is missing (`Header.Get`)."""
        lowered = name.lower()
        return next((value for key, value in self.headers if key.lower() == lowered), "")

    def cookie(self, name: str) -> str:
        """The first cookie of a name, without the quotes around its value."""
        for key, line in self.headers:
            if key.lower() != "cookie":
                continue
            for part in line.split(";"):
                cookie, equals, value = part.strip().partition("=")
                if equals and cookie == name:
                    quoted = len(value) > 1 and value[0] == value[-1] == '"'
                    return value[1:-1] if quoted else value
        return ""

    def values(self, name: str) -> list[str]:
        """Every value of a header."""
        lowered = name.lower()
        return [value for key, value in self.headers if key.lower() == lowered]

    async def form(self) -> Params:
        """Query and form body together, the body first (`ParseForm`).

        Raises `FormError`, and `ClientDisconnected`.
        """
        pairs: tuple[tuple[str, str], ...] = ()
        error = ""
        if self.method in {"POST", "PUT", "PATCH"}:
            kind = self.header("Content-Type") or "application/octet-stream"
            media_type = kind.partition(";")[0].strip().lower()
            if not media_type:
                error = "mime: no media type"
            elif _MEDIA_TYPE.fullmatch(kind.strip()) is None:
                error = "mime: invalid media parameter"
            if media_type == "application/x-www-form-urlencoded":
                content = await self.body.read()
                if len(content) > FORM_LIMIT:
                    raise FormError("http: request body too large")
                text = content.decode("utf-8", "replace")
                pairs = Params.parse(text).pairs
                error = error or _query_error(text)
        error = error or _query_error(self.query_text)
        if error:
            raise FormError(error)
        merged = Params(pairs + self.query.pairs)
        # Navidrome writes them as one query, which is parsed again.
        return merged if len(merged.pairs) <= MOST_PARAMETERS else Params()


def _query_error(text: str) -> str:
    """The error of Go's `url.ParseQuery`, "" for none."""
    if text.count("&") >= MOST_PARAMETERS:
        return "number of URL query parameters exceeded limit"
    if ";" in text:
        return "invalid semicolon separator in query"
    found = _ESCAPE.search(text)
    return f'invalid URL escape "{text[found.start() : found.start() + 3]}"' if found else ""
