"""The OpenAPI document: what FastAPI knows of the routes, with credentials, errors and media types."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI

from shim.control.csrf import CSRF_HEADER
from shim.control.sessions import SESSION_COOKIE

_ERROR: Final = {
    "type": "object",
    "required": ["error", "detail"],
    "properties": {
        "error": {"type": "string", "description": "The status in words, such as `bad_request`."},
        "detail": {"type": "string", "description": "What is wrong, as a sentence."},
    },
}
_RELOAD_FAULTS: Final = {
    "type": "object",
    "required": ["faults"],
    "properties": {
        "faults": {"type": "array", "items": {"type": "string"}},
        "note": {"type": "string"},
    },
}
_STATUSES: Final = {
    "400": "The request is not valid",
    "401": "The token is missing or wrong",
    "403": "The client may not do this, or the CSRF token is missing or old",
    "404": "There is no such thing, or the client is no administrator",
    "409": "The action is not possible",
    "413": "The body is too large",
    "421": "The Host header is not an address of the control plane",
    "429": "Too many wrong tokens from this address, or too many viewers; see Retry-After",
    "503": "Navidrome, the database or the trail is not available",
}
_SCHEMES: Final = {
    "token": {"type": "http", "scheme": "bearer", "description": "SHIM_CONTROL_TOKEN."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": SESSION_COOKIE,
        "description": "The session of a browser that signed in with the token; writes need a CSRF token.",
    },
}
_CSRF: Final = {
    "name": CSRF_HEADER,
    "in": "header",
    "required": False,
    "description": "The `csrf_token` of `/api/session`. A browser needs it, the bearer token does not.",
    "schema": {"type": "string"},
}
_CURSOR: Final = {
    "X-Next-Cursor": {
        "description": "`cursor` of the next page, for `ndjson` and `csv`.",
        "schema": {"type": "string"},
    }
}
# Media types of responses that are not JSON alone.
_MEDIA: Final = {
    "/healthz": ("text/plain",),
    "/metrics": ("text/plain", "application/openmetrics-text"),
    "/api/audit/events": ("application/json", "application/x-ndjson", "text/csv"),
    "/api/audit/stream": ("text/event-stream",),
}
_OPEN: Final = ("/healthz",)


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """Return the document of the application's routes."""
    document: dict[str, Any] = app.openapi()
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas |= {"Error": _ERROR, "ReloadFaults": _RELOAD_FAULTS}
    components["securitySchemes"] = _SCHEMES
    document["security"] = [{name: []} for name in _SCHEMES]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(path, method, operation)
    return document


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    """Add to one operation what FastAPI does not know."""
    responses: dict[str, Any] = operation["responses"]
    responses.pop("422", None)
    if path in _MEDIA:
        responses["200"]["content"] = {name: {"schema": _schema(name)} for name in _MEDIA[path]}
    if path == "/api/audit/events":
        responses["200"]["headers"] = _CURSOR
    if path in _OPEN:
        operation["security"] = []
    else:
        error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
        for status, described in _STATUSES.items():
            responses.setdefault(status, {"description": described, "content": error})
    if path == "/api/reload":
        faults = {"schema": {"$ref": "#/components/schemas/ReloadFaults"}}
        responses["409"] = {
            "description": "The new settings have faults; the old ones stay in force",
            "content": {"application/json": faults},
        }
    if path == "/readyz":
        responses["503"] = {"description": "A part fails", "content": {"application/json": {}}}
    if method == "post":
        operation.setdefault("parameters", []).append(_CSRF)


def _schema(media_type: str) -> dict[str, Any]:
    return {} if media_type == "application/json" else {"type": "string"}
