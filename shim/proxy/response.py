"""The head of Navidrome's answer: judged as strictly as a request's, and what the client gets of it.

How the body is framed follows from the method, the status and the fields (RFC 9112 §6.3). A head that
could be read in two ways is no answer: the client gets a 502 instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shim.trust.fields import TEXT, TOKEN

NO_BODY = 0
CHUNKED = -2
UNTIL_CLOSE = -3

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?")
_LONGEST = 2**63 - 1

_PASS, _DROP, _LENGTH, _CODING, _CONNECTION, _UPGRADE = range(6)
_SPECIAL: dict[bytes, int] = {
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"connection": _CONNECTION,
    b"upgrade": _UPGRADE,
    b"keep-alive": _DROP,
    b"proxy-connection": _DROP,
    b"te": _DROP,
    b"trailer": _DROP,
    b"proxy-authenticate": _DROP,
}
# Names as they are written most often, so that they need no folding.
_USUAL = """
Accept-Ranges Access-Control-Allow-Origin Cache-Control Content-Disposition Content-Encoding Content-Range
Content-Security-Policy Content-Type Date ETag Etag Expires Last-Modified Location Permissions-Policy
Referrer-Policy Server Set-Cookie Vary X-Content-Duration X-Content-Type-Options X-Frame-Options
X-Nd-Authorization X-Total-Count
"""
_KNOWN: dict[bytes, int] = {
    **{name.title(): kind for name, kind in _SPECIAL.items()},
    **dict.fromkeys(_USUAL.encode().split(), _PASS),
}


class BadAnswer(ValueError):
    """Navidrome's answer can't be passed on. The text says why, and quotes nothing of it."""


@dataclass(slots=True)
class ResponseHead:
    """An answer's head, read. Treated as frozen.

    `lines`: status line and end-to-end fields, each with its line end, without any framing.
    `framing`: the `Content-Length` line as it was sent, or empty.
    `length`: bytes of the body, `CHUNKED`, or `UNTIL_CLOSE`, as if the request had been no HEAD.
    `persistent`: the connection may carry another request after this answer's body.
    `upgrade`: the value of `Upgrade`, lower case.
    """

    status: int
    lines: bytes
    framing: bytes
    length: int
    persistent: bool
    upgrade: bytes

    @property
    def bodiless(self) -> bool:
        """Whether the status alone says that there is no body."""
        return self.status < 200 or self.status in (204, 304)


def parse_response_head(head: bytes) -> ResponseHead:
    """Read an answer's head, its empty line included. Raises `BadAnswer`."""
    lines = head[:-4].split(b"\r\n")
    if head.translate(None, TEXT) != b"\r\n" * (len(lines) + 1):
        raise BadAnswer("a control character in the head")
    match = _STATUS_LINE.fullmatch(lines[0])
    if match is None:
        raise BadAnswer("no status line of HTTP/1.0 or 1.1 with a status of 100 to 599")
    known = _KNOWN
    special: list[tuple[int, int, bytes]] = []
    for index in range(1, len(lines)):
        name, colon, value = lines[index].partition(b":")
        kind = known.get(name)
        if kind is None or not colon:
            kind = _classify(name, colon)
        if kind:
            special.append((kind, index, value))
    old = match[1] == b"0"
    status = int(match[2])
    if (
        len(special) == 1
        and special[0][0] == _LENGTH
        and not old
        and status >= 200
        and status != 204
    ):
        # One length and nothing of this hop alone: most answers.
        _, index, value = special[0]
        length = _read_length(value)
        framing = lines.pop(index) + b"\r\n"
        lines.append(b"")
        return ResponseHead(status, b"\r\n".join(lines), framing, length, True, b"")
    return _with_special(lines, special, status, old)


def _classify(name: bytes, colon: bytes) -> int:
    if not colon or not name or name.translate(None, TOKEN):
        raise BadAnswer("a header line is not: name, colon, value")
    return _SPECIAL.get(name.lower(), _PASS)


def _read_length(value: bytes) -> int:
    value = value.strip(b" \t")
    if not value.isdigit() or len(value) > 19 or int(value) > _LONGEST:
        raise BadAnswer("Content-Length is not one number of at most 2^63-1")
    return int(value)


def _with_special(
    lines: list[bytes], special: list[tuple[int, int, bytes]], status: int, old: bool
) -> ResponseHead:
    lengths = [value for kind, _, value in special if kind == _LENGTH]
    codings = [value.strip(b" \t").lower() for kind, _, value in special if kind == _CODING]
    options = _options(special)
    if len(lengths) > 1 or (codings and lengths):
        raise BadAnswer("the body is framed twice")
    if codings and (codings != [b"chunked"] or old):
        raise BadAnswer("a transfer coding that is not chunked alone, in HTTP/1.1")
    length = UNTIL_CLOSE
    framing = b""
    if codings:
        length = CHUNKED
    elif lengths:
        length = _read_length(lengths[0])
        if status >= 200 and status != 204:  # RFC 9110 §8.6
            framing = b"Content-Length: %d\r\n" % length
    dropped = {index for _, index, _ in special}
    kept = [
        line
        for index, line in enumerate(lines)
        if index not in dropped and (not options or _name(line) not in options)
    ]
    kept.append(b"")
    persistent = b"keep-alive" in options if old else b"close" not in options
    if old:
        kept[0] = b"HTTP/1.1" + kept[0][8:]  # RFC 9110 §2.5: the version is each hop's own
    upgrade = b",".join(
        value.strip(b" \t") for kind, _, value in special if kind == _UPGRADE
    ).lower()
    return ResponseHead(status, b"\r\n".join(kept), framing, length, persistent, upgrade)


def _options(special: list[tuple[int, int, bytes]]) -> frozenset[bytes]:
    values = [value for kind, _, value in special if kind == _CONNECTION]
    if not values:
        return frozenset()
    return frozenset(option.strip(b" \t") for option in b",".join(values).lower().split(b","))


def _name(line: bytes) -> bytes:
    return line.partition(b":")[0].lower()
