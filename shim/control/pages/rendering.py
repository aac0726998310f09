r"""Render templates: escaping, relative links, compression.

Every value in a template passes `_visible`, then Jinja's escaping. So text of attackers has no effect in a
page: neither as markup, nor by controls and direction marks, which are shown as `\u202e`.

Templates are compiled and rendered in a thread, because the event loop also moves the data plane's bytes.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup
from markupsafe import escape as escape_markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

import shim
from shim.audit.sanitize import escape
from shim.control.pages.assets import asset_names
from shim.control.pages.visitor import Visitor

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    # With `no-referrer` a browser sends `Origin: null` with a form, which no check can use.
    "Referrer-Policy": "same-origin",
    "Vary": "Accept-Encoding",
}
_COMPRESSED_FROM: Final = 1024


def root_of(request: Request) -> str:
    """Return the relative URL of the mount's root, seen from this request: `../` for `/admin/trail`."""
    path: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    return "../" * (path.partition(b"?")[0].count(b"/") - 1) or "./"


async def page(
    request: Request,
    template: str,
    visitor: Visitor | None,
    context: Mapping[str, Any],
    status: int = 200,
) -> Response:
    """Return the page of a template. `visitor` is None where nobody has signed in."""
    compressed = accepts_gzip(request)
    body = await run_in_threadpool(
        _render,
        template,
        {**context, "visitor": visitor, "root": root_of(request), "version": shim.__version__},
        compressed,
    )
    headers = dict(HEADERS)
    if body.startswith(b"\x1f\x8b"):
        headers["Content-Encoding"] = "gzip"
    return HTMLResponse(body, status, headers)


def accepts_gzip(request: Request) -> bool:
    return "gzip" in request.headers.get("Accept-Encoding", "").lower()


def _render(template: str, context: dict[str, Any], compressed: bool) -> bytes:
    body = environment().get_template(template).render(context).encode("utf-8", "replace")
    return gzip.compress(body, 6) if compressed and len(body) >= _COMPRESSED_FROM else body


@cache
def environment() -> jinja2.Environment:
    """Return the templates' environment."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        auto_reload=False,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["assets"] = asset_names()
    found.filters["time"] = time_element
    found.filters["number"] = number
    found.filters["lines"] = _lines
    found.filters["prose"] = prose
    return found


def _visible(value: object) -> object:
    r"""Return text with each non-printable character as `\uXXXX`. Markup is left as it is."""
    return escape(value) if type(value) is str else value


def prose(text: str) -> Markup:
    """Return a sentence of the shim: text between backticks as code, and names of settings that may be broken
    after an underscore."""
    parts = (
        _SETTING.sub(_with_break_opportunities, escape_markup(escape(part)))
        for part in text.split("`")
    )
    return Markup("").join(
        Markup("<code>{}</code>").format(Markup(part)) if number % 2 else Markup(part)  # noqa: S704
        for number, part in enumerate(parts)
    )


_SETTING: Final = re.compile(r"SHIM_[A-Z_]+")


def _with_break_opportunities(name: re.Match[str]) -> str:
    return name[0].replace("_", "_<wbr>")


def _lines(text: str) -> Markup:
    """Return text of several lines, for a text area or preformatted text."""
    return escape_markup(escape(text, allowed="\n"))


def time_element(microseconds: int, style: str = "second") -> Markup:
    """Return a time as an element. It shows UTC; a script shows it in the reader's zone.

    `style` is its precision: `second`, `minute` or `day`.
    """
    moment = datetime.fromtimestamp(microseconds / 1_000_000, UTC)
    pattern, zone = _PATTERNS[style]
    return Markup('<time datetime="{iso}" data-style="{style}">{text}</time>').format(
        iso=moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        style=style,
        text=moment.strftime(pattern) + zone,
    )


_PATTERNS: Final = {
    "second": ("%Y-%m-%d %H:%M:%S", " UTC"),
    "minute": ("%Y-%m-%d %H:%M", " UTC"),
    "day": ("%Y-%m-%d", ""),
}


def number(value: float) -> Markup:
    """Return a number with thin spaces between thousands."""
    return Markup(f"{value:,}".replace(",", "\u202f"))  # noqa: S704 - digits
