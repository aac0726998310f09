"""Count requests in the metrics, and report them to the observer: access log, decisions and failures."""

from __future__ import annotations

import secrets
from time import perf_counter

from shim.proxy.failures import Failure
from shim.proxy.gate import Account
from shim.proxy.interfaces import RequestState
from shim.proxy.server import DataPlane
from shim.trust.decision import Decision
from shim.trust.reasons import Verdict

_STRIPPED, _AUTHENTICATED = Verdict.STRIPPED, Verdict.AUTHENTICATED


def new_request_id() -> str:
    """Return a random id of 16 characters."""
    return secrets.token_hex(8)


def count_decision(plane: DataPlane, request: RequestState, *, report: bool = True) -> None:
    """Count an accepted request, and report it if its identity was removed; `report`: that is not reported
    yet."""
    outcome = request.decision.outcome
    plane.counters.requests[outcome.index] += 1
    if report and outcome.verdict is _STRIPPED:
        plane.observer.request_decided(request.decision, request.ensure_request_id())


def report_rejected(
    plane: DataPlane, decision: Decision, request_id: str, status: int | None = None
) -> None:
    """Count and report a rejected request. `status` is that of the response, if the client gets another one
    than the decision's."""
    plane.counters.requests[decision.outcome.index] += 1
    plane.observer.request_decided(decision, request_id, status)


def count_unanswered(plane: DataPlane, decision: Decision, *, report: bool) -> None:
    """Count a rejected request that gets no response; `report`: report it too."""
    plane.counters.requests[decision.outcome.index] += 1
    if report:
        plane.observer.request_decided(decision, new_request_id())


def report_identity(plane: DataPlane, request: RequestState) -> None:
    """Report the use of an identity, unless the plane remembers it from an earlier request."""
    decision = request.decision
    if (
        decision.outcome.verdict is not _AUTHENTICATED
        or id(decision.trust_result) in plane.identities
    ):
        return
    plane.remember_identity(decision)
    plane.observer.identity_used(
        decision, request.ensure_request_id(), account_name(request.account)
    )


def report_tokens(plane: DataPlane, request: RequestState) -> None:
    """Report that Navidrome tokens were removed, or came without an identity."""
    plane.observer.navidrome_token_found(
        request.decision, request.ensure_request_id(), account_name(request.account)
    )


def report_failed(plane: DataPlane, request: RequestState, failure: Failure) -> None:
    """Count and report a request that gets an error response of the shim, since Navidrome sent none."""
    plane.counters.failed(failure)
    plane.observer.failed(
        request.decision,
        request.ensure_request_id(),
        failure,
        failure.status,
        account=account_name(request.account),
    )


def report_incomplete(plane: DataPlane, request: RequestState, failure: Failure) -> None:
    """Count and report a response that began and is incomplete."""
    plane.counters.failed(failure)
    plane.observer.failed(
        request.decision,
        request.ensure_request_id(),
        failure,
        request.response_status,
        request.bytes_sent,
        account=account_name(request.account),
    )


def log_access(plane: DataPlane, request: RequestState, incomplete: Failure | None = None) -> None:
    """Report the end of a response, if the access log is on. `incomplete` is None if it is complete."""
    observer = plane.observer
    if observer.logs_access:
        observer.request_completed(
            request.decision,
            request.ensure_request_id(),
            request.response_status,
            request.bytes_sent,
            perf_counter() - request.arrived,
            incomplete,
            account=account_name(request.account),
        )


def account_name(account: Account | None) -> str | None:
    """Return the name for reports, None without an account."""
    return None if account is None else account.user_name.decode()
