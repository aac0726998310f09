"""Read and change short Subsonic responses on their way to the client.

A response filter gets the bytes of one response before they are written, and returns those to write. It
buffers a short response only; a longer one is not changed. `LoginOutcomeFilter` detects whether Navidrome
accepted the credentials. `ExtensionListFilter` adds the extension for API keys to Navidrome's list.
"""

from __future__ import annotations

import re
import zlib
from typing import Protocol

from shim.http1.chunked import ChunkedDecoder, ChunkedError
from shim.proxy.device_gate import Attempt

# The bytes of a body that is an error, and of the list of extensions.
_MAX_ERROR_BYTES = 1024
_MAX_LIST_BYTES = 65536
_MAX_HEAD_BYTES = 65536
_STATUS = re.compile(rb"HTTP/1\.[01] (\d\d\d)")
_FIELD = re.compile(rb"(?m)^([A-Za-z0-9-]+): *([^\r\n]*)\r$")
# Navidrome replaces every error by that of a wrong `callback`.
_WRONG_CREDENTIALS = re.compile(
    rb'<error code="40"|"error":\{"code":40[,}]|"error":\{"code":0,"message":"invalid callback'
)
_OK = re.compile(rb'<subsonic-response [^>]*\bstatus="ok"|"subsonic-response":\{"status":"ok"')
_TEXT_TYPES = (b"application/xml", b"text/xml", b"application/json", b"application/javascript")
_EXTENSION = b"apiKeyAuthentication"
_XML_EXTENSION = (
    b'<openSubsonicExtensions name="%b"><versions>1</versions></openSubsonicExtensions>'
    % _EXTENSION
)
_JSON_EXTENSION = b'{"name":"%b","versions":[1]}' % _EXTENSION
_JSON_LIST = re.compile(rb'"openSubsonicExtensions":\[(\]?)')
_XML_END = b"</subsonic-response>"


class ResponseFilter(Protocol):
    """Gets the bytes of one response, and may change them."""

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes, and return those to write now."""

    def finish(self) -> bytes:
        """Return the last bytes to write: the response is complete."""

    def abandon(self) -> None:
        """Handle a response that does not become complete."""


class _BufferedResponse:
    """The first bytes of a response as they are written to the client: head and body."""

    __slots__ = ("_head_complete", "_max_body_bytes", "data", "limit")

    def __init__(self, max_bytes: int) -> None:
        self.data = bytearray()
        self._max_body_bytes = max_bytes
        self._head_complete = False
        # Until the head is complete. Chunks add a few bytes to each piece.
        self.limit = _MAX_HEAD_BYTES

    def add(self, data: bytes) -> bool:
        """Keep the bytes. Return whether the response is still short."""
        self.data += data
        if not self._head_complete:
            end = self.data.find(b"\r\n\r\n")
            if end >= 0:
                self._head_complete = True
                self.limit = end + 4 + 2 * self._max_body_bytes
        return len(self.data) <= self.limit

    def split(self, max_bytes: int) -> tuple[int, bytes, dict[bytes, bytes], bytes] | None:
        """Return status, head, header fields by their lower-case name, and the decoded body; of one that is
        longer than `max_bytes` bytes, the first `max_bytes` + 1. None if it can't be decoded."""
        head, end, body = bytes(self.data).partition(b"\r\n\r\n")
        status = _STATUS.match(head)
        if not end or status is None:
            return None
        fields = {name.lower(): value for name, value in _FIELD.findall(head + b"\r")}
        if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
            try:
                decoder = ChunkedDecoder()
                pieces, _ = decoder.feed(body)
            except ChunkedError:
                return None
            body = b"".join(pieces)
        decoded = _decompress(fields.get(b"content-encoding", b"").lower(), body, max_bytes)
        return None if decoded is None else (int(status[1]), head, fields, decoded)


def _decompress(coding: bytes, body: bytes, max_bytes: int) -> bytes | None:
    if coding not in (b"", b"identity", b"gzip", b"deflate"):
        return None
    if coding in (b"gzip", b"deflate") and body:
        try:
            decoder = zlib.decompressobj(47)
            body = decoder.decompress(body, max_bytes + 1)
        except zlib.error:
            try:
                body = zlib.decompressobj(-15).decompress(body, max_bytes + 1)
            except zlib.error:
                return None
    return body[: max_bytes + 1]


