"""Parse one line of a header or a trailer: token, colon, value without control characters (RFC 9112 §5)."""

from __future__ import annotations

from shim.http1.grammar import TEXT, TOKEN


class FieldError(ValueError):
    """The line is not a header field. The message gives the reason and quotes nothing of the line."""


def split_field(line: bytes) -> tuple[bytes, bytes]:
    """Split a line without its line end into name and value; the value keeps its blanks.

    Raises `FieldError`.
    """
    name, colon, value = line.partition(b":")
    if not colon or not name or name.translate(None, TOKEN):
        raise FieldError("not: name, colon, value")
    if value.translate(None, TEXT):
        raise FieldError("a value has a control character")
    return name, value
