"""How a pure step says that a request has to be rejected."""

from __future__ import annotations

from shim.trust.reasons import Reason


class RequestRejected(Exception):
    """The request is `rejected` for `reason`. `detail` says in one sentence what was wrong; it quotes
    nothing that the client sent, so that it may stand in a log."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
