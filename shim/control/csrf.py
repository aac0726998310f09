"""CSRF tokens: a write from a browser must come from a page that the control plane sent to the same client.

A token is `EXPIRY.SIGNATURE` and bound to a subject: the uid of an administrator, a session, or this machine.
It is sent in the header `X-CSRF-Token`, or in a form's field `csrf_token`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from shim.control.keys import ControlKey

CSRF_HEADER = "X-CSRF-Token"
CSRF_FIELD = "csrf_token"
CSRF_SECONDS = 12 * 3600


class CsrfTokens:
    """Issues and verifies tokens. `now` returns seconds since the epoch."""

    def __init__(self, key: ControlKey, now: Callable[[], float] = time.time) -> None:
        self._key = key
        self._now = now

    def issue(self, subject: str) -> str:
        """Return a token for this subject, valid for `CSRF_SECONDS`."""
        expiry = str(int(self._now()) + CSRF_SECONDS)
        return f"{expiry}.{self._key.sign('csrf', subject, expiry)}"

    def is_valid(self, token: str, subject: str) -> bool:
        """Return whether the token was issued for this subject and has not expired."""
        expiry, _, signature = token.partition(".")
        if not self._key.verify(signature, "csrf", subject, expiry):
            return False
        return int(expiry) > self._now()
