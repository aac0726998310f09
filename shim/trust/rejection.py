"""The exception with which a pure step rejects a request."""

from __future__ import annotations

from shim.trust.reasons import Reason


class RequestRejected(Exception):
    """The request is `rejected` for `reason`.

    `detail` is the error in one sentence. It quotes no client data, so that it can be logged.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail
