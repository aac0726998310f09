"""What the identity headers of one request claim, and whether that may be believed.

The answer depends on the place a path leads to, so it is worked out once for every place: a header
block is remembered with it, and the request line only picks.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from shim.trust.fields import Field, Kind
from shim.trust.forwarding import Source
from shim.trust.identity import Identity, Role, split_groups
from shim.trust.policy import Policy, Proof
from shim.trust.reasons import Outcome, PathClass, Reason, Verdict, outcome
from shim.trust.refusal import Refused
from shim.trust.target import Place

CLAIMING = frozenset({Kind.IDENTITY, Kind.USER, Kind.ALIAS})


@dataclass(frozen=True, slots=True)
class Belief:
    """What is believed of a header block.

    `outcomes` has one row for every `Place`, in its order. `identity` is whom the block names, set
    wherever it could be read; it counts only where the outcome is `authenticated`. `detail` says what
    was wrong where an outcome is `rejected` for the identity's sake.
    """

    outcomes: tuple[Outcome, ...]
    identity: Identity | None
    detail: str


def judge_claims(fields: Sequence[Field], source: Source, policy: Policy) -> Belief:
    """What the fields that carry an identity (all of `CLAIMING`, and the secret's) come to."""
    claimed = any(field.kind in CLAIMING for field in fields)
    if not source.listed:
        if policy.refuse_unlisted:
            return _belief(
                policy, *[Reason.PEER_REFUSED] * 4, detail="the peer is not on the whitelist"
            )
        return _belief(policy, *[Reason.UNLISTED_PEER if claimed else Reason.NO_IDENTITY] * 4)
    if policy.suspended:
        return _belief(policy, *[Reason.BASE_PATH_MISMATCH if claimed else Reason.NO_IDENTITY] * 4)
    if not claimed:
        return _belief(policy, *[Reason.NO_IDENTITY] * 4)
    identity, protected, detail = None, Reason.USER_HEADER, ""
    try:
        identity = _read(fields, policy)
        if identity is not None:
            protected = _proven(fields, policy)
    except Refused as refused:
        protected, detail = refused.reason, refused.detail
    public = Reason.PUBLIC_PATH
    if policy.public_path_proof is Proof.SECRET and _secret_holds(fields, policy):
        public = protected
    return _belief(
        policy,
        protected,
        public,
        Reason.PUBLIC_PATH,
        Reason.OUTSIDE_BASE_PATH,
        identity=identity,
        detail=detail,
    )


def _belief(
    policy: Policy,
    protected: Reason,
    public: Reason,
    share: Reason,
    outside: Reason,
    *,
    identity: Identity | None = None,
    detail: str = "",
) -> Belief:
    believed = outcome(protected, PathClass.OWN).verdict is Verdict.AUTHENTICATED
    if policy.require_identity and outcome(protected, PathClass.PROTECTED).verdict in (
        Verdict.ANONYMOUS,
        Verdict.STRIPPED,
    ):
        protected, detail = Reason.IDENTITY_REQUIRED, "the path needs an identity"
    admin = (
        believed
        and identity is not None
        and not policy.admin_groups.isdisjoint(identity.groups or ())
    )
    own = protected if admin or protected is Reason.PEER_REFUSED else Reason.NOT_FOUND
    rows = {
        Place.PROTECTED: outcome(protected, PathClass.PROTECTED),
        Place.PUBLIC: outcome(public, PathClass.PUBLIC),
        Place.SHARE: outcome(share, PathClass.PUBLIC),
        Place.OUTSIDE: outcome(outside, PathClass.PUBLIC),
        Place.OWN: outcome(own, PathClass.OWN),
    }
    return Belief(tuple(rows[place] for place in Place), identity, detail)


def _read(fields: Sequence[Field], policy: Policy) -> Identity | None:
    """The identity of a listed peer's fields; None where only the user header or headers that the policy
    doesn't read were sent. Raises `Refused`."""
    seen: set[bytes] = set()
    claims: dict[Role, str] = {}
    for field in fields:
        if field.kind is Kind.ALIAS:
            raise Refused(
                Reason.HEADER_ALIAS, "a header's name only folds to one that carries an identity"
            )
        if field.kind is not Kind.IDENTITY:
            continue
        if field.name in seen:
            raise Refused(Reason.IDENTITY_DUPLICATE, f"{field.name.decode()} was sent twice")
        seen.add(field.name)
        if field.role is None:
            continue
        if not isinstance(field.claim, str):
            raise field.claim or AssertionError("an identity header without a claim")
        claims[field.role] = field.claim
    if not claims:
        return None
    for role in (Role.USERNAME, *sorted(policy.required)):
        if role not in claims:
            name = policy.names.roles.get(role, role.name.lower())
            raise Refused(Reason.IDENTITY_INCOMPLETE, f"an identity was sent without {name}")
    groups = claims.get(Role.GROUPS)
    return Identity(
        claims[Role.USERNAME],
        claims.get(Role.NAME),
        claims.get(Role.EMAIL),
        None if groups is None else split_groups(groups, policy.groups_separator),
        claims.get(Role.UID),
    )


def _proven(fields: Sequence[Field], policy: Policy) -> Reason:
    """Why the identity counts. Raises `Refused` where a proof is required and missing or wrong."""
    if not policy.secrets:
        return Reason.LISTED_PEER
    if not any(field.kind is Kind.SECRET for field in fields):
        raise Refused(Reason.SECRET_MISSING, "an identity was sent without the shared secret")
    if not _secret_holds(fields, policy):
        raise Refused(Reason.SECRET_MISMATCH, "the shared secret is not one that is set")
    return Reason.PROXY_SECRET


def _secret_holds(fields: Sequence[Field], policy: Policy) -> bool:
    sent = [field.value for field in fields if field.kind is Kind.SECRET]
    if len(sent) != 1:
        return False
    # Every secret is compared, so that time tells nothing of which one is near.
    return sum(hmac.compare_digest(sent[0], secret) for secret in policy.secrets) > 0
