"""Build the shim's own responses, in the format that the client reads.

The format is Subsonic's XML or JSON below `/rest/`, JSON below `/api/` and `/auth/`, a small page elsewhere.
A response contains no more than the client may know: the log has the reason of a rejection, under the
request's id.
"""

from __future__ import annotations

import json
import re
from enum import Enum, auto
from functools import lru_cache
from html import escape
from http import HTTPStatus
from xml.sax.saxutils import quoteattr

from shim.proxy.failures import Failure
from shim.proxy.sign_in import LOOP_COOKIE, LOOP_COOKIE_SECONDS
from shim.trust.decision import Decision
from shim.trust.reasons import Reason
from shim.trust.subsonic_parameters import first_parameter

_SUBSONIC_VERSION = "1.16.1"
_MESSAGES: dict[int, str] = {
    302: "Please sign in.",
    400: "The request is invalid or ambiguous, so it was not forwarded.",
    401: "You are not signed in, or your sign-in could not be verified.",
    403: "You are not allowed to do this.",
    404: "This page does not exist.",
    408: "The request took too long to arrive.",
    413: "The request is too large.",
    431: "The request's headers are too large.",
    501: "This method is not supported.",
    503: "The service is busy. Try again in a moment.",
}
# The id of a request that was not parsed and is not logged.
UNASSIGNED_REQUEST_ID = "0" * 16
# A placeholder for a request's id, of the same length.
_ID_PLACEHOLDER = b"{request--id-16}"
# The first `f` of a query, as net/url decodes its key and its value.
_JSON_FORMAT = re.compile(rb"[?&](?:f|%66)=([^&]*)")
_JSON = re.compile(rb"(?:j|%6[Aa])(?:s|%73)(?:o|%6[Ff])(?:n|%6[Ee])")
_JSONP = re.compile(rb"(?:j|%6[Aa])(?:s|%73)(?:o|%6[Ff])(?:n|%6[Ee])(?:p|%70)")
# The same for a form, whose values Navidrome reads before those of the query.
_CALLBACK = re.compile(rb"[a-zA-Z_$][a-zA-Z0-9_$.]*")
_MAX_CALLBACK = 256
# OpenSubsonic's error codes: 40 wrong credentials, 43 conflicting credentials, 44 invalid API key, 50 not
# authorised, 0 anything else.
_SUBSONIC_CODES = {401: 40, 403: 50}
# What Navidrome sends with each response to a page of another origin.
_CORS = (
    "Access-Control-Allow-Origin: *",
    "Access-Control-Expose-Headers: X-Content-Duration, X-Total-Count, X-Nd-Authorization",
    "Vary: Origin",
)


def error_response(
    status: int,
    decision: Decision | None,
    request_id: str,
    *,
    failure: Failure | None = None,
    retry_after: int | None = None,
    location: str | None = None,
    contact: str = "",
    sign_out: str = "",
    keep_alive: bool = False,
    form: bytes = b"",
    address: str = "",
) -> bytes:
    """Build a complete response, after which the connection closes unless `keep_alive`.

    `decision` is the decision on the request, None without one. `failure` gives the text for the client.
    `request_id` has 16 characters; `retry_after` is in seconds. `location` redirects a browser to sign in.
    `contact` and `sign_out` are shown to a person who is denied. `form` is the body of a Subsonic request, if
    it was read. `address` is where a person signs in, shown where that helps.
    """
    reason = None if decision is None else decision.outcome.reason
    method, target = (b"", b"") if decision is None else decision.requested
    error_format = _error_format(target, form)
    template = _template(
        status, reason, failure, error_format, contact, sign_out, retry_after, keep_alive, address
    )
    if error_format is _ErrorFormat.SUBSONIC_JSONP:
        template = _as_jsonp(
            template, first_parameter(b"callback", target.partition(b"?")[2], form)
        )
    if location is not None:
        fields = (
            f"Location: {location}\r\n"
            f"Set-Cookie: {LOOP_COOKIE}=1; Path=/; Max-Age={LOOP_COOKIE_SECONDS}; HttpOnly; SameSite=Lax\r\n"
        )
        template = template.replace(b"\r\n", b"\r\n" + fields.encode(), 1)
    response = template.replace(_ID_PLACEHOLDER, request_id.encode())
    if method == b"HEAD":
        return response[: response.index(b"\r\n\r\n") + 4]
    return response


class _ErrorFormat(Enum):
    """The format that the client reads."""

    XML = auto()
    JSON = auto()
    SUBSONIC_JSON = auto()
    SUBSONIC_JSONP = auto()
    PAGE = auto()


def _error_format(target: bytes, form: bytes = b"") -> _ErrorFormat:
    path = target.partition(b"?")[0].lower()
    if b"/rest/" in path:
        requested_format = (form and _JSON_FORMAT.search(b"&" + form)) or _JSON_FORMAT.search(
            target, len(path)
        )
        if requested_format and _JSON.fullmatch(requested_format[1]) is not None:
            return _ErrorFormat.SUBSONIC_JSON
        if requested_format and _JSONP.fullmatch(requested_format[1]) is not None:
            return _ErrorFormat.SUBSONIC_JSONP
        return _ErrorFormat.XML
    return _ErrorFormat.JSON if b"/api/" in path or b"/auth/" in path else _ErrorFormat.PAGE


_SUBSONIC_FORMATS = frozenset(
    {_ErrorFormat.XML, _ErrorFormat.SUBSONIC_JSON, _ErrorFormat.SUBSONIC_JSONP}
)


