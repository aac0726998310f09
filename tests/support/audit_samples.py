"""Sample audit events."""

from __future__ import annotations

from shim.audit.events import Access, RequestDecision, RequestFailed
from shim.trust.reasons import PathClass, Reason, Verdict


def request_decision(
    *,
    time: float = 1_000.0,
    peer: str = "192.0.2.7",
    path: str = "/rest/ping",
    path_class: PathClass = PathClass.PUBLIC,
    verdict: Verdict = Verdict.STRIPPED,
    reason: Reason = Reason.UNTRUSTED_PEER,
    request_id: str = "r1",
    claimed_user: str | None = "admin",
    removed_headers: tuple[str, ...] = ("x-authentik-username",),
    notes: tuple[str, ...] = (),
) -> RequestDecision:
    return RequestDecision(
        time=time,
        request_id=request_id,
        peer=peer,
        peer_trusted=False,
        client=peer,
        method="GET",
        path=path,
        path_class=path_class,
        verdict=verdict,
        reason=reason,
        status=200,
        claimed_user=claimed_user,
        removed_headers=removed_headers,
        notes=notes,
    )


def request_failed(
    *, time: float = 1_000.0, peer: str = "192.0.2.7", reason: str = "connect"
) -> RequestFailed:
    return RequestFailed(
        time=time,
        request_id="r2",
        peer=peer,
        method="GET",
        path="/api/song?x=1",
        status=502,
        reason=reason,
    )


def access(*, path: str = "/app/", request_id: str = "r3") -> Access:
    return Access(
        time=1_000.0,
        request_id=request_id,
        peer="192.0.2.7",
        method="GET",
        path=path,
        status=200,
        bytes_sent=12,
        duration_seconds=0.0123456789,
        user="ada",
        path_class=PathClass.PROTECTED,
        verdict=Verdict.AUTHENTICATED,
        reason=Reason.TRUSTED_PEER,
    )
