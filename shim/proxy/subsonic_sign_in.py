"""Look for the password of a device in a Subsonic request, before the request is forwarded.

Functions of the decision: they know neither the connection nor the state of the request. `RequestHandler`
applies the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from shim.proxy.device_gate import DeviceGate, DeviceMatch, DeviceRefused, NoMatch
from shim.proxy.subsonic_responses import ExtensionListFilter, LoginOutcomeFilter, ResponseFilter
from shim.trust.decision import Decision
from shim.trust.path_zones import Paths, PathZone
from shim.trust.policy import Policy
from shim.trust.reasons import Reason
from shim.trust.subsonic_parameters import (
    ConflictingParameters,
    CredentialText,
    TooManyParameters,
    find_basic,
    first_parameter,
    split_credentials,
)

# Enum members are slow to look up, so those that each request uses are module constants.
_PROTECTED, _PUBLIC = PathZone.PROTECTED, PathZone.PUBLIC
_NOT_LISTED = NoMatch.NOT_LISTED
# Calls of the Subsonic API, as Navidrome routes them.
_TOKEN_INFO = frozenset({b"tokenInfo", b"tokenInfo.view"})
_EXTENSION_LISTS = frozenset({b"getOpenSubsonicExtensions", b"getOpenSubsonicExtensions.view"})


class SignInResult(NamedTuple):
    """What the credentials of a request are.

    `body` is the form to send, without the credentials of a device. `device` is set if they are those of a
    device; `decision` then names its person and has no credentials. `refused`: the shim sends an error
    itself. `needs_list`: ask again once Navidrome's users are listed. `response_filter` gets the
    bytes of the response.
    """

    decision: Decision
    body: bytes
    device: DeviceMatch | None = None
    refused: DeviceRefused | None = None
    needs_list: bool = False
    response_filter: ResponseFilter | None = None


def accepts_devices(decision: Decision, paths: Paths) -> bool:
    """Return whether an app may sign in with this request: through a trusted peer, below `/rest/`."""
    line = decision.request_line
    assert line is not None
    zone = line.zone
    return (
        decision.source.trusted
        and (zone is _PUBLIC or zone is _PROTECTED)
        and line.path.startswith(paths.subsonic)
    )


def requests_token_info(decision: Decision, paths: Paths) -> bool:
    """Return whether this is the call `tokenInfo`, which the shim responds to."""
    return _call(decision, paths) in _TOKEN_INFO


def sign_in(
    devices: DeviceGate,
    policy: Policy,
    decision: Decision,
    request_id: Callable[[], str],
    body: bytes = b"",
    *,
    listed: bool = False,
) -> SignInResult:
    """Look for the password of a device in the query, in the headers, and in `body`, the whole form if the
    request has one. No I/O.

    `request_id` returns the id of the request. `listed`: Navidrome's users were listed after the request
    arrived.
    """
    line, block = decision.request_line, decision.block
    assert line is not None and block is not None
    query = line.target[len(line.path) + 1 :]
    in_body, other_body = b"", body
    try:
        in_query, other_query = split_credentials(query) if query else (b"", b"")
        if body:
            in_body, other_body = split_credentials(body)
    except ConflictingParameters as error:
        refused = DeviceRefused(Reason.CREDENTIALS_CONFLICT, str(error))
        return SignInResult(decision, body, refused=refused)
    except TooManyParameters as error:
        return SignInResult(
            decision, body, refused=DeviceRefused(Reason.BODY_TOO_LARGE, str(error))
        )
    head_only = line.method == b"HEAD"
    # Navidrome checks no credentials for the list of extensions.
    checked = _call(decision, policy.paths) not in _EXTENSION_LISTS
    response_filter: ResponseFilter | None = None if checked or head_only else ExtensionListFilter()
    basic = b"" if in_query or in_body else find_basic(block.forward)
    if not (in_query or in_body or basic):
        return SignInResult(decision, body, response_filter=response_filter)
    credentials = CredentialText(in_query, in_body, basic)
    found = devices.identify(credentials, block.metadata.client, listed=listed)
    may_use = policy.user_header_obeyed and not policy.suspended
    if not may_use and (isinstance(found, DeviceMatch) or found is _NOT_LISTED):
        return SignInResult(decision, body, response_filter=response_filter)
    if isinstance(found, DeviceMatch) and not policy.audit_available:
        detail = "the audit trail cannot be written"
        return SignInResult(decision, body, refused=DeviceRefused(Reason.AUDIT_UNAVAILABLE, detail))
    if isinstance(found, DeviceMatch):
        if devices.use_is_due(found):
            devices.record_use(found, decision, first_parameter(b"c", query, body))
        decision = decision.with_device(found.identity, other_query)
        return SignInResult(decision, other_body, device=found, response_filter=response_filter)
    if isinstance(found, DeviceRefused):
        return SignInResult(decision, body, refused=found)
    if found is _NOT_LISTED:
        return SignInResult(decision, body, needs_list=True)
    if checked:
        attempt = devices.begin_attempt(found, decision, request_id)
        if isinstance(attempt, DeviceRefused):
            return SignInResult(decision, body, refused=attempt)
        if attempt is not None:
            response_filter = LoginOutcomeFilter(attempt, head_only=head_only)
    return SignInResult(decision, body, response_filter=response_filter)


def _call(decision: Decision, paths: Paths) -> bytes:
    line = decision.request_line
    assert line is not None
    return line.path[len(paths.subsonic) :]
