"""Sanitize values for the audit trail: bounded, printable, and without credentials.

Pure functions from text to text. They know nothing of events or sinks.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from urllib.parse import unquote

MAX_PATH = 256
MAX_TEXT = 255

_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SLASH = re.compile("(/|%2[fF])")
# Below `/share/`, Navidrome has pictures, streams and downloads, each with a token, and the shares.
_SHARE_TOKENS = frozenset({"img", "s", "d"})


def loggable_path(target: str) -> str:
    """Return the path of a request target for the audit trail, of at most `MAX_PATH` characters: without the
    query, without an authority, which may contain a password, and without credentials.

    Navidrome has credentials in two places of a path: the id of a share, which opens it (`/share/{id}`,
    `/api/share/{id}`), and a token (`/share/img/{token}`). Anything that looks like a JWT is removed, too.
    """
    path = target.partition("?")[0].partition("#")[0]
    scheme, separator, remainder = path.partition("://")
    if separator and "/" not in scheme:  # absolute form
        path = "/" + remainder.partition("/")[2]
    if "eyJ" in path or "%" in path or "share" in path.lower():
        path = _without_credentials(path)
    return clip(path, MAX_PATH)


def clip(text: str, max_length: int = MAX_TEXT) -> str:
    r"""Return the text, shortened to `max_length` characters with an ellipsis.

    Each control character, line separator, bidirectional control and lone surrogate becomes the text
    `\uXXXX`, so that the result can be stored, printed and exported. No trusted user name has one.
    """
    if not text.isprintable():
        text = _UNSAFE.sub(lambda found: _escaped(found[0]), text[: max_length + 1])
    return text if len(text) <= max_length else text[: max_length - 1] + "…"


def timestamp(seconds: float) -> str:
    """Return seconds since the epoch as ISO 8601 in UTC, with microseconds."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


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


def _without_credentials(path: str) -> str:
    parts = _SLASH.split(path)  # segments, and the slashes between them
    for number in range(0, len(parts), 2):
        rest = [unquote(segment) for segment in parts[number + 2 :: 2]]
        if unquote(parts[number]).lower() == "share" and any(rest):
            return "".join(parts[: number + 2]) + _share_kind(rest)
        if _is_token(parts[number]):
            parts[number] = "{token}"
    return "".join(parts)


def _share_kind(segments: list[str]) -> str:
    """Return the kind of a path below `/share/`, for example `img/{token}`."""
    first, *rest = segments
    if first.lower() in _SHARE_TOKENS and rest:
        return f"{first.lower()}/{{token}}"
    return "{id}/m3u" if rest == ["m3u"] else "{id}"


def _is_token(segment: str) -> bool:
    # A JWT begins with the base64 of `{"`; no other part of Navidrome's paths does.
    return len(segment) > 20 and unquote(segment[:64]).startswith("eyJ")