@lru_cache(maxsize=256)
def _template(
    status: int,
    reason: Reason | None,
    failure: Failure | None,
    error_format: _ErrorFormat,
    contact: str,
    sign_out: str,
    retry_after: int | None,
    keep_alive: bool,
    address: str,
) -> bytes:
    """Build the response to every request of this kind, with `_ID_PLACEHOLDER` for its id."""
    message = _MESSAGES.get(status, "The request was not forwarded.")
    if failure is not None:
        message = failure.message
    elif reason is not None and status != 302:
        message = reason.message or message
    if contact and reason is not None and reason.contact:
        message = f"{message} Contact: {contact}"
    if address and reason is Reason.DEVICE_SIGN_IN_DUE:
        message = f"{message} Sign in at {address}"
    link = sign_out if reason is not None and reason.other_account else ""
    code = _SUBSONIC_CODES.get(status, 0) if reason is None else _code(reason, status)
    content_type, body = _render(status, code, message, error_format, link)
    fields = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: keep-alive" if keep_alive else "Connection: close",
        f"X-Request-Id: {_ID_PLACEHOLDER.decode()}",
    ]
    if retry_after is not None:
        fields.append(f"Retry-After: {retry_after}")
    if error_format in _SUBSONIC_FORMATS:
        fields += _CORS
    return "\r\n".join(fields).encode() + b"\r\n\r\n" + body


def _code(reason: Reason, status: int) -> int:
    return reason.subsonic_code or _SUBSONIC_CODES.get(status, 0)


def token_info(
    target: bytes, user_name: str, request_id: str, *, form: bytes = b"", keep_alive: bool = False
) -> bytes:
    """Build the complete response to OpenSubsonic's `tokenInfo`: the name of the credentials' account.

    Raises nothing; `form` is the body of the request, if it was read.
    """
    error_format = _error_format(target, form)
    if error_format is _ErrorFormat.XML:
        content_type = "application/xml"
        body = (
            f'<subsonic-response xmlns="http://subsonic.org/restapi" status="ok" '
            f'version="{_SUBSONIC_VERSION}" type="navidrome" openSubsonic="true">'
            f"<tokenInfo username={quoteattr(user_name)}/></subsonic-response>"
        ).encode()
    else:
        content_type = "application/json"
        response = {
            "status": "ok",
            "version": _SUBSONIC_VERSION,
            "type": "navidrome",
            "openSubsonic": True,
            "tokenInfo": {"username": user_name},
        }
        body = json.dumps({"subsonic-response": response}).encode()
    fields = [
        "HTTP/1.1 200 OK",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: keep-alive" if keep_alive else "Connection: close",
        f"X-Request-Id: {request_id}",
        *_CORS,
    ]
    complete = "\r\n".join(fields).encode() + b"\r\n\r\n" + body
    if error_format is _ErrorFormat.SUBSONIC_JSONP:
        query = target.partition(b"?")[2]
        return _as_jsonp(complete, first_parameter(b"callback", query, form))
    return complete


def _as_jsonp(response: bytes, callback: bytes) -> bytes:
    """Return a complete JSON response as a call of this function. One whose name is not allowed stays JSON,
    as Navidrome's does."""
    if len(callback) > _MAX_CALLBACK or _CALLBACK.fullmatch(callback) is None:
        return response
    head, _, body = response.partition(b"\r\n\r\n")
    call = b"%b(%b)" % (callback, body)
    head = head.replace(b"Content-Type: application/json", b"Content-Type: application/javascript")
    head = head.replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % len(call))
    return b"%b\r\n\r\n%b" % (head, call)


def _render(
    status: int, code: int, message: str, error_format: _ErrorFormat, sign_out: str
) -> tuple[str, bytes]:
    request_id = _ID_PLACEHOLDER.decode()
    match error_format:
        case _ErrorFormat.XML | _ErrorFormat.SUBSONIC_JSON | _ErrorFormat.SUBSONIC_JSONP:
            text = f"{message} (request {request_id})"
            return _subsonic(code, text, as_json=error_format is not _ErrorFormat.XML)
        case _ErrorFormat.JSON:
            response = {"error": message, "status": status, "requestId": request_id}
            return "application/json", json.dumps(response).encode()
        case _ErrorFormat.PAGE:
            return "text/html; charset=utf-8", _page(status, message, request_id, sign_out).encode()


def _subsonic(code: int, message: str, *, as_json: bool) -> tuple[str, bytes]:
    if as_json:
        error = {"code": code, "message": message}
        response = {
            "status": "failed",
            "version": _SUBSONIC_VERSION,
            "type": "navidrome",
            "openSubsonic": True,
            "error": error,
        }
        return "application/json", json.dumps({"subsonic-response": response}).encode()
    return "application/xml", (
        f'<subsonic-response xmlns="http://subsonic.org/restapi" status="failed" '
        f'version="{_SUBSONIC_VERSION}" type="navidrome" openSubsonic="true">'
        f'<error code="{code}" message={quoteattr(message)}/>'
        "</subsonic-response>"
    ).encode()


def _page(status: int, message: str, request_id: str, sign_out: str) -> str:
    title = f"{status} {HTTPStatus(status).phrase}"
    link = (
        f'<p><a href="{escape(sign_out)}">Sign out and use another account</a></p>'
        if sign_out
        else ""
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title></head>"
        f"<body><h1>{escape(title)}</h1><p>{escape(message)}</p>{link}"
        f"<p><small>Request {request_id}</small></p></body></html>\n"
    )
