"""Read the fields of a form."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request

_FORM_TYPE = "application/x-www-form-urlencoded"
_MAX_FIELDS = 100


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a URL-encoded form; of several with one name the last. Empty for another media
    type. Raises 400."""
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type != _FORM_TYPE:
        return {}
    try:
        text = (await request.body()).decode("utf-8")
        return dict(
            parse_qsl(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
        )
    except ValueError:
        raise HTTPException(400, "the form is not UTF-8, or has too many fields") from None
