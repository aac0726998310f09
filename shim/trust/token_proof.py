"""Check the proof of an identity: the shared secret of the edge, or the provider's token.

A shared secret proves that the request took the edge's authenticated route; a verified token proves the
identity itself. The claims of the token become the identity, and the headers beside it must agree with
them.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from shim.trust.fields import Field, Kind
from shim.trust.identity import GroupsFormat, Identity, Role, parse_value, split_groups
from shim.trust.jwt import ClaimNames, Token, Validity
from shim.trust.path_zones import PathZone
from shim.trust.policy import Policy
from shim.trust.reasons import Reason
from shim.trust.rejection import RequestRejected

B = TypeVar("B")

# What to do about a missing value, for the log.
MISSING_HINTS = {
    Role.USERNAME: "; if the provider has no user names, set SHIM_USERNAME_FROM_EMAIL",
    Role.GROUPS: "; if the provider leaves it out for a user without groups, set SHIM_MISSING_GROUPS=none",
}
# Only jwt_invalid is cached; every other failure depends on the clock.
_PERMANENT_FAILURE = Reason.JWT_INVALID


def secret_matches(fields: Sequence[Field], policy: Policy) -> bool:
    """Return whether the shared secret was sent exactly once and matches one of the configured secrets."""
    sent = [field.value for field in fields if field.kind is Kind.SECRET]
    if len(sent) != 1:
        return False
    # Every secret is compared, so that the time does not reveal which one is similar.
    return sum(hmac.compare_digest(sent[0], secret) for secret in policy.secrets) > 0


def check_secret(fields: Sequence[Field], policy: Policy) -> None:
    """Raise `RequestRejected` if a shared secret is configured and the sent one is missing or wrong."""
    if not policy.secrets:
        return
    # Caddy sends the header without a value if it knows no secret.
    if not any(field.kind is Kind.SECRET and field.value for field in fields):
        raise RequestRejected(
            Reason.SECRET_MISSING, "the request has an identity without the shared secret"
        )
    if not secret_matches(fields, policy):
        raise RequestRejected(
            Reason.SECRET_MISMATCH, "the shared secret is not in SHIM_PROXY_SECRET"
        )


class Verify(Protocol):
    """Interface of a token verifier."""

    def __call__(self, token: str, now: float | None) -> VerifiedClaims:
        """Verify the token and return its claims if it is valid at `now`, in seconds since the epoch.

        Raises `RequestRejected`.
        """

    def cached(self, token: str) -> VerifiedClaims | None:
        """Return the cached claims, or None, without a verification. The caller must check their
        validity.
        """


@dataclass(frozen=True, slots=True)
class DeferredResult(Generic[B]):
    """A trust result that depends on a token.

    `zones`: the path zones that need the token. `evaluate` returns the result for the verified claims or
    the rejection of the token.
    """

    zones: frozenset[PathZone]
    evaluate: Callable[[VerifiedClaims | RequestRejected], B]
    _by_rejection: dict[tuple[Reason, str], B] = field(default_factory=dict, compare=False)

    def for_rejection(self, rejection: RequestRejected) -> B:
        """Return the result if the token is rejected.

        It is computed once for each kind of rejection, of which there are a few.
        """
        key = (rejection.reason, rejection.detail)
        result = self._by_rejection.get(key)
        if result is None:
            result = self._by_rejection[key] = self.evaluate(rejection)
        return result


class TokenProof(Generic[B]):
    """A token that a trust result depends on. It is verified when a path first needs it.

    `zones`: the path zones that need it. The result is computed once; the validity is checked against the
    clock each time.
    """

    __slots__ = ("_deferred", "_result", "_token", "_validity", "_verify", "zones")

    def __init__(self, token: str, deferred: DeferredResult[B], verify: Verify) -> None:
        self.zones = deferred.zones
        self._token = token
        self._verify = verify
        self._deferred = deferred
        self._result: B | None = None
        self._validity: Validity | None = None

    @property
    def size(self) -> int:
        """Return the bytes that the proof keeps alive: the token and its result."""
        return 1024 + len(self._token)

    def is_evaluated(self) -> bool:
        """Return whether `result` needs no signature verification."""
        if self._result is None and (verified := self._verify.cached(self._token)) is not None:
            self._store(verified)
        return self._result is not None

    def result(self, now: float | None) -> B:
        """Return the trust result at `now`, in seconds since the epoch; None counts as expired."""
        try:
            result = self._result or self._verify_now(now)
            if self._validity is not None:
                self._validity.check(now)
        except RequestRejected as rejection:
            return self._deferred.for_rejection(rejection)
        return result

    def _verify_now(self, now: float | None) -> B:
        """Verify the token. Raises `RequestRejected` for a failure that may be different the next time."""
        try:
            return self._store(self._verify(self._token, now))
        except RequestRejected as rejection:
            if rejection.reason is not _PERMANENT_FAILURE:
                raise
            self._result = self._deferred.for_rejection(rejection)
            return self._result

    def _store(self, verified: VerifiedClaims) -> B:
        self._validity = verified.validity
        self._result = self._deferred.evaluate(verified)
        return self._result


@dataclass(frozen=True, slots=True)
class VerifiedClaims:
    """The content of a verified token.

    `identity`: its identity. `claims`: each claim as a header would carry it. `validity`: its validity
    period.
    """

    identity: Identity
    claims: Mapping[Role, str]
    validity: Validity


def verified_claims(token: Token, policy: Policy) -> VerifiedClaims:
    """Convert a verified token to the identity and claims that the policy uses.

    A claim that the token does not have is absent, even if a header has it. Raises `RequestRejected`.
    """
    assert policy.tokens is not None
    rules, names = policy.rules, policy.tokens.claims
    joined = None if token.groups is None else rules.groups_separator.join(token.groups)
    texts = {
        Role.USERNAME: token.username,
        Role.NAME: token.name,
        Role.EMAIL: token.email,
        Role.GROUPS: joined,
        Role.UID: token.uid,
    }
    claims = {}
    for role, text in texts.items():
        claim = None if text is None else _claim_text(role, text, policy)
        if claim is not None and (claim or role not in rules.never_empty):
            claims[role] = claim
    for role in (rules.username_role, *sorted(policy.required)):
        if role not in claims:
            raise RequestRejected(
                Reason.IDENTITY_INCOMPLETE,
                f"the token has no {_claim_name(role, names)}{MISSING_HINTS.get(role, '')}",
            )
    if token.email_refused and _email_decides(policy, names):
        raise RequestRejected(
            Reason.EMAIL_NOT_VERIFIED,
            "the token has email_verified: false (authentik's default since 2025.10; a scope mapping there "
            "can set it)",
        )
    groups = None
    if token.groups is not None:
        groups = tuple(group for one in token.groups if (group := one.strip()))
    return VerifiedClaims(rules.identity(claims, groups), claims, token.validity)


def _email_decides(policy: Policy, names: ClaimNames) -> bool:
    """Return whether the e-mail is the user name or the uid, also if a claim setting names it as one, on the
    top level or in an object (`user.email`)."""
    if policy.rules.email_decides:
        return True
    return any(
        name and (name == names.email or name.rpartition(".")[2] == "email")
        for name in (names.username, names.uid)
    )


def check_claims_match_headers(
    headers: Mapping[Role, str], verified: VerifiedClaims, policy: Policy
) -> None:
    """Raise `RequestRejected` if a header differs from the claim of the token beside it.

    A display name or e-mail may differ: the claim counts.
    """
    for role, header in headers.items():
        claim = verified.claims.get(role)
        if claim is None or claim == header or role in policy.rules.descriptive:
            continue
        if role is Role.GROUPS and _same_groups(header, claim, verified, policy):
            continue
        raise RequestRejected(Reason.JWT_CLAIM_MISMATCH, _mismatch_detail(role, header, claim))


def _claim_text(role: Role, text: str, policy: Policy) -> str | None:
    """Return the claim as a header would carry it.

    Returns None for a display name or e-mail that no header could carry. Raises `RequestRejected` for any
    other such claim.
    """
    try:
        decides = policy.rules.email_decides
        return parse_value(role, text.strip(" \t").encode(), decides=decides)
    except UnicodeEncodeError:
        rejection = RequestRejected(
            Reason.IDENTITY_INVALID, f"the token's {role.name.lower()} is not text"
        )
    except RequestRejected as error:
        rejection = error
    if role in policy.rules.descriptive:
        return None
    raise rejection


def _claim_name(role: Role, names: ClaimNames) -> str:
    by_role = {
        Role.USERNAME: names.username,
        Role.EMAIL: names.email,
        Role.GROUPS: names.groups,
        Role.UID: names.uid,
    }
    return by_role[role] or f"claim for the {role.name.lower()}"


def _same_groups(header: str, claim: str, verified: VerifiedClaims, policy: Policy) -> bool:
    rules = policy.rules
    if rules.groups_format is not GroupsFormat.PLAIN:
        return set(rules.split_groups(header)) == set(verified.identity.groups or ())
    # A group whose name contains the separator is two in the header.
    separator = rules.groups_separator
    return set(split_groups(header, separator)) == set(split_groups(claim, separator))


def _mismatch_detail(role: Role, header: str, claim: str) -> str:
    """Return both values for the log: they are names of a person or of groups, and neither is a secret."""
    return f"{role.name.lower()}: the header says {_shorten(header)}, the token {_shorten(claim)}"


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
