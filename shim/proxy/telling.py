"""What the shim itself has to say to a client, and what is recorded of it: refusals, failures, access."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

from shim.proxy.answers import own_answer
from shim.proxy.connection import ClientConnection, Phase
from shim.proxy.sign_in import sign_in_location
from shim.trust.decide import Decision, refuse
from shim.trust.refusal import Refused

if TYPE_CHECKING:
    from uvicorn.server import ServerState

    from shim.proxy.plane import DataPlane


class AnsweringConnection(ClientConnection):
    """A connection on which the shim can answer by itself.

    Its state is the request's: what was decided, the id under which it is told of, and what was answered
    so far.
    """

    __slots__ = ("_answer_begun", "_answer_status", "_decision", "_request_id", "_sent", "_started")

    def __init__(self, plane: DataPlane, server_state: ServerState) -> None:
        super().__init__(plane, server_state)
        self._decision: Decision
        self._request_id = ""
        self._answer_begun = False
        self._answer_status = 0
        self._sent = 0
        self._started = 0.0

    def failed(self, word: str, status: int) -> None:
        """There is no answer from Navidrome: give one of our own, or end the connection if one began."""
        plane = self._plane
        if self._answer_begun and self._phase is Phase.EXCHANGE and plane.observer.wants_access:
            self._log_access(word)
        self._abandon()
        plane.counters.failed(word)
        plane.observer.failed(self._decision, self._identify(), word, status)
        if self._answer_begun:
            self.abort()
            return
        retry_after = 5 if status in (502, 503) else None
        self.keep_alive = False
        self._answer(status, self._decision, retry_after)

    def _refuse(self, refused: Refused, retry_after: int | None = None) -> None:
        """Refuse the request after all, which had been decided otherwise."""
        decision = self._decision
        self._count(refuse(refused, decision.source, decision.line, decision.block), retry_after)

    def _count(self, decision: Decision, retry_after: int | None = None) -> None:
        """Say of a rejected request what there is to say, to everybody who has to know."""
        self._decision = decision
        self._abandon()
        self._plane.counters.requests[decision.outcome.index] += 1
        self._plane.observer.judged(decision, self._identify())
        self._answer(decision.outcome.status, decision, retry_after)

    def _answer(self, status: int, decision: Decision, retry_after: int | None) -> None:
        location = sign_in_location(
            decision, self._plane.sign_in, self._plane.decisions.policy.paths
        )
        if location is not None:
            status = 302
        lasting = self.keep_alive = self.keep_alive and decision.keep_alive
        answer = own_answer(
            status,
            decision,
            self._identify(),
            retry_after=retry_after,
            location=location,
            contact=self._plane.contact,
            sign_out=self._plane.sign_out,
            lasting=lasting,
        )
        self._answer_status = status
        self._answer_begun = True
        self._sent = len(answer)
        if self._plane.observer.wants_access:
            self._log_access()
        if lasting:
            self._transport.write(answer)
            self._rest()
        else:
            self._last_words(answer)

    def _identify(self) -> str:
        if not self._request_id:
            self._request_id = secrets.token_hex(8)
        return self._request_id

    def _begin_access(self) -> None:
        """The head is whole; said again, where the request was waited for, it changes nothing."""
        self._started = self._started or asyncio.get_running_loop().time()
        self._sent = 0

    def _log_access(self, incomplete: str = "") -> None:
        seconds = asyncio.get_running_loop().time() - self._started
        self._started = 0.0
        self._plane.observer.accessed(
            self._decision,
            self._identify(),
            self._answer_status,
            self._sent,
            seconds,
            incomplete,
        )
