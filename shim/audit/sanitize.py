"""Sanitize values for the log: bounded, printable, and without tokens.

Pure functions from text to text. They know nothing of events or sinks.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeAlias
from urllib.parse import unquote

LogValue: TypeAlias = str | int | float | bool | tuple[str, ...] | None

MAX_PATH = 256
MAX_TEXT = 255


def loggable_path(target: str) -> str:
    """Return the path of a request target for the log, of at most `MAX_PATH` characters: without the query,
    without an authority, which may contain a password, and without segments that are tokens, because
    `/share/img/{jwt}` gives access to a picture."""
    path = target.partition("?")[0].partition("#")[0]
    scheme, separator, remainder = path.partition("://")
    if separator and "/" not in scheme:  # absolute form
        path = "/" + remainder.partition("/")[2]
    if "eyJ" in path or "%" in path:
        path = "/".join("{token}" if _is_token(segment) else segment for segment in path.split("/"))
    return clip(path, MAX_PATH)


def clip(text: str, max_length: int = MAX_TEXT) -> str:
    """Return the text, shortened to `max_length` characters with an ellipsis."""
    return text if len(text) <= max_length else text[: max_length - 1] + "…"


def timestamp(seconds: float) -> str:
    """Return seconds since the epoch as ISO 8601 in UTC, with milliseconds."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def escape(text: str, *, allowed: str = "") -> str:
    r"""Return the text with each non-printable character as `\uXXXX`, except those in `allowed`.

    Besides controls these are direction marks, line and paragraph separators, and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in allowed else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    # Two surrogates beyond U+FFFF, as in JSON.
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def _is_token(segment: str) -> bool:
    # A JWT begins with the base64 of `{"`; no other part of Navidrome's paths does.
    return len(segment) > 20 and unquote(segment[:64]).startswith("eyJ")
