"""Define the characters and tokens of HTTP (RFC 9110 §5.5, §5.6.2; RFC 3986 §3.2.2).

All parsers and validators use these definitions.
"""

from __future__ import annotations

import re

TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# The same as part of a regular expression.
TOKEN_PATTERN = b"[%b]+" % re.escape(TOKEN)
# RFC 9110 §5.5: visible characters, blank, tab and obs-text.
TEXT = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
BLANKS = b" \t"

_TOKEN = re.compile(TOKEN_PATTERN)
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")


def is_token(text: bytes) -> bool:
    """Return whether the text is a token."""
    return _TOKEN.fullmatch(text) is not None


def is_host(value: bytes) -> bool:
    """Return whether the value is a valid `Host`: a name or an address, with or without a port."""
    return _HOST.fullmatch(value) is not None
