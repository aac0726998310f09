"""Other parsers of a request head: llhttp, which many servers use, and a maximally lenient parser.

Written from the standards and not from the code under test, with which it shares nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import httptools

Fields = list[tuple[bytes, bytes]]


@dataclass
class Head:
    """A head as llhttp parses it. `whole`: the head is complete."""

    method: bytes = b""
    target: bytes = b""
    fields: Fields = field(default_factory=list)
    whole: bool = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.whole:
            self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.whole = True

    def values(self, name: str) -> list[bytes]:
        """The values of a header, by its exact name in any case."""
        return [value for key, value in self.fields if key.lower() == name.lower().encode()]


def read_by_llhttp(head: bytes) -> Head | None:
    """The head as llhttp parses it, None where it rejects it or finds no end."""
    parsed = Head()
    parser = httptools.HttpRequestParser(parsed)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError:
        return None
    if not parsed.whole:
        return None
    parsed.method = parser.get_method()
    return parsed


def folded(name: bytes) -> bytes:
    """The name as CGI, WSGI and similar stacks normalize it: by letters and digits alone."""
    return bytes(byte if chr(byte).isalnum() and byte < 128 else 45 for byte in name.lower())


def read_leniently(head: bytes) -> Fields:
    """Every field that any parser might see in it: any line end, obs-fold joined, names normalized,
    blanks before the colon and at both ends ignored.
    """
    lines: list[bytes] = []
    for line in head.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[1:]:
        if line[:1] in (b" ", b"\t") and lines:
            lines[-1] += b" " + line.strip()
        else:
            lines.append(line)
    fields = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if colon:
            fields.append((folded(name.strip()), value.strip()))
    return fields
