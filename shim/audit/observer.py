"""What the data plane tells, made into events for the trail."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypedDict

from shim.audit.events import Accessed, RequestJudged, UpstreamDown, UpstreamFailed, UpstreamUp
from shim.audit.proof_events import TokenSeen
from shim.audit.trail import Trail
from shim.trust.decide import Decision


class TrailObserver:
    """Records what the data plane tells. `upstream` is Navidrome's address as the settings name it;
    `wants_access` turns the access log on."""

    def __init__(
        self,
        trail: Trail,
        upstream: str,
        *,
        wants_access: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._trail = trail
        self._upstream = upstream
        self._now = now
        self._down_since: float | None = None
        self.wants_access = wants_access

    def judged(self, decision: Decision, request_id: str) -> None:
        """A request was stripped or rejected."""
        outcome, block, now = decision.outcome, decision.block, self._now()
        kin = RequestJudged.kin_of(outcome.reason, outcome.path_class)
        if self._trail.repeated(decision.source.peer.text, kin, now):
            return
        client = None if block is None else block.envelope.client
        self._trail.record(
            RequestJudged(
                time=now,
                **_asked(decision, request_id),
                peer_trusted=decision.source.listed,
                client=None if client is None else client.decode(),
                path_class=outcome.path_class,
                verdict=outcome.verdict,
                reason=outcome.reason,
                status=outcome.status,
                user=_claimed(decision),
                removed_headers=_removed(decision),
                notes=decision.notes,
            )
        )

    def tokens_seen(self, decision: Decision, request_id: str) -> None:
        """A request brought a Navidrome token that was removed, or that speaks for itself."""
        identity = decision.identity
        found = {"navidrome_token_void": decision.void, "token_mismatch": decision.loosed}
        if not any(found.values()):
            found = {"token_without_identity": decision.token_places}
        for reason, places in found.items():
            if places:
                self._trail.record(
                    TokenSeen(
                        time=self._now(),
                        **_asked(decision, request_id),
                        reason=reason,
                        places=places,
                        user=None if identity is None else identity.username,
                    )
                )

    def failed(self, decision: Decision, request_id: str, word: str, status: int) -> None:
        """A request got one of the shim's own answers, since Navidrome gave none."""
        self._trail.record(
            UpstreamFailed(
                time=self._now(),
                **_asked(decision, request_id),
                status=status,
                reason=word,
            )
        )

    def accessed(
        self, decision: Decision, request_id: str, status: int, sent: int, seconds: float
    ) -> None:
        """An answer was given."""
        self._trail.record(
            Accessed(
                time=self._now(),
                **_asked(decision, request_id),
                status=status,
                bytes_sent=sent,
                duration_seconds=seconds,
                user=None if decision.identity is None else decision.identity.username,
                verdict=decision.outcome.verdict,
                reason=decision.outcome.reason,
            )
        )

    def upstream_up(self) -> None:
        """Navidrome answers again."""
        now = self._now()
        away = None if self._down_since is None else now - self._down_since
        self._down_since = None
        self._trail.record(UpstreamUp(time=now, upstream=self._upstream, down_seconds=away))

    def upstream_down(self, why: str) -> None:
        """Navidrome can't be reached."""
        if self._down_since is None:
            self._down_since = self._now()
            self._trail.record(
                UpstreamDown(time=self._down_since, upstream=self._upstream, reason=why)
            )


class _Asked(TypedDict):
    request_id: str
    peer: str
    method: str
    path: str


def _asked(decision: Decision, request_id: str) -> _Asked:
    """Who asked for what, as every event on a request has it."""
    line = decision.line
    return {
        "request_id": request_id,
        "peer": decision.source.peer.text,
        "method": "" if line is None else line.method.decode(),
        "path": "" if line is None else line.path.decode(),
    }


def _claimed(decision: Decision) -> str | None:
    if decision.block is None:
        return None
    belief = decision.belief or decision.block.envelope.belief
    identity = belief.identity
    return None if identity is None else identity.username


def _removed(decision: Decision) -> tuple[str, ...]:
    if decision.block is None:
        return ()
    return tuple(field.sent_name for field in decision.block.removed)
