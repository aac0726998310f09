"""Define the identity that a request claims, and decode header bytes to text.

Values are already trimmed. A value that is not valid UTF-8, has control characters or exceeds its limit
is rejected: Go, Python and a database would each read it differently.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import a2b_qp
from dataclasses import dataclass
from enum import IntEnum
from urllib.parse import unquote_to_bytes

from shim.trust.reasons import Reason
from shim.trust.rejection import RequestRejected


class Role(IntEnum):
    """The meaning of an identity header."""

    USERNAME = 0
    NAME = 1
    EMAIL = 2
    GROUPS = 3
    UID = 4
    JWT = 5


# Maximum length of a value in characters. The request head limits groups and tokens.
MAX_LENGTH: dict[Role, int] = {
    Role.USERNAME: 255,
    Role.UID: 255,
    Role.NAME: 1024,
    Role.EMAIL: 320,
}
# An empty value of these roles counts as absent.
NEVER_EMPTY = frozenset({Role.USERNAME, Role.UID, Role.JWT})
# These describe a person and do not affect the decision: an unusable value is dropped.
DESCRIPTIVE = frozenset({Role.NAME, Role.EMAIL})

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# These characters change the order in which a name is displayed, so that it looks like another one (Unicode
# TR 36 §2.5).
_BIDIRECTIONAL = re.compile("[\u202a-\u202e\u2066-\u2069]")
# Maximum size of an encoded display name in bytes: four bytes per character, each of them escaped.
_MAX_ENCODED_NAME = 12 * 1024
# RFC 2047 §2; a language may follow the character set (RFC 2231 §5).
_WORD = rb"=\?[A-Za-z0-9_.:-]+(?:\*[A-Za-z0-9-]*)?\?[BbQq]\?[!->@-~]*\?="
_ENCODED_WORDS = re.compile(_WORD + rb"(?:[ \t]+" + _WORD + rb")*")
_CHARSETS = frozenset({"utf-8", "us-ascii", "iso-8859-1", "iso-8859-15", "windows-1252"})
MAX_GROUPS = 2048


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity as the provider asserts it.

    None means that the header was absent, an empty string or tuple that it was empty.
    """

    username: str
    name: str | None = None
    email: str | None = None
    groups: tuple[str, ...] | None = None
    uid: str | None = None


def parse_value(role: Role, value: bytes) -> str:
    """Parse the value of one identity header. Raises `RequestRejected` (`identity_invalid`)."""
    label = role.name.lower()
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise RequestRejected(Reason.IDENTITY_INVALID, f"the {label} is no UTF-8") from None
    max_length = MAX_LENGTH.get(role)
    if max_length is not None and len(text) > max_length:
        raise RequestRejected(
            Reason.IDENTITY_INVALID, f"the {label} has more than {max_length} characters"
        )
    if not text.isprintable() and _CONTROL.search(text):
        raise RequestRejected(Reason.IDENTITY_INVALID, f"the {label} has a control character")
    if role is Role.USERNAME and not text.isascii() and _BIDIRECTIONAL.search(text):
        raise RequestRejected(Reason.IDENTITY_INVALID, "the username has a bidirectional control")
    if text != text.strip():
        # Blanks that HTTP does not trim (U+00A0 …) make a name look like another one.
        raise RequestRejected(Reason.IDENTITY_INVALID, f"the {label} begins or ends with a blank")
    return text


def decode_name(value: bytes, *, percent: bool) -> bytes:
    """Decode a display name once: percent-escapes, or the encoded words of RFC 2047.

    Returns UTF-8, which the caller must check like any other value. Raises `RequestRejected`
    (`identity_invalid`) if the name cannot be decoded.
    """
    if len(value) > _MAX_ENCODED_NAME:
        raise RequestRejected(
            Reason.IDENTITY_INVALID, f"the name has more than {_MAX_ENCODED_NAME} bytes"
        )
    if percent:
        return unquote_to_bytes(value)
    try:
        return _ENCODED_WORDS.sub(lambda match: _decode_words(match[0]), value)
    except ValueError:
        raise RequestRejected(
            Reason.IDENTITY_INVALID, "the name has an encoded word that is none"
        ) from None


def _decode_words(words: bytes) -> bytes:
    # RFC 2047 §6.2: blanks between two encoded words are not part of the text.
    return "".join(map(_decode_word, words.split())).encode()


def _decode_word(word: bytes) -> str:
    _, charset, encoding, text, _ = word.split(b"?")
    name = charset.partition(b"*")[0].decode("ascii").lower()
    if name not in _CHARSETS:
        raise ValueError(name)
    data = b64decode(text, validate=True) if encoding in b"Bb" else a2b_qp(text, header=True)
    return data.decode(name)


def split_groups(text: str, separator: str) -> tuple[str, ...]:
    """Split a header's text into groups, without surrounding blanks and empty groups.

    Raises `RequestRejected` (`identity_invalid`) for more than `MAX_GROUPS`.
    """
    if text.count(separator) >= MAX_GROUPS:
        raise RequestRejected(Reason.IDENTITY_INVALID, f"there are more than {MAX_GROUPS} groups")
    groups = (group.strip() for group in text.split(separator))
    return tuple(group for group in groups if group)
