"""What the identity headers of one request claim, and whether that may be believed.

The answer depends on the place a path leads to, so it is worked out once for every place: a header
block is remembered with it, and the request line only picks. A token is looked at when a path needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

from shim.trust.fields import Field, Kind
from shim.trust.forwarding import Source
from shim.trust.identity import DESCRIPTIVE, NEVER_EMPTY, Identity, Role, split_groups
from shim.trust.names import fold_name
from shim.trust.policy import Policy, Proof
from shim.trust.proof import Awaited, Said, ask_agreement, ask_secret, secret_holds
from shim.trust.reasons import Outcome, PathClass, Reason, Verdict, outcome
from shim.trust.refusal import Refused
from shim.trust.target import Place

CLAIMING = frozenset({Kind.IDENTITY, Kind.USER, Kind.ALIAS, Kind.BEARER})


@dataclass(slots=True)
class Belief:
    """What is believed of a header block. Treated as frozen.

    `outcomes` has one row for every `Place`, in its order. `identity` is whom the block names, set
    wherever it could be read; it counts only where the outcome is `authenticated`. `user_line` is the
    header line that names it to Navidrome, empty without one. `detail` says what was wrong where an
    outcome is `rejected` for the identity's sake. `unasked` is the row of protected paths as if none of
    them needed an identity.
    """

    outcomes: tuple[Outcome, ...]
    identity: Identity | None
    user_line: bytes
    detail: str
    unasked: Outcome


def judge_claims(
    fields: Sequence[Field], source: Source, policy: Policy
) -> tuple[Belief, Awaited[Belief] | None]:
    """What the fields that carry an identity (all of `CLAIMING`, and the secret's) come to, and what they
    come to on some paths with the token that is among them: there that counts, and not this belief. Of the
    token no more is read here than that it is there."""
    claimed = any(field.kind in CLAIMING for field in fields)
    if not source.listed:
        if policy.refuse_unlisted:
            detail = "the peer is not on the whitelist"
            return _belief(policy, *[Reason.PEER_REFUSED] * 5, detail=detail), None
        reason = Reason.UNLISTED_PEER if claimed else Reason.NO_IDENTITY
        return _belief(policy, *[reason] * 5), None
    if policy.suspended:
        reason = Reason.BASE_PATH_MISMATCH if claimed else Reason.NO_IDENTITY
        return _belief(policy, *[reason] * 5), None
    if not claimed:
        return _belief(policy, *[Reason.NO_IDENTITY] * 5), None
    return _judge_listed(fields, policy)


def _judge_listed(fields: Sequence[Field], policy: Policy) -> tuple[Belief, Awaited[Belief] | None]:
    secret = policy.public_path_proof is Proof.SECRET and secret_holds(fields, policy)
    claims: dict[Role, str] = {}
    try:
        claims = _read(fields)
        if not claims:
            if not any(field.value for field in fields if field.kind in CLAIMING):
                # An edge may always send its identity headers, and leave them empty for a stranger.
                return _belief(policy, *[Reason.NO_IDENTITY] * 5), None
            return _said(policy, Reason.USER_HEADER, public=secret), None
        token = claims.pop(Role.JWT, "") if policy.tokens is not None else ""
        if not token:
            return _without_token(claims, fields, policy, public=secret), None
        ask_secret(fields, policy)
    except Refused as refused:
        return _said(policy, refused.reason, detail=refused.detail, public=secret), None
    public = secret or policy.public_path_proof is Proof.JWT
    awaited = Awaited(
        frozenset({Place.PROTECTED, Place.OWN, *((Place.PUBLIC,) if public else ())}),
        partial(_with_token, claims, policy, public),
    )
    # Where the proof is needed, nothing is believed without it.
    unproven = _said(
        policy, Reason.JWT_INVALID, _named(claims), "the token was not looked at", public=public
    )
    return unproven, awaited


def _without_token(
    claims: Mapping[Role, str], fields: Sequence[Field], policy: Policy, *, public: bool
) -> Belief:
    """What headers come to that no token stands beside."""
    identity = _named(claims)
    try:
        identity = _complete(claims, policy)
        ask_secret(fields, policy)
        _ask_token(policy)
        _ask_reserved(identity, policy)
    except Refused as refused:
        return _said(policy, refused.reason, identity, refused.detail, public=public)
    reason = Reason.PROXY_SECRET if policy.secrets else Reason.LISTED_PEER
    return _said(policy, reason, identity, public=public)


def _with_token(
    claims: Mapping[Role, str], policy: Policy, public: bool, said: Said | Refused
) -> Belief:
    """What headers come to with the token beside them, which was verified or refused."""
    if isinstance(said, Refused):
        return _said(policy, said.reason, _named(claims), said.detail, public=public)
    try:
        ask_agreement(claims, said, policy)
        _ask_reserved(said.identity, policy)
    except Refused as refused:
        return _said(policy, refused.reason, _named(claims), refused.detail, public=public)
    return _said(policy, Reason.VERIFIED_JWT, said.identity, public=public)


def _complete(claims: Mapping[Role, str], policy: Policy) -> Identity:
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


def _ask_token(policy: Policy) -> None:
    if policy.tokens is not None and policy.tokens.required:
        raise Refused(Reason.JWT_MISSING, "an identity was sent without the provider's token")


def _named(claims: Mapping[Role, str]) -> Identity | None:
    """Whom the headers name, for the log: no more is believed of it."""
    username = claims.get(Role.USERNAME)
    return None if username is None else Identity(username, uid=claims.get(Role.UID))


def _ask_reserved(identity: Identity, policy: Policy) -> None:
    if fold_name(identity.username) in policy.reserved:
        raise Refused(Reason.RESERVED_ACCOUNT, "the user name is reserved")


def _said(
    policy: Policy,
    protected: Reason,
    identity: Identity | None = None,
    detail: str = "",
    *,
    public: bool,
) -> Belief:
    """A listed peer's belief: on public paths what holds on protected ones, where `public` says so."""
    return _belief(
        policy,
        protected,
        protected if public else Reason.PUBLIC_PATH,
        Reason.PUBLIC_PATH,
        Reason.OUTSIDE_BASE_PATH,
        Reason.NON_ASCII_PATH,
        identity=identity,
        detail=detail,
    )


def _belief(
    policy: Policy,
    protected: Reason,
    public: Reason,
    share: Reason,
    outside: Reason,
    non_ascii: Reason,
    *,
    identity: Identity | None = None,
    detail: str = "",
) -> Belief:
    believed = outcome(protected, PathClass.OWN).verdict is Verdict.AUTHENTICATED
    unasked = outcome(protected, PathClass.PROTECTED)
    if policy.require_identity and unasked.verdict in (Verdict.ANONYMOUS, Verdict.STRIPPED):
        detail = "the path needs an identity"
        if protected is not Reason.NO_IDENTITY:
            detail += f", and what was sent is none: {protected}"
        protected = Reason.IDENTITY_REQUIRED
    if policy.require_identity and non_ascii is not Reason.PEER_REFUSED:
        non_ascii = Reason.IDENTITY_REQUIRED
        detail = detail or "the path needs an identity, and none counts on one that is not ASCII"
    admin = (
        believed
        and identity is not None
        and not policy.admin_groups.isdisjoint(identity.groups or ())
    )
    own = protected if admin or protected is Reason.PEER_REFUSED else Reason.NOT_FOUND
    if believed and not policy.user_header_obeyed:
        # Navidrome would not read the name, or would read another header than the shim writes.
        detail = "Navidrome does not obey the user header that the shim writes"
        public = Reason.USER_HEADER_MISMATCH if public is protected else public
        protected = Reason.USER_HEADER_MISMATCH
        unasked = outcome(protected, PathClass.PROTECTED)
    user_line = b""
    if identity is not None:
        user_line = b"%b: %b\r\n" % (policy.names.user.encode(), identity.username.encode())
    rows = _rows(protected, public, share, outside, own, non_ascii)
    return Belief(rows, identity, user_line, detail, unasked)


@cache
def _rows(
    protected: Reason,
    public: Reason,
    share: Reason,
    outside: Reason,
    own: Reason,
    non_ascii: Reason,
) -> tuple[Outcome, ...]:
    """One row for every `Place`; there are no more combinations than reasons allow."""
    rows = {
        Place.PROTECTED: outcome(protected, PathClass.PROTECTED),
        Place.PUBLIC: outcome(public, PathClass.PUBLIC),
        Place.SHARE: outcome(share, PathClass.PUBLIC),
        Place.OUTSIDE: outcome(outside, PathClass.PUBLIC),
        Place.OWN: outcome(own, PathClass.OWN),
        Place.NON_ASCII: outcome(non_ascii, PathClass.PROTECTED),
    }
    return tuple(rows[place] for place in Place)


def _read(fields: Sequence[Field]) -> dict[Role, str]:
    """The claims of a listed peer's fields. None where all that the policy reads is empty or absent; beside a
    claim that is not, an empty user name, uid or token counts as absent, and so does an unusable display
    name or e-mail. Raises `Refused`."""
    seen: set[bytes] = set()
    claims: dict[Role, str] = {}
    # The edge's own header comes after the client's, and speaks where both are there.
    for field in sorted(fields, key=lambda field: field.kind is not Kind.BEARER):
        if field.kind is Kind.ALIAS:
            raise Refused(
                Reason.HEADER_ALIAS, "a header's name only folds to one that carries an identity"
            )
        if field.kind not in (Kind.IDENTITY, Kind.BEARER):
            continue
        if field.name in seen:
            raise Refused(Reason.IDENTITY_DUPLICATE, f"{field.name.decode()} was sent twice")
        seen.add(field.name)
        if field.role is None:
            continue
        if isinstance(field.claim, Refused):
            if field.role in DESCRIPTIVE:
                continue
            # Raised anew: a remembered exception would keep the frames of each time it was raised.
            raise Refused(field.claim.reason, field.claim.detail)
        assert field.claim is not None
        if field.claim or field.role not in claims:
            claims[field.role] = field.claim
    if not any(claims.values()):
        return {}
    return {role: claim for role, claim in claims.items() if claim or role not in NEVER_EMPTY}
