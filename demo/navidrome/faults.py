"""A switch for tests: ways in which a Navidrome can fail to answer. The real one has no such."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    """What is answered instead."""

    SERVER_ERROR = "server_error"
    """500 with a JSON error."""
    HTML = "html"
    """200 with a page, as a captive portal or a sign-in page would."""
    TRUNCATED_JSON = "truncated_json"
    """The true answer's first half, its length put right: JSON that does not parse."""
    CUT = "cut"
    """The true answer's first half under its whole length, then the connection is closed."""
    REDIRECT = "redirect"
    """302 to somewhere else."""
    HANG = "hang"
    """Nothing, until the fault is lifted, the client leaves or the stand-in stops."""
    NOTHING = "nothing"
    """The connection is closed without a byte."""


@dataclass(slots=True)
class Fault:
    """A fault and the requests that it hits.

    prefixes: path prefixes below the base path that are hit.
    methods: methods that are hit; empty: all.
    skip: so many requests that would be hit pass first.
    times: so many are hit, then no more; None: all.
    carried_out: the request is carried out all the same, and only its answer is lost. Always so
        for the two kinds that need the true answer.
    """

    kind: FaultKind
    prefixes: tuple[str, ...] = ("/api/", "/auth/")
    methods: frozenset[str] = frozenset()
    skip: int = 0
    times: int | None = None
    carried_out: bool = False

    def hits(self, method: str, path: str) -> bool:
        """Whether this request is hit; counts it."""
        if not path.startswith(self.prefixes) or (self.methods and method not in self.methods):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is None:
            return True
        self.times -= 1
        return self.times >= 0
