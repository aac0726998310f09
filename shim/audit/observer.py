"""Turn notifications of the data plane into audit events."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Protocol, TypedDict

from shim.audit.events import (
    Access,
    IdentitySeen,
    RequestDecision,
    RequestFailed,
    UpstreamDown,
    UpstreamUp,
)
from shim.audit.events.proof import NavidromeTokenFound
from shim.audit.trail import Trail
from shim.trust.decision import Decision
from shim.trust.identity import Identity, Role
from shim.trust.reasons import Verdict

SILENCE_SECONDS = 3600.0
# Beyond this number of identities and client addresses, the least recently used one is forgotten and recorded
# again at its next use.
MAX_IDENTITIES = 4096

_MAX_METHOD = 32
_MAX_USER_AGENT = 1024  # bytes to decode; the event clips the text
_USER_AGENT = re.compile(rb"(?im)^user-agent:[ \t]*([^\r\n]*)")


class DecisionWatch(Protocol):
    """Sees decisions beside the trail. No method may block or raise."""

    def decided(self, decision: Decision) -> None:
        """A request was stripped or rejected."""

    def identity_used(self, decision: Decision) -> None:
        """An identity was trusted; called once a minute for each one that is in use."""


class TrailObserver:
    """Records events of the data plane. `upstream` is Navidrome's address in the settings; `logs_access`
    enables the access log; `watch` sees the decisions too."""

    def __init__(
        self,
        trail: Trail,
        upstream: str,
        *,
        logs_access: bool = False,
        now: Callable[[], float] = time.time,
        watch: DecisionWatch | None = None,
    ) -> None:
        self._trail = trail
        self._watch = watch
        self._upstream = upstream
        self._now = now
        self._down_since: float | None = None
        # The time of the last use, by identity, device and client address, the oldest use first.
        self._last_used: dict[tuple[str, str, str | None], float] = {}
        self.logs_access = logs_access

    def request_decided(
        self, decision: Decision, request_id: str, status: int | None = None
    ) -> None:
        """A request was stripped or rejected; the client got `status`, by default the decision's."""
        if self._watch is not None:
            self._watch.decided(decision)
        outcome, now = decision.outcome, self._now()
        group_key = RequestDecision.build_group_key(outcome.reason, outcome.path_class)
        if self._trail.count_suppressed(decision.source.peer.text, group_key, now):
            return
        self._trail.record(
            RequestDecision(
                time=now,
                **request_fields(decision, request_id, now),
                peer_trusted=decision.source.trusted,
                path_class=outcome.path_class,
                verdict=outcome.verdict,
                reason=outcome.reason,
                status=outcome.status if status is None else status,
                removed_headers=_removed(decision),
                notes=decision.notes,
            )
        )

    def identity_used(self, decision: Decision, request_id: str, account: str | None) -> None:
        """An identity was trusted. Record it if this client address did not use it for an hour."""
        identity, now, last_used = decision.identity, self._now(), self._last_used
        if identity is None:
            return
        if self._watch is not None and decision.device is None:
            self._watch.identity_used(decision)
        device = "" if decision.device is None else decision.device.id
        key = (identity.uid or identity.username, device, _client(decision))
        previous = last_used.pop(key, None)
        oldest = next(iter(last_used), None)
        if oldest is not None and (
            len(last_used) >= MAX_IDENTITIES or last_used[oldest] <= now - SILENCE_SECONDS
        ):
            del last_used[oldest]
        last_used[key] = now
        if previous is not None and now - previous < SILENCE_SECONDS:
            return
        outcome = decision.outcome
        self._trail.record(
            IdentitySeen(
                time=now,
                **request_fields(decision, request_id, now),
                path_class=outcome.path_class,
                verdict=outcome.verdict,
                reason=outcome.reason,
                account=account,
            )
        )

    def navidrome_token_found(
        self, decision: Decision, request_id: str, account: str | None = None
    ) -> None:
        """A request had a Navidrome token that was removed, or that passed without an identity."""
        now = self._now()
        found = {"navidrome_token_void": decision.void, "token_mismatch": decision.removed_tokens}
        if not any(found.values()):
            found = {"token_without_identity": decision.token_locations}
        for reason, locations in found.items():
            if locations:
                self._trail.record(
                    NavidromeTokenFound(
                        time=now,
                        **request_fields(decision, request_id, now),
                        reason=reason,
                        locations=locations,
                        account=account,
                    )
                )

    def failed(
        self,
        decision: Decision,
        request_id: str,
        failure: str,
        status: int,
        sent: int | None = None,
        *,
        account: str | None = None,
    ) -> None:
        """A request or response failed; `sent` bytes of an incomplete response were sent."""
        now = self._now()
        self._trail.record(
            RequestFailed(
                time=now,
                **request_fields(decision, request_id, now),
                status=status,
                reason=str(failure),
                bytes_sent=sent,
                account=account,
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
        *,
        account: str | None = None,
    ) -> None:
        """A request was completed."""
        now = self._now()
        self._trail.record(
            Access(
                time=now,
                **request_fields(decision, request_id, now),
                status=status,
                bytes_sent=sent,
                account=account,
                duration_seconds=seconds,
                incomplete=None if incomplete is None else str(incomplete),
                path_class=decision.outcome.path_class,
                verdict=decision.outcome.verdict,
                reason=decision.outcome.reason,
            )
        )

    def upstream_up(self) -> None:
        """Navidrome responds again."""
        now = self._now()
        down_seconds = None if self._down_since is None else now - self._down_since
        self._down_since = None
        self._trail.record(UpstreamUp(time=now, upstream=self._upstream, down_seconds=down_seconds))

    def upstream_down(self, reason: str) -> None:
        """Navidrome does not respond."""
        if self._down_since is None:
            self._down_since = self._now()
            self._trail.record(
                UpstreamDown(time=self._down_since, upstream=self._upstream, detail=reason)
            )


class RequestFields(TypedDict):
    request_id: str
    peer: str
    client: str | None
    method: str
    path: str
    user: str | None
    claimed_user: str | None
    uid: str | None
    device: str | None
    device_name: str | None
    user_agent: str | None


def request_fields(decision: Decision, request_id: str, now: float) -> RequestFields:
    """Return the fields that every event about a request has."""
    method, target = decision.requested
    identity = _trusted_identity(decision, now)
    return {
        "request_id": request_id,
        "peer": decision.source.peer.text,
        "client": _client(decision),
        "method": method[:_MAX_METHOD].decode("latin-1"),
        "path": target.partition(b"?")[0].decode("utf-8", "backslashreplace"),
        "user": None if identity is None else identity.username,
        "claimed_user": _claimed_name(decision) if identity is None else None,
        "uid": None if identity is None else identity.uid,
        "device": None if decision.device is None else decision.device.id,
        "device_name": None if decision.device is None else decision.device.name,
        "user_agent": _user_agent(decision),
    }


def _client(decision: Decision) -> str | None:
    """Return the client's address, or the peer's if the header block is invalid."""
    block = decision.block
    client = decision.source.address if block is None else block.metadata.client
    return None if client is None else client.decode()


def _trusted_identity(decision: Decision, now: float) -> Identity | None:
    """Return the identity that was trusted, also if the request was rejected for another reason: the account
    policy, or another site that sent it."""
    line, block = decision.request_line, decision.block
    if line is None or block is None:
        return None
    result = decision.trust_result
    if result is None:
        result, proof = block.metadata.trust_result, block.proof
        if proof is not None and line.zone in proof.zones:
            if not proof.is_evaluated():
                return None
            result = proof.result(now)
    trusted = result.outcomes[line.zone].verdict is Verdict.AUTHENTICATED
    return result.identity if trusted else None


def _claimed_name(decision: Decision) -> str | None:
    """Return the first user name in the identity headers, if it is readable."""
    block = decision.block
    for field in () if block is None else block.metadata.removed:
        if field.role is Role.USERNAME and isinstance(field.parsed_value, str):
            return field.parsed_value
    return None


def _user_agent(decision: Decision) -> str | None:
    block = decision.block
    found = None if block is None else _USER_AGENT.search(block.forward)
    return None if found is None else found[1][:_MAX_USER_AGENT].decode("utf-8", "replace")


def _removed(decision: Decision) -> tuple[str, ...]:
    if decision.block is None:
        return ()
    return tuple(field.sent_name for field in decision.block.removed)
