"""Parse the head of Navidrome's response strictly and build the head that is forwarded to the client.

The framing of the body follows from the method, the status and the fields (RFC 9112 §6.3). A head that
two parsers could read differently is invalid: the client gets a 502.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shim.http1.framing import CHUNKED, UNTIL_CLOSE, connection_options, parse_content_length
from shim.http1.grammar import BLANKS, TEXT, TOKEN

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?")
_OWN_OPTIONS = frozenset({b"close", b"keep-alive", b"upgrade"})
_DROP, LENGTH, _CODING, _CONNECTION, _UPGRADE = range(5)
_SPECIAL: dict[bytes, int] = {
    b"content-length": LENGTH,
    b"transfer-encoding": _CODING,
    b"connection": _CONNECTION,
    b"upgrade": _UPGRADE,
    b"keep-alive": _DROP,
    b"proxy-connection": _DROP,
    b"te": _DROP,
    b"trailer": _DROP,
    b"proxy-authenticate": _DROP,
}


class InvalidResponse(ValueError):
    """The response of Navidrome cannot be forwarded. The message gives the reason and quotes nothing of
    the response.
    """


@dataclass(slots=True)
class ResponseHead:
    """A parsed response head. Treated as frozen.

    `lines`: the status line and the end-to-end fields, each with its line end, and `Content-Length` if it
    is present and allowed (RFC 9110 §8.6); no other framing.
    `length`: bytes of the body, `CHUNKED` or `UNTIL_CLOSE`, as if the request were not a HEAD.
    `persistent`: the connection may carry another request after the body of this response.
    `upgrade`: the value of `Upgrade` in lower case.
    """

    status: int
    lines: bytes
    length: int
    persistent: bool
    upgrade: bytes

    @property
    def no_body(self) -> bool:
        """Return whether the status alone means that there is no body."""
        return self.status < 200 or self.status in (204, 304)


def parse_response_head(head: bytes) -> ResponseHead:
    """Parse a response head, including its empty line. Raises `InvalidResponse`."""
    lines = head[:-4].split(b"\r\n")
    if head.translate(None, TEXT) != b"\r\n" * (len(lines) + 1):
        raise InvalidResponse("a control character in the head")
    match = _STATUS_LINE.fullmatch(lines[0])
    if match is None:
        raise InvalidResponse(
            "the status line is not HTTP/1.0 or HTTP/1.1 with a status from 100 to 599"
        )
    special = special_lines(lines)
    return _frame(lines, special, int(match[2]), http10=match[1] == b"0")


def special_lines(lines: list[bytes]) -> list[tuple[int, int, bytes]]:
    """Return the kind, index and value of each header line that frames the response or is hop-by-hop.

    `lines` begin with the status line. Raises `InvalidResponse` for a line that is not a header field.
    """
    special = []
    for index in range(1, len(lines)):
        name, colon, value = lines[index].partition(b":")
        if not colon or not name or name.translate(None, TOKEN):
            raise InvalidResponse("a header line does not have a name, a colon and a value")
        kind = _SPECIAL.get(name.lower())
        if kind is not None:
            special.append((kind, index, value))
    return special


def read_length(value: bytes) -> int:
    """Parse the value of `Content-Length` in bytes. Raises `InvalidResponse`."""
    try:
        return parse_content_length(value.strip(BLANKS))
    except ValueError as error:
        raise InvalidResponse(str(error)) from None


def _frame(
    lines: list[bytes], special: list[tuple[int, int, bytes]], status: int, *, http10: bool
) -> ResponseHead:
    length: int | None = None
    chunked = False
    options: frozenset[bytes] = frozenset()
    upgrade: list[bytes] = []
    for kind, _, value in special:
        if kind == LENGTH:
            if length is not None:
                raise InvalidResponse("the body's length is given twice")
            length = read_length(value)
        elif kind == _CODING:
            if chunked or http10 or value.strip(BLANKS).lower() != b"chunked":
                raise InvalidResponse("Transfer-Encoding is not chunked alone in HTTP/1.1")
            chunked = True
        elif kind == _CONNECTION:
            options |= _options(value)
        elif kind == _UPGRADE:
            upgrade.append(value.strip(BLANKS).lower())
    if chunked and length is not None:
        raise InvalidResponse("the body is framed twice")
    keeps_length = status >= 200 and status != 204  # RFC 9110 §8.6
    for kind, index, _ in reversed(special):
        if kind != LENGTH or not keeps_length:
            del lines[index]
    if not options <= _OWN_OPTIONS:
        connection_listed = options - {b"content-length"}
        lines[1:] = [
            line for line in lines[1:] if line.partition(b":")[0].lower() not in connection_listed
        ]
    if http10:
        lines[0] = b"HTTP/1.1" + lines[0][8:]  # RFC 9110 §2.5: each hop uses its own version
    lines.append(b"")
    return ResponseHead(
        status=status,
        lines=b"\r\n".join(lines),
        length=CHUNKED if chunked else UNTIL_CLOSE if length is None else length,
        persistent=b"keep-alive" in options if http10 else b"close" not in options,
        upgrade=b",".join(upgrade),
    )


def _options(value: bytes) -> frozenset[bytes]:
    try:
        return connection_options(value)
    except ValueError as error:
        raise InvalidResponse(str(error)) from None
