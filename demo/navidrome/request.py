"""A request as the stand-in's handlers use it, and its record for tests.

Headers, cookies and parameters are parsed like Go's net/http does.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl

HeaderPairs = tuple[tuple[str, str], ...]


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
        """Read `a=b&c=d`. A pair with a `;` in it is dropped, as `url.ParseQuery` does."""
        buffered = "&".join(pair for pair in text.split("&") if ";" not in pair)
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
    peer: the socket's peer, an address or `@`.
    trusted: whether that peer may send the user header.
    """

    method: str
    path: str
    query: Params
    headers: HeaderPairs
    body: bytes
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

    def form(self) -> Params:
        """Query and form body together, the body first (`ParseForm`)."""
        kind = self.header("Content-Type").partition(";")[0].strip().lower()
        if self.method == "POST" and kind == "application/x-www-form-urlencoded":
            body = Params.parse(self.body.decode("utf-8", "replace"))
            return Params(body.pairs + self.query.pairs)
        return self.query
