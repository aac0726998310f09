"""Evaluate the identity headers of one request, and decide whether the identity is trusted.

The result depends on the zone of the path, so it is computed once for every zone: it is cached with the
header block, and the request line only selects an outcome. A token is verified when a path needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

from shim.trust.client_address import PeerInfo
from shim.trust.fields import Field, Kind
from shim.trust.identity import Identity, Role
from shim.trust.names import normalize_name
from shim.trust.path_zones import PathZone
from shim.trust.policy import Policy, Proof
from shim.trust.reasons import Outcome, PathClass, Reason, Verdict, outcome
from shim.trust.rejection import RequestRejected
from shim.trust.token_proof import (
    MISSING_HINTS,
    DeferredResult,
    VerifiedClaims,
    check_claims_match_headers,
    check_secret,
    secret_matches,
)

IDENTITY_KINDS = frozenset({Kind.IDENTITY, Kind.USER, Kind.ALIAS, Kind.BEARER})


# Without one of these proofs, whoever reaches the shim through a trusted peer's open route is an admin.
_PROOFS = frozenset({Reason.PROXY_SECRET, Reason.VERIFIED_JWT})


@dataclass(slots=True)
class TrustResult:
    """The trusted result of a header block. Treated as frozen.

    `outcomes` has one outcome for every `PathZone`, in its order. `identity` is the claimed identity, set
    if it could be parsed; it counts only if the outcome is `authenticated`. `user_line` is the header
    line that names it to Navidrome, empty without an identity. `detail` is the error of an outcome that
    is `rejected` because of the identity. `without_requirement` is the outcome of protected paths if they
    required no identity. `is_admin`: the identity may use the console.
    """

    outcomes: tuple[Outcome, ...]
    identity: Identity | None
    user_line: bytes
    detail: str
    without_requirement: Outcome
    is_admin: bool = False


def evaluate_identity(
    fields: Sequence[Field], source: PeerInfo, policy: Policy
) -> tuple[TrustResult, DeferredResult[TrustResult] | None]:
    """Evaluate the fields that carry an identity (all of `IDENTITY_KINDS`, and the secret's).

    Returns the result without the token and, if a token is among the fields, the deferred result that
    counts instead in the zones that need the token. Only the presence of the token matters here; its
    content is not read.
    """
    claimed = any(field.kind in IDENTITY_KINDS for field in fields)
    if not source.trusted:
        if policy.reject_untrusted:
            detail = "the peer is not trusted"
            return _result(policy, *[Reason.UNTRUSTED_PEER_REJECTED] * 5, detail=detail), None
        reason = Reason.UNTRUSTED_PEER if claimed else Reason.NO_IDENTITY
        return _result(policy, *[reason] * 5), None
    if policy.suspended:
        reason = Reason.BASE_PATH_MISMATCH if claimed else Reason.NO_IDENTITY
        return _result(policy, *[reason] * 5), None
    if not claimed:
        return _result(policy, *[Reason.NO_IDENTITY] * 5), None
    return _evaluate_trusted(fields, policy)


def _evaluate_trusted(
    fields: Sequence[Field], policy: Policy
) -> tuple[TrustResult, DeferredResult[TrustResult] | None]:
    secret = policy.public_path_proof is Proof.SECRET and secret_matches(fields, policy)
    claims: dict[Role, str] = {}
    try:
        claims = _read_claims(fields, policy)
        if not claims:
            if not any(field.value for field in fields if field.kind in IDENTITY_KINDS):
                # An edge may always send its identity headers, and leave them empty for an anonymous
                # request.
                return _result(policy, *[Reason.NO_IDENTITY] * 5), None
            return _result_for_trusted_peer(policy, Reason.SPOOFED_USER_HEADER, public=secret), None
        token = claims.pop(Role.JWT, "") if policy.tokens is not None else ""
        if not token:
            return _without_token(claims, fields, policy, public=secret), None
        check_secret(fields, policy)
    except RequestRejected as rejection:
        return _result_for_trusted_peer(
            policy, rejection.reason, detail=rejection.detail, public=secret
        ), None
    public = secret or policy.public_path_proof is Proof.JWT
    deferred = DeferredResult(
        frozenset(
            {
                PathZone.PROTECTED,
                PathZone.INTERNAL,
                PathZone.PERSONAL,
                *((PathZone.PUBLIC,) if public else ()),
            }
        ),
        partial(_with_token, claims, policy, public),
    )
    # If the proof is needed, no identity is trusted without it.
    unverified_result = _result_for_trusted_peer(
        policy,
        Reason.JWT_INVALID,
        _claimed_identity(claims, policy),
        "the token was not verified",
        public=public,
    )
    return unverified_result, deferred


def _without_token(
    claims: Mapping[Role, str], fields: Sequence[Field], policy: Policy, *, public: bool
) -> TrustResult:
    """Return the result of headers without a token."""
    identity = _claimed_identity(claims, policy)
    try:
        if policy.only_tokens_name_users:
            # The headers can't be complete: without the token, that is the reason to report.
            check_secret(fields, policy)
            _check_token_present(policy)
        identity = _complete_identity(claims, policy)
        check_secret(fields, policy)
        _check_token_present(policy)
        _check_not_reserved(identity, policy)
    except RequestRejected as rejection:
        return _result_for_trusted_peer(
            policy, rejection.reason, identity, rejection.detail, public=public
        )
    reason = Reason.PROXY_SECRET if policy.secrets else Reason.TRUSTED_PEER
    return _result_for_trusted_peer(policy, reason, identity, public=public)


def _with_token(
    claims: Mapping[Role, str],
    policy: Policy,
    public: bool,
    verified: VerifiedClaims | RequestRejected,
) -> TrustResult:
    """Return the result of headers with a token, which was verified or rejected."""
    if isinstance(verified, RequestRejected):
        return _result_for_trusted_peer(
            policy,
            verified.reason,
            _claimed_identity(claims, policy),
            verified.detail,
            public=public,
        )
    try:
        check_claims_match_headers(claims, verified, policy)
        _check_not_reserved(verified.identity, policy)
    except RequestRejected as rejection:
        return _result_for_trusted_peer(
            policy,
            rejection.reason,
            _claimed_identity(claims, policy),
            rejection.detail,
            public=public,
        )
    return _result_for_trusted_peer(policy, Reason.VERIFIED_JWT, verified.identity, public=public)


def _complete_identity(claims: Mapping[Role, str], policy: Policy) -> Identity:
    rules = policy.rules
    for role in (rules.username_role, *sorted(policy.required)):
        if role not in claims:
            name = policy.names.roles.get(role, role.name.lower())
            raise RequestRejected(
                Reason.IDENTITY_INCOMPLETE,
                f"the request has an identity without {name}{MISSING_HINTS.get(role, '')}",
            )
    groups = claims.get(Role.GROUPS)
    return rules.identity(claims, None if groups is None else rules.split_groups(groups))


def _check_token_present(policy: Policy) -> None:
    if policy.tokens is not None and policy.tokens.required:
        raise RequestRejected(
            Reason.JWT_MISSING, "the request has an identity without the provider's token"
        )


def _claimed_identity(claims: Mapping[Role, str], policy: Policy) -> Identity | None:
    """Return the identity that the headers claim, for the log only: it is not trusted."""
    username = policy.rules.username(claims)
    return None if username is None else Identity(username, uid=policy.rules.uid(claims))


def _check_not_reserved(identity: Identity, policy: Policy) -> None:
    if normalize_name(identity.username) in policy.reserved:
        raise RequestRejected(Reason.RESERVED_ACCOUNT, "the user name is reserved")


def _result_for_trusted_peer(
    policy: Policy,
    protected: Reason,
    identity: Identity | None = None,
    detail: str = "",
    *,
    public: bool,
) -> TrustResult:
    """Build the result for a trusted peer.

    If `public` is true, public paths have the same reason as protected ones.
    """
    return _result(
        policy,
        protected,
        protected if public else Reason.PUBLIC_PATH,
        Reason.PUBLIC_PATH,
        Reason.OUTSIDE_BASE_PATH,
        Reason.NON_ASCII_PATH,
        identity=identity,
        detail=detail,
    )


def _result(
    policy: Policy,
    protected: Reason,
    public: Reason,
    share: Reason,
    outside: Reason,
    non_ascii: Reason,
    *,
    identity: Identity | None = None,
    detail: str = "",
) -> TrustResult:
    authenticated = outcome(protected, PathClass.INTERNAL).verdict is Verdict.AUTHENTICATED
    without_requirement = outcome(protected, PathClass.PROTECTED)
    if policy.require_identity and without_requirement.verdict in (
        Verdict.ANONYMOUS,
        Verdict.STRIPPED,
    ):
        detail = "the path needs an identity"
        if protected is not Reason.NO_IDENTITY:
            detail += f", and what was sent is none: {protected}"
        protected = Reason.IDENTITY_REQUIRED
    if policy.require_identity and non_ascii is not Reason.UNTRUSTED_PEER_REJECTED:
        non_ascii = Reason.IDENTITY_REQUIRED
        detail = (
            detail
            or "the path needs an identity, but no identity counts on a path that is not ASCII"
        )
    admin = protected in _PROOFS and identity is not None and policy.admits_admin(identity)
    member = authenticated and identity is not None and policy.admits(identity)
    rejected = protected is Reason.UNTRUSTED_PEER_REJECTED
    internal = protected if admin or rejected else Reason.NOT_FOUND
    personal = protected if member or rejected else Reason.NOT_FOUND
    if authenticated and not policy.user_header_obeyed:
        # Navidrome would not read the name, or would read another header than the one that the shim
        # writes.
        detail = "Navidrome does not obey the user header that the shim writes"
        public = Reason.USER_HEADER_MISMATCH if public is protected else public
        protected = Reason.USER_HEADER_MISMATCH
        without_requirement = outcome(protected, PathClass.PROTECTED)
    if authenticated and not policy.audit_available:
        detail = "the audit trail cannot be written"
        public = Reason.AUDIT_UNAVAILABLE if public is not Reason.PUBLIC_PATH else public
        protected = personal = Reason.AUDIT_UNAVAILABLE
        internal = Reason.NOT_FOUND
        without_requirement = outcome(protected, PathClass.PROTECTED)
    user_line = b""
    if identity is not None:
        user_line = b"%b: %b\r\n" % (policy.names.user.encode(), identity.username.encode())
    rows = _outcome_rows(protected, public, share, outside, internal, non_ascii, personal)
    return TrustResult(rows, identity, user_line, detail, without_requirement, admin)


@cache
def _outcome_rows(
    protected: Reason,
    public: Reason,
    share: Reason,
    outside: Reason,
    internal: Reason,
    non_ascii: Reason,
    personal: Reason,
) -> tuple[Outcome, ...]:
    """Return one outcome for every `PathZone`. The cache is bounded by the combinations of reasons."""
    rows = {
        PathZone.PROTECTED: outcome(protected, PathClass.PROTECTED),
        PathZone.PUBLIC: outcome(public, PathClass.PUBLIC),
        PathZone.SHARE: outcome(share, PathClass.PUBLIC),
        PathZone.OUTSIDE: outcome(outside, PathClass.PUBLIC),
        PathZone.INTERNAL: outcome(internal, PathClass.INTERNAL),
        PathZone.NON_ASCII: outcome(non_ascii, PathClass.PROTECTED),
        PathZone.PERSONAL: outcome(personal, PathClass.INTERNAL),
    }
    return tuple(rows[zone] for zone in PathZone)


def _read_claims(fields: Sequence[Field], policy: Policy) -> dict[Role, str]:
    """Read the claims of a trusted peer's fields.

    Returns an empty dict if all fields that the policy reads are empty or absent. Beside a claim that is
    not empty, an empty user name, uid or token counts as absent, and so does an unusable display name or
    e-mail. An e-mail that decides is treated like a user name. Raises `RequestRejected`.
    """
    descriptive, never_empty = policy.rules.descriptive, policy.rules.never_empty
    seen_names: set[bytes] = set()
    claims: dict[Role, str] = {}
    # The edge's own header is read after the client's, and takes precedence if both are present.
    for field in sorted(fields, key=lambda field: field.kind is not Kind.BEARER):
        if field.kind is Kind.ALIAS:
            raise RequestRejected(
                Reason.HEADER_ALIAS, "a header's name only normalizes to an identity header"
            )
        if field.kind not in (Kind.IDENTITY, Kind.BEARER):
            continue
        if field.name in seen_names:
            raise RequestRejected(
                Reason.IDENTITY_DUPLICATE, f"{field.name.decode()} was sent twice"
            )
        seen_names.add(field.name)
        if field.role is None:
            continue
        if isinstance(field.parsed_value, RequestRejected):
            if field.role in descriptive:
                continue
            # Create a new exception: a cached one would keep the frames of each time it was raised.
            raise RequestRejected(field.parsed_value.reason, field.parsed_value.detail)
        assert field.parsed_value is not None
        if field.parsed_value or field.role not in claims:
            claims[field.role] = field.parsed_value
    if not any(claims.values()):
        return {}
    return {role: claim for role, claim in claims.items() if claim or role not in never_empty}
