"""Check a request against the account that it is sent as, and against Navidrome's own tokens in it.

Look-ups without I/O, of the account gate and of the devices. None of them changes anything.
"""

from __future__ import annotations

from shim.proxy.gate import Account, AccountGate
from shim.proxy.interfaces import RequestState
from shim.proxy.server import DataPlane
from shim.trust.decision import Decision
from shim.trust.navidrome_tokens import NavidromeClaims


def without_invalid_tokens(
    decision: Decision, gate: AccountGate | None, account: Account | None, *, listed: bool
) -> Decision:
    """Return the decision without the Navidrome tokens that are void, and, if the request has an identity,
    without those of other accounts.

    Without provisioning no account id is known, so each token counts as another account's; without an
    identity none is known to be void. `listed`: Navidrome's users were listed after the request arrived.
    """
    if gate is not None:
        known = gate

        def is_valid(claims: NavidromeClaims) -> bool:
            return token_valid(known, account, claims, listed=listed)

        decision = decision.without_void_tokens(is_valid)
    identity = decision.identity
    if identity is not None:
        name = identity.username.encode() if account is None else account.user_name
        decision = decision.with_tokens_bound_to(name, None if account is None else account.id)
    return decision


def token_valid(
    gate: AccountGate, account: Account | None, claims: NavidromeClaims, *, listed: bool
) -> bool:
    """Return whether a Navidrome token is valid, in a request of `account`; None without an identity."""
    if account is not None:
        listed = claims.names(account.user_name, account.id)
    return gate.navidrome_token_valid(
        claims.username, claims.user_id, claims.issued_at, listed=listed
    )


def token_accepted(
    gate: AccountGate, account: Account | None, claims: NavidromeClaims, *, listed: bool
) -> bool:
    """Return whether a Navidrome token in a form is valid, and names the account if there is one."""
    named = account is None or claims.names(account.user_name, account.id)
    return named and token_valid(gate, account, claims, listed=listed)


def may_continue(plane: DataPlane, request: RequestState) -> bool:
    """Return whether neither the account, the device nor a token of the request was revoked."""
    gate, decision, account = plane.gate, request.decision, request.account
    if gate is None:
        return True
    if request.device is not None and (
        plane.devices is None or not plane.devices.is_active(request.device)
    ):
        return False
    if account is not None:
        identity = decision.identity
        uid = None if identity is None else identity.uid
        if account.id is None or not gate.may_continue(account.id, uid, 0.0):
            return False
    return all(
        gate.may_continue(claims.user_id, None, claims.issued_at) for claims in decision.claims
    )


def is_unchanged(plane: DataPlane, request: RequestState) -> bool:
    """Return whether a request that waited may be sent as it is: an account may have been revoked, or
    Navidrome may be another instance, without users."""
    gate, decision = plane.gate, request.decision
    if request.device is not None:
        return plane.devices is not None and plane.devices.is_current(request.device)
    if gate is None or (request.account is None and not decision.claims):
        return True
    if decision.claims and not may_continue(plane, request):
        return False
    identity = decision.identity
    return identity is None or gate.known(identity) is not None


def report_unauthorized(plane: DataPlane, request: RequestState) -> None:
    """Report a 401 of Navidrome's API to a request that named an account: it may no longer exist."""
    gate, identity, line = plane.gate, request.decision.identity, request.decision.request_line
    if gate is None or identity is None or line is None or request.account is None:
        return
    if line.path.startswith(plane.policy.paths.base + b"api/"):
        gate.report_unauthorized(identity)
