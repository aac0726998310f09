"""Turn notifications of the data plane into audit events."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypedDict

from shim.audit.events import Access, RequestDecision, RequestFailed, UpstreamDown, UpstreamUp
from shim.audit.events.proof import NavidromeTokenFound
from shim.audit.trail import Trail
from shim.trust.decision import Decision

_MAX_METHOD = 32


class TrailObserver:
    """Records events of the data plane. `upstream` is Navidrome's address in the settings; `logs_access`
    enables the access log."""

    def __init__(
        self,
        trail: Trail,
        upstream: str,
        *,
        logs_access: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._trail = trail
        self._upstream = upstream
        self._now = now
        self._down_since: float | None = None
        self.logs_access = logs_access

    def request_decided(
        self, decision: Decision, request_id: str, status: int | None = None
    ) -> None:
        """A request was stripped or rejected; the client got `status`, by default the decision's."""
        outcome, now = decision.outcome, self._now()
        group_key = RequestDecision.build_group_key(outcome.reason, outcome.path_class)
        if self._trail.count_suppressed(decision.source.peer.text, group_key, now):
            return
        self._trail.record(
            RequestDecision(
                time=now,
                **_request_fields(decision, request_id),
                peer_trusted=decision.source.trusted,
                client=_client(decision),
                path_class=outcome.path_class,
                verdict=outcome.verdict,
                reason=outcome.reason,
                status=outcome.status if status is None else status,
                user=_claimed_name(decision),
                removed_headers=_removed(decision),
                notes=decision.notes,
            )
        )

    def navidrome_token_found(self, decision: Decision, request_id: str) -> None:
        """A request had a Navidrome token that was removed, or that passed without an identity."""
        identity = decision.identity
        found = {"navidrome_token_void": decision.void, "token_mismatch": decision.removed_tokens}
        if not any(found.values()):
            found = {"token_without_identity": decision.token_locations}
        for reason, locations in found.items():
            if locations:
                self._trail.record(
                    NavidromeTokenFound(
                        time=self._now(),
                        **_request_fields(decision, request_id),
                        reason=reason,
                        locations=locations,
                        user=None if identity is None else identity.username,
                    )
                )

    def failed(
        self,
        decision: Decision,
        request_id: str,
        failure: str,
        status: int,
        sent: int | None = None,
    ) -> None:
        """A request or response failed; `sent` bytes of an incomplete response were sent."""
        self._trail.record(
            RequestFailed(
                time=self._now(),
                **_request_fields(decision, request_id),
                status=status,
                reason=str(failure),
                client=_client(decision),
                user=None if decision.identity is None else decision.identity.username,
                bytes_sent=sent,
            )
        )

    def request_completed(
        self,
        decision: Decision,
        request_id: str,
        status: int,
        sent: int,
        seconds: float,
        incomplete: str | None = None,
    ) -> None:
        """A request was completed."""
        self._trail.record(
            Access(
                time=self._now(),
                **_request_fields(decision, request_id),
                status=status,
                bytes_sent=sent,
                duration_seconds=seconds,
                client=_client(decision),
                incomplete=None if incomplete is None else str(incomplete),
                user=None if decision.identity is None else decision.identity.username,
                verdict=decision.outcome.verdict,
                reason=decision.outcome.reason,
            )
        )

    def upstream_up(self) -> None:
        """Navidrome responds again."""
        now = self._now()
        away = None if self._down_since is None else now - self._down_since
        self._down_since = None
        self._trail.record(UpstreamUp(time=now, upstream=self._upstream, down_seconds=away))

    def upstream_down(self, reason: str) -> None:
        """Navidrome does not respond."""
        if self._down_since is None:
            self._down_since = self._now()
            self._trail.record(
                UpstreamDown(time=self._down_since, upstream=self._upstream, reason=reason)
            )


class _RequestFields(TypedDict):
    request_id: str
    peer: str
    method: str
    path: str


def _request_fields(decision: Decision, request_id: str) -> _RequestFields:
    """Return the fields that every event about a request has."""
    method, target = decision.requested
    return {
        "request_id": request_id,
        "peer": decision.source.peer.text,
        "method": method[:_MAX_METHOD].decode("latin-1"),
        "path": target.partition(b"?")[0].decode("latin-1"),
    }


def _client(decision: Decision) -> str | None:
    """Return the client's address, or the peer's if the header block is invalid."""
    block = decision.block
    client = decision.source.address if block is None else block.metadata.client
    return None if client is None else client.decode()


def _claimed_name(decision: Decision) -> str | None:
    if decision.block is None:
        return None
    trust_result = decision.trust_result or decision.block.metadata.trust_result
    identity = trust_result.identity
    return None if identity is None else identity.username


def _removed(decision: Decision) -> tuple[str, ...]:
    if decision.block is None:
        return ()
    return tuple(field.sent_name for field in decision.block.removed)
