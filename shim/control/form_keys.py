"""Form keys: a form that adds something does it once, even if it is sent again.

A key is `EXPIRY.ID.SIGNATURE`, new in each form and bound to a subject, as CSRF tokens are. `ID` becomes the
id of what the form adds. So the database rejects a repetition, in every shim and after a restart.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from shim.control.csrf import CSRF_SECONDS
from shim.control.keys import ControlKey

FORM_KEY_FIELD = "form_key"


class FormKeys:
    """Issues and reads keys. `now` returns seconds since the epoch."""

    def __init__(self, key: ControlKey, now: Callable[[], float] = time.time) -> None:
        self._key = key
        self._now = now

    def issue(self, subject: str) -> str:
        """Return a new key for a form of this subject, valid for `CSRF_SECONDS`."""
        expiry, name = str(int(self._now()) + CSRF_SECONDS), secrets.token_hex(8)
        return f"{expiry}.{name}.{self._key.sign('form', subject, expiry, name)}"

    def read(self, form_key: str, subject: str) -> str | None:
        """Return the id in the key, None if it was not issued for this subject or has expired."""
        expiry, name, signature = (*form_key.split("."), "", "", "")[:3]
        if not self._key.verify(signature, "form", subject, expiry, name):
            return None
        return name if int(expiry) > self._now() else None
