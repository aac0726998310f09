"""How a message frames its body (RFC 9112 §6) and what its `Connection` names (RFC 9110 §7.6.1)."""

from __future__ import annotations

from shim.http1.grammar import BLANKS

# Lengths of a body that are none: no field frames one, it is chunked, or it ends with the connection.
NO_BODY = -1
CHUNKED = -2
UNTIL_CLOSE = -3

# Go reads a length into an int64.
MAX_LENGTH = 2**63 - 1
# Options of `Connection`. No sender names more; what a request names is kept with its cached header block.
MAX_OPTIONS = 64


def parse_content_length(value: bytes) -> int:
    """Return the bytes that a `Content-Length` without blanks around it promises. Raises ValueError where it
    is not one number of at most 2^63-1."""
    if not value.isdigit() or len(value) > 19 or (length := int(value)) > MAX_LENGTH:
        raise ValueError("Content-Length is not one number of at most 2^63-1")
    return length


def connection_options(value: bytes) -> frozenset[bytes]:
    """Return the options of a `Connection`, or of several joined by commas, in lower case. Raises ValueError
    for more than `MAX_OPTIONS`."""
    if value.count(b",") >= MAX_OPTIONS:
        raise ValueError(f"Connection names more than {MAX_OPTIONS} options")
    return frozenset([option.strip(BLANKS) for option in value.lower().split(b",")])


def framing_lines(length: int) -> bytes:
    """Return the line that frames a body of this length, with its line end; none where there is no body."""
    if length == CHUNKED:
        return b"Transfer-Encoding: chunked\r\n"
    return b"" if length == NO_BODY else b"Content-Length: %d\r\n" % length
