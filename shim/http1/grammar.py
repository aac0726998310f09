"""The characters of HTTP fields (RFC 9110 §5.5, §5.6.2)."""

from __future__ import annotations

TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# RFC 9110 §5.5: visible characters, blank, tab and obs-text.
TEXT = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
BLANKS = b" \t"
