"""Redirect a page request that needs an identity to the edge's sign-in, and from there back.

The redirect back leads to the requested host only. A client that returns without an identity is not
redirected again: in that case the edge signs people in but sends no identity, and the redirects would loop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

from shim.http1.grammar import is_host
from shim.trust.decision import Decision
from shim.trust.path_zones import Paths
from shim.trust.reasons import Reason

# A cookie that is sent with the redirect, and its lifetime in seconds.
LOOP_COOKIE = "shim-signing-in"
LOOP_COOKIE_SECONDS = 20

_MAX_TARGET = 4096  # bytes of the target in the redirect; no browser accepts a much longer Location
_MAX_AUTHORITY = 262  # bytes of a name of 255 characters, and a port
_LOOP_COOKIE_SENT = re.compile(rb"\b" + LOOP_COOKIE.encode())


def sign_in_location(decision: Decision, address: str, paths: Paths) -> str | None:
    """Return the value of `Location` for a request that lacks an identity; None for no redirect. `address` is
    a web address, or a path on the requested host; empty for none."""
    line, block = decision.request_line, decision.block
    if not address or line is None or block is None:
        return None
    if decision.outcome.reason is not Reason.IDENTITY_REQUIRED:
        return None
    if line.method not in (b"GET", b"HEAD") or block.metadata.upgrade:
        return None
    if line.path[len(paths.base) :].startswith((b"api/", b"auth/")):
        return None
    if line.path == address.partition("?")[0].encode():
        return None  # the edge forwarded its own sign-in path to the shim
    if len(line.target) > _MAX_TARGET:
        return None
    fields = _fields(block.forward)
    if not _is_page_request(fields) or any(
        map(_LOOP_COOKIE_SENT.search, fields.get(b"cookie", ()))
    ):
        return None
    return_url = _return_url(fields, line.target)
    if return_url is None:
        return None
    return f"{address}{'&' if '?' in address else '?'}rd={quote(return_url, safe='')}"


def public_address(lines: bytes, base: bytes) -> str:
    """Return the web address of the music server as the request's sender has it, empty if it is unknown.
    `lines` are the header lines, `base` is the base path."""
    return _return_url(_fields(lines), base) or ""


def _fields(lines: bytes) -> dict[bytes, list[bytes]]:
    """Return the values of each field, by its name in lower case."""
    found: dict[bytes, list[bytes]] = {}
    for line in lines.split(b"\r\n"):
        name, _, value = line.partition(b":")
        found.setdefault(name.lower(), []).append(value.strip(b" \t"))
    return found


def _is_page_request(fields: Mapping[bytes, list[bytes]]) -> bool:
    """Return whether a browser requests a page (by Fetch Metadata, else by `Accept`)."""
    mode = fields.get(b"sec-fetch-mode")
    if mode is not None:
        return mode[0].lower() == b"navigate"
    accept = fields.get(b"accept")
    return accept is not None and b"text/html" in accept[0].lower()


def _return_url(fields: Mapping[bytes, list[bytes]], target: bytes) -> str | None:
    host = _last(fields, b"x-forwarded-host")
    if len(host) > _MAX_AUTHORITY or not is_host(host):
        return None
    scheme = "https" if _last(fields, b"x-forwarded-proto").lower() == b"https" else "http"
    return f"{scheme}://{host.decode()}{target.decode()}"


def _last(fields: Mapping[bytes, list[bytes]], name: bytes) -> bytes:
    """Return the last of a field's values, which the nearest proxy wrote."""
    found = fields.get(name)
    return found[-1].rpartition(b",")[2].strip(b" \t") if found else b""
