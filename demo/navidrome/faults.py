"""Fault injection for tests. The real Navidrome has no such feature."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    """The fault instead of the response."""

    SERVER_ERROR = "server_error"
    """500 with a JSON error."""
    HTML = "html"
    """200 with a page, as a captive portal or a sign-in page would."""
    TRUNCATED_JSON = "truncated_json"
    """The first half of the real response with a matching length: invalid JSON."""
    CUT = "cut"
    """The first half of the real response with its full length, then a close."""
    REDIRECT = "redirect"
    """302 to somewhere else."""
    HANG = "hang"
    """Nothing, until the fault is lifted, the client leaves or the stand-in stops."""
    NOTHING = "nothing"
    """The connection is closed without a byte."""


@dataclass(slots=True)
class Fault:
    """A fault and the requests that it affects.

    prefixes: path prefixes below the base path.
    methods: methods; empty: all.
    skip: the number of matching requests that are not affected first.
    times: the number of affected requests after that; None: all.
    carried_out: the request is carried out, and only its response is lost. Always so
        for the two kinds that need the real response.
    """

    kind: FaultKind
    prefixes: tuple[str, ...] = ("/api/", "/auth/")
    methods: frozenset[str] = frozenset()
    skip: int = 0
    times: int | None = None
    carried_out: bool = False

    def hits(self, method: str, path: str) -> bool:
        """Return whether this request is affected; counts it."""
        if not path.startswith(self.prefixes) or (self.methods and method not in self.methods):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is None:
            return True
        self.times -= 1
        return self.times >= 0
