"""Parse the framing of a body (RFC 9112 §6) and the options of `Connection` (RFC 9110 §7.6.1)."""

from __future__ import annotations

from shim.http1.grammar import BLANKS

# Special body lengths: no body, chunked, and delimited by the end of the connection.
NO_BODY = -1
CHUNKED = -2
UNTIL_CLOSE = -3

# Go reads a length into an int64.
MAX_LENGTH = 2**63 - 1
# Maximum number of `Connection` options. No client sends more, and the options are cached with the header
# block.
MAX_OPTIONS = 64


def parse_content_length(value: bytes) -> int:
    """Parse a `Content-Length` value without surrounding blanks, in bytes.

    Raises ValueError if it is not one number of at most 2^63-1.
    """
    if not value.isdigit() or len(value) > 19 or (length := int(value)) > MAX_LENGTH:
        raise ValueError("Content-Length is not one number of at most 2^63-1")
    return length


def connection_options(value: bytes) -> frozenset[bytes]:
    """Return the options of a `Connection` value, or of several joined by commas, in lower case.

    Raises ValueError for more than `MAX_OPTIONS`.
    """
    if value.count(b",") >= MAX_OPTIONS:
        raise ValueError(f"Connection names more than {MAX_OPTIONS} options")
    return frozenset([option.strip(BLANKS) for option in value.lower().split(b",")])


def framing_lines(length: int) -> bytes:
    """Return the header line that frames a body of this length, with its line end.

    Returns no bytes if there is no body.
    """
    if length == CHUNKED:
        return b"Transfer-Encoding: chunked\r\n"
    return b"" if length == NO_BODY else b"Content-Length: %d\r\n" % length
