"""The shim's own answers, in the form that the asker reads.

Subsonic's XML or JSON below `/rest/`, JSON below `/api/` and `/auth/`, a small page elsewhere. None says
more than the asker may know: why a request was refused stands in the log, under the request's id.
"""

from __future__ import annotations

import json
import re
from enum import Enum, auto
from functools import lru_cache
from html import escape
from http import HTTPStatus
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
    Reason.IDENTITY_REQUIRED: "You are not signed in. If you just signed in, contact the administrator: no "
    "identity was received.",
    Reason.LOCAL_LOGIN_CLOSED: "Password login is disabled; use your identity provider.",
    Reason.JWT_EXPIRED: "Your sign-in has expired. Please sign in again.",
    Reason.GROUP_NOT_ALLOWED: "You are signed in, but you are not in a group that may use this music "
    "server. Ask the administrator to add you.",
    Reason.IDENTITY_CONFLICT: "This music server already has an account with your user name, and it is not "
    "linked to your sign-in. Ask the administrator to link it, or to free the name.",
    Reason.RESERVED_ACCOUNT: "Your user name is reserved on this music server. "
    "Ask the administrator for another one.",
    Reason.RENAME_NOT_FOLLOWED: "Your user name changed at the identity provider, and your account here "
    "still has the old one. The account is yours: ask the administrator to rename it, or to set "
    "SHIM_FOLLOW_RENAMES.",
    Reason.NAME_HELD: "Your user name was another account's until recently and is still held for it. "
    "Try again in a few days, or ask the administrator to end the hold.",
    Reason.IDENTITY_INCOMPLETE: "Your sign-in arrived without your user id or your groups. Contact the "
    "administrator: the reverse proxy leaves out a header.",
    Reason.ACCOUNT_PENDING: "Your account is being prepared. Try again in a moment.",
    Reason.NAVIDROME_UNAVAILABLE: "The music server (Navidrome) is not available right now. "
    "Try again in a minute.",
    Reason.NAVIDROME_ACCESS_DENIED: "The music server is not set up completely: Navidrome does not let the "
    "sign-in service manage accounts. Contact the administrator.",
    Reason.STORE_UNAVAILABLE: "The database of the sign-in service is not available right now. Try again in "
    "a minute; if this stays, contact the administrator.",
    Reason.DATABASE_UNCONFIRMED: "The database of the sign-in service is new or was lost, so nobody can sign "
    "in until the administrator confirms it.",
    Reason.ACCOUNT_UNAVAILABLE: "Your account could not be prepared because of an internal error. Try again "
    "in a minute; if this stays, contact the administrator with the number below.",
    Reason.CROSS_SITE: "The request came from another site, so it was not passed on.",
}
# A person is signed in, as somebody who may not: another account may be.
_OTHER_ACCOUNT = frozenset(
    {
        Reason.GROUP_NOT_ALLOWED,
        Reason.IDENTITY_CONFLICT,
        Reason.NAME_HELD,
        Reason.RENAME_NOT_FOLLOWED,
        Reason.RESERVED_ACCOUNT,
    }
)
_SHOW_CONTACT = _OTHER_ACCOUNT | {
    Reason.DATABASE_UNCONFIRMED,
    Reason.IDENTITY_INCOMPLETE,
    Reason.IDENTITY_REQUIRED,
    Reason.NAVIDROME_ACCESS_DENIED,
    Reason.STORE_UNAVAILABLE,
}
# Of a request that was not looked at, and is told of nowhere.
NO_ID = "0" * 16
# Stands for a request's id, and is as long as one.
_ANY_ID = b"{request--id-16}"
# The first `f` of a query, as net/url decodes its key and its value.
_JSON_ASKED = re.compile(rb"[?&](?:f|%66)=([^&]*)")
_JSON = re.compile(rb"(?:j|%6[Aa])(?:s|%73)(?:o|%6[Ff])(?:n|%6[Ee])")
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
    sign_out: str = "",
    lasting: bool = False,
) -> bytes:
    """A whole answer, after which the connection ends unless it is `lasting`. `decision` tells what was
    asked, where that is known; `request_id` has 16 characters; `retry_after` is in seconds. With `location`
    it sends a browser there to sign in. `contact` is told to a person who may not in, `sign_out` is
    linked there."""
    reason = None if decision is None else decision.outcome.reason
    method, target = (b"", b"") if decision is None else decision.requested
    form = _form(target)
    template = _template(status, reason, form, contact, sign_out, retry_after, lasting)
    if location is not None:
        fields = (
            f"Location: {location}\r\n"
            f"Set-Cookie: {MARK}=1; Path=/; Max-Age={MARK_SECONDS}; HttpOnly; SameSite=Lax\r\n"
        )
        template = template.replace(b"\r\n", b"\r\n" + fields.encode(), 1)
    answer = template.replace(_ANY_ID, request_id.encode())
    if method == b"HEAD":
        return answer[: answer.index(b"\r\n\r\n") + 4]
    return answer


class _Form(Enum):
    """What the asker reads."""

    XML = auto()
    JSON = auto()
    SUBSONIC_JSON = auto()
    PAGE = auto()


def _form(target: bytes) -> _Form:
    path = target.partition(b"?")[0].lower()
    if b"/rest/" in path:
        asked = _JSON_ASKED.search(target, len(path))
        json_asked = asked is not None and _JSON.fullmatch(asked[1]) is not None
        return _Form.SUBSONIC_JSON if json_asked else _Form.XML
    return _Form.JSON if b"/api/" in path or b"/auth/" in path else _Form.PAGE


@lru_cache(maxsize=256)
def _template(
    status: int,
    reason: Reason | None,
    form: _Form,
    contact: str,
    sign_out: str,
    retry_after: int | None,
    lasting: bool,
) -> bytes:
    """The answer to every request of this kind, with `_ANY_ID` for its id."""
    sentence = _SENTENCES.get(status, "The request was not passed on.")
    if reason is not None and status not in (302, 502):
        sentence = _BY_REASON.get(reason, sentence)
    if contact and reason in _SHOW_CONTACT:
        sentence = f"{sentence} Contact: {contact}"
    link = sign_out if reason in _OTHER_ACCOUNT else ""
    content_type, body = _render(status, sentence, form, link)
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


def _render(status: int, sentence: str, form: _Form, sign_out: str) -> tuple[str, bytes]:
    request_id = _ANY_ID.decode()
    match form:
        case _Form.XML | _Form.SUBSONIC_JSON:
            message = f"{sentence} (request {request_id})"
            return _subsonic(status, message, json_asked=form is _Form.SUBSONIC_JSON)
        case _Form.JSON:
            answer = {"error": sentence, "status": status, "requestId": request_id}
            return "application/json", json.dumps(answer).encode()
        case _Form.PAGE:
            return "text/html; charset=utf-8", _page(
                status, sentence, request_id, sign_out
            ).encode()


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


def _page(status: int, sentence: str, request_id: str, sign_out: str) -> str:
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
        f"<body><h1>{escape(title)}</h1><p>{escape(sentence)}</p>{link}"
        f"<p><small>Request {request_id}</small></p></body></html>\n"
    )
