"""What the shim itself has to say to a client, and what is recorded of it: rejections, failures, access."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from shim.proxy.client_connection import ClientConnection
from shim.proxy.error_responses import error_response
from shim.proxy.failures import Failure
from shim.proxy.sign_in import sign_in_location
from shim.proxy.states import FORWARDING
from shim.trust.decision import Decision, reject
from shim.trust.rejection import RequestRejected

if TYPE_CHECKING:
    from uvicorn.server import ServerState

    from shim.proxy.server import DataPlane


class RespondingConnection(ClientConnection):
    """A connection on which the shim can answer by itself.

    Its state is the request's: what was decided, the id under which it is told of, and what was answered
    so far.
    """

    __slots__ = (
        "_bytes_sent",
        "_decision",
        "_request_id",
        "_response_started",
        "_response_status",
        "_started",
    )

    def __init__(self, plane: DataPlane, server_state: ServerState) -> None:
        super().__init__(plane, server_state)
        self._decision: Decision
        self._request_id = ""
        self._response_started = False
        self._response_status = 0
        self._bytes_sent = 0
        self._started = 0.0

    def failed(self, failure: Failure) -> None:
        """There is no response from Navidrome: give one of our own, or end the connection if one began."""
        plane = self._plane
        if self._response_started:
            if self.state is FORWARDING and plane.observer.logs_access:
                self._log_access(failure)
            self._cancel_pending()
            self._report_incomplete(failure)
            self.abort()
            return
        self._cancel_pending()
        plane.counters.failed(failure)
        status = failure.status
        plane.observer.failed(self._decision, self._ensure_request_id(), failure, status)
        retry_after = 5 if status in (502, 503) else None
        self.keep_alive = False
        self._respond(status, self._decision, retry_after, failure=failure)

    def _report_incomplete(self, failure: Failure) -> None:
        """Count and log a response that began and did not become whole."""
        self._plane.counters.failed(failure)
        self._plane.observer.failed(
            self._decision,
            self._ensure_request_id(),
            failure,
            self._response_status,
            self._bytes_sent,
        )

    def _reject_after_all(self, rejection: RequestRejected, retry_after: int | None = None) -> None:
        """Reject the request after all, which had been decided otherwise."""
        decision = self._decision
        self._reject(
            reject(rejection, decision.source, decision.request_line, decision.block), retry_after
        )

    def _reject(self, decision: Decision, retry_after: int | None = None) -> None:
        """Say of a rejected request what there is to say, to everybody who has to know."""
        self._decision = decision
        self._cancel_pending()
        self._plane.counters.requests[decision.outcome.index] += 1
        location = sign_in_location(
            decision, self._plane.options.sign_in_url, self._plane.decisions.policy.paths
        )
        status = decision.outcome.status if location is None else 302
        self._plane.observer.request_decided(decision, self._ensure_request_id(), status)
        self._respond(status, decision, retry_after, location=location)

    def _respond(
        self,
        status: int,
        decision: Decision,
        retry_after: int | None,
        *,
        location: str | None = None,
        failure: Failure | None = None,
    ) -> None:
        keep_alive = self.keep_alive = self.keep_alive and decision.keep_alive
        response = error_response(
            status,
            decision,
            self._ensure_request_id(),
            failure=failure,
            retry_after=retry_after,
            location=location,
            contact=self._plane.options.support_contact,
            sign_out=self._plane.options.sign_out_url,
            keep_alive=keep_alive,
        )
        self._response_status = status
        self._response_started = True
        self._bytes_sent = len(response)
        if self._plane.observer.logs_access:
            self._log_access()
        if keep_alive:
            self._transport.write(response)
            self._enter_keep_alive()
        else:
            self._send_and_close(response)

    def _ensure_request_id(self) -> str:
        if not self._request_id:
            self._request_id = secrets.token_hex(8)
        return self._request_id

    def _begin_access(self) -> None:
        """The head is whole; said again, where the request was waited for, it changes nothing."""
        self._started = self._started or asyncio.get_running_loop().time()
        self._bytes_sent = 0

    def _log_access(self, incomplete: Failure | None = None) -> None:
        seconds = asyncio.get_running_loop().time() - self._started
        self._started = 0.0
        self._plane.observer.request_completed(
            self._decision,
            self._ensure_request_id(),
            self._response_status,
            self._bytes_sent,
            seconds,
            incomplete,
        )
