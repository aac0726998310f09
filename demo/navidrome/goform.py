"""The forms in which Go writes ids, times and JSON, and reads JSON. No other formatting lives here."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None"

ZERO_TIME = "0001-01-01T00:00:00Z"
"""Go's zero `time.Time`, which a column left out of a `PUT` is reset to."""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_SURROGATES = re.compile("[\ud800-\udfff]")
_BLANKS = " \t\r\n"
_ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def new_id(length: int = 22) -> str:
    """A random id of base-62 digits: 22 for entities, 10 for shares."""
    return "".join(secrets.choice(_DIGITS) for _ in range(length))


def time_text(seconds: float) -> str:
    """Unix seconds as `time.RFC3339Nano`, whose fraction ends in no zero."""
    moment = datetime.fromtimestamp(seconds, UTC)
    fraction = f".{moment.microsecond:06d}".rstrip("0").rstrip(".")
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def is_time(text: str) -> bool:
    """Whether Go's `time.Time` would unmarshal this text."""
    if _RFC3339.fullmatch(text) is None:
        return False
    try:
        datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return False
    return True


def read_json(body: bytes, *, whole: bool = False) -> object:
    """The first JSON value of a body as Go's `json.Decoder` reads it. Text after it is ignored, unless
    `whole` is set (`json.Unmarshal`). Invalid UTF-8 and lone surrogates become U+FFFD.

    Raises `ValueError` for a body that does not begin with JSON.
    """
    text = body.decode("utf-8", "replace").lstrip(_BLANKS)
    value, end = _DECODER.raw_decode(text)
    if whole and text[end:].strip(_BLANKS):
        raise ValueError("text after the JSON")
    return _valid(value)


def _valid(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, list):
        return [_valid(each) for each in value]
    if isinstance(value, dict):
        return {_valid(name): _valid(each) for name, each in value.items()}
    return value


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def json_bytes(value: Json) -> bytes:
    """Compact JSON as `json.Marshal` gives it: UTF-8, with `<`, `>` and `&` escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_ESCAPED).encode("utf-8", "replace")
