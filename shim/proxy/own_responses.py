"""The responses that the shim sends itself: rejections, failures, and the two requests that it responds to.

Each function ends the request and reports it. `error_responses.py` and `edge_probe.py` have the formats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shim.proxy.edge_probe import edge_probe_response
from shim.proxy.error_responses import error_response, token_info
from shim.proxy.failures import Failure
from shim.proxy.request_reports import (
    count_decision,
    log_access,
    report_failed,
    report_incomplete,
    report_rejected,
)
from shim.proxy.server import DataPlane
from shim.proxy.sign_in import public_address, sign_in_location
from shim.proxy.states import FORWARDING
from shim.trust.decision import Decision
from shim.trust.reasons import Reason

if TYPE_CHECKING:
    from shim.proxy.client_connection import ClientConnection
    from shim.proxy.request_handler import RequestHandler


def reject(
    request: RequestHandler,
    connection: ClientConnection,
    retry_after: int | None = None,
) -> None:
    """Reject the request by its decision. `retry_after` is in seconds."""
    plane, decision, form = connection.plane, request.decision, request.form
    request.cancel()
    location = sign_in_location(decision, plane.options.sign_in_url, plane.policy.paths)
    status = decision.outcome.status if location is None else 302
    report_rejected(plane, decision, request.ensure_request_id(), status)
    keep_alive = connection.keep_alive and decision.keep_alive
    response = error_response(
        status,
        decision,
        request.ensure_request_id(),
        retry_after=retry_after,
        location=location,
        contact=plane.options.support_contact,
        sign_out=plane.options.sign_out_url,
        keep_alive=keep_alive,
        form=form,
        address=_sign_in_address(plane, decision),
    )
    request.respond(status, response, keep_alive=keep_alive)


def fail(request: RequestHandler, connection: ClientConnection, failure: Failure) -> None:
    """Send an error response, since Navidrome sent none; if a response began, close the connection."""
    plane, form = connection.plane, request.form
    if request.response_begun:
        abort_response(request, connection, failure)
        return
    request.cancel()
    report_failed(plane, request, failure)
    response = error_response(
        failure.status,
        request.decision,
        request.ensure_request_id(),
        failure=failure,
        retry_after=5 if failure.status in (502, 503) else None,
        contact=plane.options.support_contact,
        sign_out=plane.options.sign_out_url,
        form=form,
        address=_sign_in_address(plane, request.decision),
    )
    request.respond(failure.status, response, keep_alive=False)


def abort_response(request: RequestHandler, connection: ClientConnection, failure: Failure) -> None:
    """Close the connection within a response, so that the client does not take it for a complete one."""
    if connection.state is FORWARDING:
        log_access(connection.plane, request, failure)
    request.cancel()
    report_incomplete(connection.plane, request, failure)
    connection.abort()


def send_token_info(request: RequestHandler, connection: ClientConnection) -> None:
    """Send the name of the device's account, which Navidrome can't: it knows no API keys."""
    plane, decision, form = connection.plane, request.decision, request.form
    line, block, account = decision.request_line, decision.block, request.account
    assert line is not None and block is not None and account is not None
    request.cancel()
    count_decision(plane, request)
    keep_alive = connection.keep_alive and decision.keep_alive and not block.metadata.has_body
    response = token_info(
        line.target,
        account.user_name.decode(),
        request.ensure_request_id(),
        form=form,
        keep_alive=keep_alive,
    )
    if line.method == b"HEAD":
        response = response[: response.index(b"\r\n\r\n") + 4]
    request.respond(200, response, keep_alive=keep_alive)


def respond_to_probe(request: RequestHandler, connection: ClientConnection) -> None:
    """Send the names of the headers that arrived to `navidrome-shim check`.

    The request is not logged as stripped, because the check sends identity headers on purpose.
    """
    plane = connection.plane
    count_decision(plane, request, report=False)
    response = edge_probe_response(request.decision, plane.policy)
    request.respond(200, response, keep_alive=False)


def _sign_in_address(plane: DataPlane, decision: Decision) -> str:
    """Return where the owner of a device signs in, empty if that is not what the response says."""
    if decision.outcome.reason is not Reason.DEVICE_SIGN_IN_DUE or decision.block is None:
        return ""
    return public_address(decision.block.forward, plane.policy.paths.base)
