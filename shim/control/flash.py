"""The result of a change, for the page that the browser loads next.

A form is answered with a redirect, and the page that follows says what was done. Its address carries the
result with a signature that is bound to the subject and to the page, as CSRF tokens are, and valid for a
minute. So no link makes a page claim something that did not happen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from urllib.parse import urlencode

from shim.control.keys import ControlKey

FLASH_SECONDS = 60
_FIELD = "shown"


class Flashes:
    """Issues and reads results. `now` returns seconds since the epoch."""

    def __init__(self, key: ControlKey, now: Callable[[], float] = time.time) -> None:
        self._key = key
        self._now = now

    def query(self, subject: str, page: str, values: Mapping[str, str]) -> str:
        """Return the query with these values for this page, valid for `FLASH_SECONDS`."""
        expiry = str(int(self._now()) + FLASH_SECONDS)
        signature = self._key.sign(*_signed(subject, page, expiry, values))
        return urlencode({**values, _FIELD: f"{expiry}.{signature}"})

    def read(self, subject: str, page: str, query: Mapping[str, str]) -> Mapping[str, str]:
        """Return the values in a query; empty if they were not issued for this subject and page, or have
        expired."""
        expiry, _, signature = query.get(_FIELD, "").partition(".")
        values = {name: value for name, value in query.items() if name != _FIELD}
        if not self._key.verify(signature, *_signed(subject, page, expiry, values)):
            return {}
        return values if int(expiry) > self._now() else {}


def _signed(subject: str, page: str, expiry: str, values: Mapping[str, str]) -> list[str]:
    """Return the parts of the text that is signed."""
    pairs = (part for pair in sorted(values.items()) for part in pair)
    return ["flash", subject, page, expiry, *pairs]
