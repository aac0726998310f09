"""The shim's own answers, in the form that the asker reads.

Subsonic's XML or JSON below `/rest/`, JSON below `/api/` and `/auth/`, a small page elsewhere. None says
more than the asker may know: why a request was refused stands in the log, under the request's id.
"""

from __future__ import annotations

import json
from enum import Enum, auto
from functools import lru_cache
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
    413: "The request is too large.",
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
# Of a request that was not looked at, and is told of nowhere.
NO_ID = "0" * 16
# Stands for a request's id, and is as long as one.
_ANY_ID = b"{request--id-16}"
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
    lasting: bool = False,
) -> bytes:
    """A whole answer, after which the connection ends unless it is `lasting`. `decision` tells what was
    asked, where that is known; `request_id` has 16 characters; `retry_after` is in seconds. With `location`
    it sends a browser there to sign in. `contact` is told to a person who may not in."""
    reason = None if decision is None else decision.outcome.reason
    line = None if decision is None else decision.line
    form = _Form.PAGE if line is None else _form(line.path, line.target)
    template = _template(status, reason, form, contact, retry_after, lasting)
    if location is not None:
        fields = (
            f"Location: {location}\r\n"
            f"Set-Cookie: {MARK}=1; Path=/; Max-Age={MARK_SECONDS}; HttpOnly; SameSite=Lax\r\n"
        )
        template = template.replace(b"\r\n", b"\r\n" + fields.encode(), 1)
    answer = template.replace(_ANY_ID, request_id.encode())
    if line is not None and line.method == b"HEAD":
        return answer[: answer.index(b"\r\n\r\n") + 4]
    return answer


class _Form(Enum):
    """What the asker reads."""

    XML = auto()
    JSON = auto()
    SUBSONIC_JSON = auto()
    PAGE = auto()


def _form(path: bytes, target: bytes) -> _Form:
    path = path.lower()
    if b"/rest/" in path:
        query = target.partition(b"?")[2].decode("latin-1")
        return _Form.SUBSONIC_JSON if parse_qs(query).get("f", [""])[0] == "json" else _Form.XML
    return _Form.JSON if b"/api/" in path or b"/auth/" in path else _Form.PAGE


@lru_cache(maxsize=256)
def _template(
    status: int,
    reason: Reason | None,
    form: _Form,
    contact: str,
    retry_after: int | None,
    lasting: bool,
) -> bytes:
    """The answer to every request of this kind, with `_ANY_ID` for its id."""
    sentence = _SENTENCES.get(status, "The request was not passed on.")
    if reason is not None and status not in (302, 502):
        sentence = _BY_REASON.get(reason, sentence)
    if contact and reason in _ASK_SOMEBODY:
        sentence = f"{sentence} Contact: {contact}"
    content_type, body = _render(status, sentence, form)
    fields = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: keep-alive" if lasting else "Connection: close",
        f"X-Request-Id: {_ANY_ID.decode()}",
    ]
    if retry_after is not None:
        fields.append(f"Retry-After: {retry_after}")
    return "\r\n".join(fields).encode() + b"\r\n\r\n" + body


def _render(status: int, sentence: str, form: _Form) -> tuple[str, bytes]:
    request_id = _ANY_ID.decode()
    match form:
        case _Form.XML | _Form.SUBSONIC_JSON:
            message = f"{sentence} (request {request_id})"
            return _subsonic(status, message, json_asked=form is _Form.SUBSONIC_JSON)
        case _Form.JSON:
            answer = {"error": sentence, "status": status, "requestId": request_id}
            return "application/json", json.dumps(answer).encode()
        case _Form.PAGE:
            return "text/html; charset=utf-8", _page(status, sentence, request_id).encode()


def _subsonic(status: int, message: str, *, json_asked: bool) -> tuple[str, bytes]:
    code = _SUBSONIC_CODES.get(status, 0)
    if json_asked:
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
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title></head>"
        f"<body><h1>{escape(title)}</h1><p>{escape(sentence)}</p>"
        f"<p><small>Request {request_id}</small></p></body></html>\n"
    )