class LoginOutcomeFilter:
    """Reports to an attempt whether Navidrome accepted its credentials, by the first bytes of the response.

    `head_only`: the response to a HEAD request, in which a short text counts as a failure, and JSONP of any
    length: its length tells a guesser as much as the text.
    """

    __slots__ = ("_attempt", "_buffered", "_head_only")

    def __init__(self, attempt: Attempt, *, head_only: bool) -> None:
        self._attempt = attempt
        self._head_only = head_only
        self._buffered: _BufferedResponse | None = _BufferedResponse(_MAX_ERROR_BYTES)

    def feed(self, data: bytes) -> bytes:
        buffered = self._buffered
        if buffered is not None and not buffered.add(data):
            self._buffered = None
            self._limit_exceeded(buffered)
        return data

    def _limit_exceeded(self, buffered: _BufferedResponse) -> None:
        self._report_outcome(buffered)
        self._attempt.ended()

    def finish(self) -> bytes:
        buffered, self._buffered = self._buffered, None
        if buffered is not None:
            self._report_outcome(buffered)
            self._attempt.ended()
        return b""

    def _report_outcome(self, buffered: _BufferedResponse) -> None:
        """Report the outcome of the attempt, by the first bytes of the response."""
        found = buffered.split(_MAX_ERROR_BYTES)
        if found is None:
            return
        status, _, fields, body = found
        media_type = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
        script = media_type == b"application/javascript"
        if self._head_only:
            length = fields.get(b"content-length", b"")
            short = length.isdigit() and int(length) <= _MAX_ERROR_BYTES
            if media_type in _TEXT_TYPES and (short or script):
                self._attempt.failed()
            return
        if media_type not in _TEXT_TYPES:
            if status in (200, 206) and body and not media_type.startswith(b"text/"):
                self._attempt.succeeded()
        elif _WRONG_CREDENTIALS.search(body):
            self._attempt.failed()
        elif status == 200 and _OK.search(body):
            self._attempt.succeeded()
        elif script and len(body) > _MAX_ERROR_BYTES:
            # A callback that is this long hides the rest, which may be an error.
            self._attempt.failed()

    def abandon(self) -> None:
        self._buffered = None
        self._attempt.ended()


class ExtensionListFilter:
    """Adds the extension `apiKeyAuthentication` to Navidrome's list of extensions."""

    __slots__ = ("_buffered",)

    def __init__(self) -> None:
        self._buffered: _BufferedResponse | None = _BufferedResponse(_MAX_LIST_BYTES)

    def feed(self, data: bytes) -> bytes:
        buffered = self._buffered
        if buffered is None:
            return data
        if buffered.add(data):
            return b""
        self._buffered = None
        return bytes(buffered.data)

    def finish(self) -> bytes:
        buffered, self._buffered = self._buffered, None
        if buffered is None:
            return b""
        found = buffered.split(_MAX_LIST_BYTES)
        if found is None:
            return bytes(buffered.data)
        status, head, _, body = found
        changed = with_extension(body)
        if status != 200 or changed == body or len(body) > _MAX_LIST_BYTES:
            return bytes(buffered.data)
        lines = [
            line
            for line in head.split(b"\r\n")
            if line.partition(b":")[0].lower()
            not in (b"content-length", b"content-encoding", b"transfer-encoding")
        ]
        lines.append(b"Content-Length: %d" % len(changed))
        return b"\r\n".join(lines) + b"\r\n\r\n" + changed

    def abandon(self) -> None:
        self._buffered = None


def with_extension(body: bytes) -> bytes:
    """Return a list of extensions in XML, JSON or JSONP with the one for API keys; any other text as it
    is."""
    if _EXTENSION in body:
        return body
    found = _JSON_LIST.search(body)
    if found is not None:
        start = body[: found.start(1)]
        comma = b"" if found[1] else b","
        return start + _JSON_EXTENSION + comma + body[found.start(1) :]
    if _OK.search(body) and body.endswith(_XML_END):
        return body[: -len(_XML_END)] + _XML_EXTENSION + _XML_END
    return body
