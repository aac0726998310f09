"""Parse the request line: method, target and version (RFC 9112 §3).

A target that two parsers could read differently is rejected and never normalized: the upstream must serve
the same target that the edge matched its routes against.
"""

from __future__ import annotations

import re
from binascii import a2b_qp, b2a_qp
from typing import NamedTuple

from shim.http1.grammar import is_token

# The frequent ones first: the expressions below try them in this order.
_METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS")
METHODS = frozenset(_METHODS)

_VERSIONS = {b"HTTP/1.1": 11, b"HTTP/1.0": 10}
_VISIBLE = bytes(range(0x21, 0x7F)).replace(b"#", b"")
_NOT_ASCII = bytes(range(0x80, 0x100))
# Path characters that all parsers read the same way. "." and "/" are checked separately.
_PLAIN = bytes(set(_VISIBLE) - set(b"%;\\?"))
_NO_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_DELIMITERS = frozenset(b"/\\;%?#\x7f") | frozenset(range(0x20))
# One branch per first digit. A single list of alternatives would try all of them at each of up to 20,000
# escapes.
_REFUSED_ESCAPE = re.compile(
    b"%%(?:%b)"
    % b"|".join(
        b"%x[%b]" % (high, b"".join(b"%x%X" % (low, low) for low in lows))
        for high in range(8)
        if (lows := [b & 15 for b in sorted(_UNRESERVED | _DELIMITERS) if b >> 4 == high])
    )
)
_METHOD = b"(%b) " % b"|".join(_METHODS)
# Fast path: most request lines match this expression, whose paths all parsers read the same way.
# `parse_line` accepts every line that matches and returns the same parts. No group repeats, since each
# segment would cost another step. Possessive quantifiers apply to characters only: Python before 3.11.5
# handles them incorrectly for groups.
COMMON_LINE = re.compile(
    _METHOD + rb"(?![^ ?]*/[./])(/[!$&'()*+,\-./0-9:=@A-Z_a-z~]*+)(\?[!-\"$-~]*)? HTTP/1\.([01])"
)
# The same at the beginning of a head, for a path that is known to be valid: the groups are method, path,
# query with its "?", and the 0 of HTTP/1.0. `parse_line` returns the same parts if it accepts the path.
KNOWN_PATH_LINE = re.compile(_METHOD + rb"(/[!-\"$->@-~]*+)(\?[!-\"$-~]*+)? HTTP/1\.(?:1|(0))\r\n")
_ABSOLUTE = re.compile(rb"(?i:http(s?))://([^/?#@\\]+)(/[^#]*)?")

_PORT = re.compile(rb":[0-9]+\Z")


class RequestLineError(ValueError):
    """The line is not: method, target, version. The message gives the reason and quotes nothing of the
    line.
    """


class UnknownMethod(RequestLineError):
    """The method is a token that is not in `METHODS`."""


class AmbiguousTarget(RequestLineError):
    """Two parsers could read the target differently."""


class ParsedLine(NamedTuple):
    """The parts of a request line; see `trust.path_zones.RequestLine`."""

    method: bytes
    target: bytes
    path: bytes
    version: int
    hosts: tuple[bytes, ...] | None


def parse_line(line: bytes) -> ParsedLine:
    """Parse a request line without its line end. Raises `RequestLineError`.

    A line that `COMMON_LINE` matches is parsed to the same parts here.
    """
    words = line.split(b" ")
    if len(words) != 3:
        raise RequestLineError("the request line is not: method, target, version")
    method, target, protocol = words
    version = _VERSIONS.get(protocol)
    if version is None:
        raise RequestLineError("the version is neither HTTP/1.1 nor HTTP/1.0")
    if method not in METHODS:
        if is_token(method):
            raise UnknownMethod("the method is not forwarded")
        raise RequestLineError("the method is not a token")
    if target.translate(None, _VISIBLE):
        target = _ascii_target(target)
    hosts = None
    if target[:1] != b"/":
        target, hosts = _absolute(target)
    path = target.partition(b"?")[0]
    if path.translate(None, _PLAIN) or b"//" in path or b"/." in path:
        _reject_ambiguous_path(path)
    return ParsedLine(method, target, path, version, hosts)


def _ascii_target(target: bytes) -> bytes:
    """Percent-encode the bytes of the query from 0x80 up.

    Some apps send UTF-8 there, and all servers read it like its escapes. Raises `AmbiguousTarget` for any
    other byte that is not visible ASCII, and for such a byte in the path.
    """
    path, separator, query = target.partition(b"?")
    if path.translate(None, _VISIBLE) or query.translate(None, _VISIBLE + _NOT_ASCII):
        raise AmbiguousTarget("the target has a # or a byte that is not visible ASCII")
    # The quoted-printable encoder is implemented in C. It escapes "=" and breaks lines, which is reverted
    # here.
    escaped = b2a_qp(query, True).replace(b"=\n", b"").replace(b"=3D", b"\n")
    return path + separator + escaped.replace(b"=", b"%").replace(b"\n", b"=")


def _absolute(target: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    # RFC 9112 §3.2.2: a server accepts the absolute form. Its authority must match Host.
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise AmbiguousTarget("the target is neither a path nor an http address")
    authority = match[2].lower()
    port = b":443" if match[1] else b":80"
    # RFC 3986 §3.2.3: an empty or absent port means the default port of the scheme.
    name = authority.removesuffix(port).removesuffix(b":")
    own_port = name != authority or _PORT.search(authority) is None
    return match[3] or b"/", (name, name + b":", name + port) if own_port else (authority,)


def _reject_ambiguous_path(path: bytes) -> None:
    if b"//" in path:
        raise AmbiguousTarget("the path has an empty segment (//)")
    if b"/./" in path or b"/../" in path or path.endswith((b"/.", b"/..")):
        raise AmbiguousTarget("the path has a dot segment")
    if b";" in path or b"\\" in path:
        raise AmbiguousTarget("the path has a semicolon or a backslash")
    if _NO_ESCAPE.search(path):
        raise AmbiguousTarget("the path has a % without two hexadecimal digits")
    escape = _REFUSED_ESCAPE.search(path)
    if escape is not None:
        # RFC 3986 §6.2.2.2: one parser decodes the escape before it matches routes, another does not.
        byte = int(escape[0][1:], 16)
        raise AmbiguousTarget(f"the path escapes the byte {byte:#04x}")
    try:
        unquote(path).decode()
    except UnicodeDecodeError:
        raise AmbiguousTarget("the path is not UTF-8") from None


def unquote(path: bytes) -> bytes:
    """Decode a path in which every % begins an escape.

    Uses the quoted-printable decoder, which is implemented in C: a loop over 20,000 escapes takes
    milliseconds.
    """
    return a2b_qp(path.replace(b"=", b"=3D").replace(b"%", b"="))
