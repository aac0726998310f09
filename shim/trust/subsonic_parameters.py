"""Read and remove the credentials in the parameters of a Subsonic request, as Navidrome reads them.

Navidrome merges a form into the query, the form's values first, and takes the first value of each name. So a
name that occurs twice, or with different values in the query and the form, may be read in two ways: that is
`ConflictingParameters`. Names are compared after percent-decoding, with case. Every parser is linear in its
input, and stops after a few credentials.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

# One more than the names, and each of them twice: then one is repeated for certain.
_MAX_PARTS = 14
_MAX_PARAMETERS = 10_000  # recent versions of Go reject a query or a form with more
_NAME = (
    rb"(?:u|%75|p|%70|t|%74|s|%73|(?:j|%6[aA])(?:w|%77)(?:t|%74)"
    rb"|(?:a|%61)(?:p|%70)(?:i|%69)(?:K|%4[bB])(?:e|%65)(?:y|%79))"
)
# Splitting a text at it gives the other text and the credentials in turn, in one call.
_CREDENTIAL = re.compile(rb"(&%b(?:=[^&]*)?(?=&|\Z))" % _NAME)
_NAMES = (b"u", b"p", b"t", b"s", b"apiKey", b"jwt")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_BASIC = re.compile(rb"(?im)^authorization: *basic +([^\r\n]*)\r\n")
_AUTHORIZATION = re.compile(rb"(?im)^authorization:[^\r\n]*\r\n")
MAX_VALUE = (
    1024  # bytes of a decoded value; no name, password or salt of a device's request is longer
)
# A longer value is cut here before it is decoded, and then is still longer than `MAX_VALUE`.
_CUT = 3 * MAX_VALUE + 3
_MAX_BASIC = 4096
_PERCENT, _PLUS, _SEMICOLON = b"%+;"


class ConflictingParameters(Exception):
    """A credential is given twice, or beside an API key."""


class TooManyParameters(Exception):
    """A query or a form has so many parameters that it is not read."""


class Parameters(NamedTuple):
    """The decoded credentials of a request; empty bytes where one is absent or empty. Values that are longer
    than `MAX_VALUE` may be cut: Navidrome reads them, but no device has them."""

    u: bytes = b""
    p: bytes = b""
    t: bytes = b""
    s: bytes = b""
    api_key: bytes = b""
    jwt: bytes = b""

    @property
    def too_long(self) -> bool:
        """Return whether a value is longer than those of any device."""
        return max(map(len, self)) > MAX_VALUE


@dataclass(frozen=True, slots=True)
class CredentialText:
    """The credentials of a request as they were sent.

    `query` and `body` are their text; `basic` is that of `Authorization: Basic`, which counts only where
    there are no others.
    """

    query: bytes = b""
    body: bytes = b""
    basic: bytes = b""

    @property
    def key(self) -> bytes:
        """Return a text that is equal for equal credentials alone. A query and a header have no line end."""
        if not self.body and not self.basic:
            return self.query
        return b"%b\n%b\n%b" % (self.query, self.basic, self.body)


def split_credentials(text: bytes) -> tuple[bytes, bytes]:
    """Split a query or a form. Return its credentials as they were sent, and the text without them.

    Raises `ConflictingParameters` if there are more credentials than can differ, and `TooManyParameters`: an
    earlier Navidrome would read them.
    """
    if text.count(b"&") >= _MAX_PARAMETERS:
        raise TooManyParameters(f"there are more than {_MAX_PARAMETERS} parameters")
    pieces = _CREDENTIAL.split(b"&" + text, _MAX_PARTS)
    if len(pieces) == 1:
        return b"", text
    if len(pieces) > 2 * _MAX_PARTS:
        raise ConflictingParameters("credentials are repeated")
    return b"".join(pieces[1::2]), b"".join(pieces[0::2])[1:]


def read_parameters(query: bytes, body: bytes = b"") -> Parameters | None:
    """Decode the credentials of a query and of a form, as `split_credentials` returns them.

    Returns None if Navidrome rejects one of them because it can't be decoded. Raises `ConflictingParameters`.
    """
    values = _values(query)
    if values is None:
        return None
    if body:
        in_body = _values(body)
        if in_body is None:
            return None
        for name, value in in_body.items():
            if values.setdefault(name, value) != value:
                raise ConflictingParameters(
                    f"{name.decode()} differs between the query and the form"
                )
    found = Parameters(*[values.get(name, b"") for name in _NAMES])
    if found.api_key and (found.u or found.p or found.t or found.s):
        raise ConflictingParameters("the request has an apiKey and other credentials")
    return found


def _values(text: bytes) -> dict[bytes, bytes] | None:
    values: dict[bytes, bytes] = {}
    # A number in bytes is found several times as fast as a byte string.
    plain, readable = _PERCENT not in text and _PLUS not in text, _SEMICOLON not in text
    for part in text.split(b"&")[1:]:
        name, _, value = part.partition(b"=")
        if not plain:
            if len(value) > _CUT:
                value = value[:_CUT]  # may end within an escape
            else:
                readable = readable and not _BAD_ESCAPE.search(value)
            name, value = unquote_to_bytes(name), unquote_to_bytes(value.replace(b"+", b" "))
        if name in values:
            raise ConflictingParameters(f"{name.decode()} is repeated")
        values[name] = value
    # Go rejects a query with a ";" or an invalid escape.
    return values if readable else None


def read_basic(text: bytes) -> Parameters | None:
    """Decode the credentials of `Authorization: Basic` (RFC 7617): user and password. None if it has none."""
    if len(text) > _MAX_BASIC:
        return None
    try:
        user, colon, password = b64decode(text.strip(), validate=True).partition(b":")
    except (ValueError, binascii.Error):
        return None
    return Parameters(u=user, p=password) if colon and user and password else None


def find_basic(lines: bytes) -> bytes:
    """Return the credentials of `Authorization: Basic` in header lines, empty if there are none, or more than
    one."""
    found = _BASIC.findall(lines)
    return found[0] if len(found) == 1 else b""


def has_authorization(lines: bytes) -> bool:
    """Return whether header lines have `Authorization`."""
    return _AUTHORIZATION.search(lines) is not None


def without_authorization(lines: bytes) -> bytes:
    """Return the header lines without `Authorization`."""
    return _AUTHORIZATION.sub(b"", lines)


def first_parameter(name: bytes, query: bytes, body: bytes = b"") -> bytes:
    """Return the first value of a parameter, that of the form before that of the query; empty if there is
    none, or if it is too long. `name` has only letters."""
    encoded = b"".join(b"(?:%c|%%%02x|%%%02X)" % (byte, byte, byte) for byte in name)
    for text in (body, query):
        found = re.search(rb"&%b=([^&]*)" % encoded, b"&" + text)
        if found is not None and len(found[1]) <= 3 * MAX_VALUE:
            return unquote_to_bytes(found[1].replace(b"+", b" "))
    return b""
