"""How others read a head: llhttp, which is what many servers have, and a reader that is laxer than any.

Written against the standards' text and not against the code under test, with which it shares nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import httptools

Fields = list[tuple[bytes, bytes]]


@dataclass
class Head:
    """A head as llhttp reads it. `whole` tells that it came to its end."""

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
    """The head as llhttp reads it, None where it rejects it or has not seen its end."""
    told = Head()
    parser = httptools.HttpRequestParser(told)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError:
        return None
    if not told.whole:
        return None
    told.method = parser.get_method()
    return told


def folded(name: bytes) -> bytes:
    """The name as CGI, WSGI and their kin tell names apart: by letters and digits alone."""
    return bytes(byte if chr(byte).isalnum() and byte < 128 else 45 for byte in name.lower())


def read_by_the_laxest(head: bytes) -> Fields:
    """Every field that anybody might see in it: any line end, obs-fold joined, names folded, blanks
    before the colon and at both ends passed over."""
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
