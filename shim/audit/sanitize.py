"""Values as they may be written: bounded, printable, and without what opens a door.

Pure functions from text to text; they know nothing of events or of where these go.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeAlias
from urllib.parse import unquote

LogValue: TypeAlias = str | int | float | bool | tuple[str, ...] | None

MAX_PATH = 256
MAX_TEXT = 255


def loggable_path(target: str) -> str:
    """The path of a request's target as it may be written, of at most `MAX_PATH` characters: without
    its query, without an authority, which may hold a password, and without segments that are tokens
    (`/share/img/{jwt}` opens a picture to whoever reads it)."""
    path = target.partition("?")[0].partition("#")[0]
    scheme, separator, remainder = path.partition("://")
    if separator and "/" not in scheme:  # absolute form
        path = "/" + remainder.partition("/")[2]
    if "eyJ" in path or "%" in path:
        path = "/".join("{token}" if _is_token(segment) else segment for segment in path.split("/"))
    return clip(path, MAX_PATH)


def clip(text: str, max_length: int = MAX_TEXT) -> str:
    """The text, of at most `most` characters, with an ellipsis where it was longer."""
    return text if len(text) <= max_length else text[: max_length - 1] + "…"


def timestamp(seconds: float) -> str:
    """ISO 8601 in UTC with milliseconds, from seconds since the epoch."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def escape(text: str, *, allowed: str = "") -> str:
    r"""The text with each character that is not printable written as `\uXXXX`, but for those in `keep`.

    Beside controls these are the marks that change the direction of what follows, line and paragraph
    separators, and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in allowed else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    # In two halves beyond U+FFFF, as JSON has it.
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def _is_token(segment: str) -> bool:
    # A JWT begins with the base64 of `{"`; nothing else of Navidrome's paths does.
    return len(segment) > 20 and unquote(segment[:64]).startswith("eyJ")
