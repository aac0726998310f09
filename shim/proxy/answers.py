"""The shim's own answers, in the form that the asker reads.

Subsonic's XML or JSON below `/rest/`, JSON below `/api/` and `/auth/`, a small page elsewhere. None says
more than the asker may know: why a request was refused stands in the log, under the request's id.
"""

from __future__ import annotations

import json
from html import escape
from http import HTTPStatus
from urllib.parse import parse_qs
from xml.sax.saxutils import quoteattr

from shim.proxy.sign_in import MARK, MARK_SECONDS
from shim.trust.decide import Decision
from shim.trust.reasons import Reason

_SUBSONIC_VERSION = "1.16.1"
_SENTENCES: dict[int, str] = {
    302: "Please sign in.",
    400: "The request could be read in more than one way, so it was not passed on.",
    401: "Nobody is signed in, or the sign-in could not be verified.",
    403: "You are not allowed to do this.",
    404: "There is nothing here.",
    408: "The request took too long to arrive.",
    431: "The request's headers are too large.",
    501: "This method is not supported.",
    502: "Navidrome does not answer right now.",
    503: "The service is busy. Please try again in a moment.",
    504: "Navidrome took too long to answer.",
}
_BY_REASON: dict[Reason, str] = {
    Reason.IDENTITY_REQUIRED: "Nobody is signed in. If you have just signed in, please tell whoever runs "
    "this music server that it does not hear of it.",
    Reason.LOCAL_LOGIN_CLOSED: "This music server has no passwords of its own here: sign in as usual.",
    Reason.JWT_EXPIRED: "Your sign-in has expired. Please sign in again.",
    Reason.GROUP_NOT_ALLOWED: "Your account is not in a group that may use this music server. "
    "Please ask whoever runs it to add you.",
    Reason.IDENTITY_CONFLICT: "Your user name belongs to another person's account here. "
    "Please ask whoever runs this music server to sort it out.",
    Reason.RESERVED_ACCOUNT: "Your user name is reserved on this music server. "
    "Please ask whoever runs it for another one.",
    Reason.ACCOUNT_UNAVAILABLE: "Your account is being prepared. Please try again in a moment.",
    Reason.CROSS_SITE: "The request came from another site, so it was not passed on.",
}
_ASK_SOMEBODY = frozenset(
    {Reason.GROUP_NOT_ALLOWED, Reason.IDENTITY_CONFLICT, Reason.RESERVED_ACCOUNT}
)
# Subsonic's error codes: 40 wrong credentials, 50 not authorised, 0 anything else.
_SUBSONIC_CODES = {401: 40, 403: 50}


def own_answer(
    status: int,
    decision: Decision | None,
    request_id: str,
    *,
    retry_after: int | None = None,
    location: str | None = None,
    contact: str = "",
) -> bytes:
    """A whole answer that ends the connection. `decision` tells what was asked, where that is known;
    `retry_after` is in seconds. With `location` it sends a browser there to sign in. `contact`
    is told to a person who may not in."""
    sentence = _SENTENCES.get(status, "The request was not passed on.")
    if decision is not None:
        sentence = (
            _BY_REASON.get(decision.outcome.reason, sentence)
            if status not in (302, 502)
            else sentence
        )
        if contact and decision.outcome.reason in _ASK_SOMEBODY:
            sentence = f"{sentence} Contact: {contact}"
    content_type, body = _render(status, sentence, decision, request_id)
    phrase = HTTPStatus(status).phrase
    fields = [
        f"HTTP/1.1 {status} {phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if request_id:
        fields.append(f"X-Request-Id: {request_id}")
    if location is not None:
        fields.append(f"Location: {location}")
        fields.append(
            f"Set-Cookie: {MARK}=1; Path=/; Max-Age={MARK_SECONDS}; HttpOnly; SameSite=Lax"
        )
    if retry_after is not None:
        fields.append(f"Retry-After: {retry_after}")
    head = "\r\n".join(fields).encode() + b"\r\n\r\n"
    bodiless = (
        decision is not None and decision.line is not None and decision.line.method == b"HEAD"
    )
    return head if bodiless else head + body


def _render(
    status: int, sentence: str, decision: Decision | None, request_id: str
) -> tuple[str, bytes]:
    line = None if decision is None else decision.line
    path = b"" if line is None else line.path.lower()
    if b"/rest/" in path:
        query = b"" if line is None else line.target.partition(b"?")[2]
        return _subsonic(status, f"{sentence} (request {request_id})", query)
    if b"/api/" in path or b"/auth/" in path:
        answer = {"error": sentence, "status": status, "requestId": request_id}
        return "application/json", json.dumps(answer).encode()
    return "text/html; charset=utf-8", _page(status, sentence, request_id).encode()


def _subsonic(status: int, message: str, query: bytes) -> tuple[str, bytes]:
    code = _SUBSONIC_CODES.get(status, 0)
    formats = parse_qs(query.decode("latin-1")).get("f", ["xml"])
    if formats[0] == "json":
        error = {"code": code, "message": message}
        answer = {"status": "failed", "version": _SUBSONIC_VERSION, "error": error}
        return "application/json", json.dumps({"subsonic-response": answer}).encode()
    return "application/xml", (
        f'<subsonic-response xmlns="http://subsonic.org/restapi" status="failed" '
        f'version="{_SUBSONIC_VERSION}"><error code="{code}" message={quoteattr(message)}/>'
        "</subsonic-response>"
    ).encode()


def _page(status: int, sentence: str, request_id: str) -> str:
    title = f"{status} {HTTPStatus(status).phrase}"
    note = f"<p><small>Request {escape(request_id)}</small></p>" if request_id else ""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title></head>"
        f"<body><h1>{escape(title)}</h1><p>{escape(sentence)}</p>{note}</body></html>\n"
    )
