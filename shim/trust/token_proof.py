"""What binds an identity to the edge's authenticated route, or to the provider itself.

A shared secret shows which route the edge took; a verified token, who the provider says is there. A token's
claims become the identity, and the headers beside it may only say the same.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from shim.trust.fields import Field, Kind
from shim.trust.identity import DESCRIPTIVE, NEVER_EMPTY, Identity, Role, parse_value, split_groups
from shim.trust.jwt import Token, Validity
from shim.trust.path_zones import PathZone
from shim.trust.policy import Policy
from shim.trust.reasons import Reason
from shim.trust.rejection import RequestRejected

B = TypeVar("B")

# The claims that the headers are made from (OpenID Connect Core §5.1).
_CLAIMS = {
    Role.USERNAME: "preferred_username",
    Role.NAME: "name",
    Role.EMAIL: "email",
    Role.GROUPS: "groups",
    Role.UID: "sub",
}
# Only jwt_invalid is cached; every other failure depends on the clock.
_PERMANENT_FAILURE = Reason.JWT_INVALID


def secret_matches(fields: Sequence[Field], policy: Policy) -> bool:
    """Whether the shared secret was sent, once, and is one that is set."""
    sent = [field.value for field in fields if field.kind is Kind.SECRET]
    if len(sent) != 1:
        return False
    # Every secret is compared, so that time tells nothing of which one is near.
    return sum(hmac.compare_digest(sent[0], secret) for secret in policy.secrets) > 0


def check_secret(fields: Sequence[Field], policy: Policy) -> None:
    """Raises `Rejected` where a shared secret is set, and what was sent is missing or wrong."""
    if not policy.secrets:
        return
    if not any(field.kind is Kind.SECRET for field in fields):
        raise RequestRejected(
            Reason.SECRET_MISSING, "an identity was sent without the shared secret"
        )
    if not secret_matches(fields, policy):
        raise RequestRejected(Reason.SECRET_MISMATCH, "the shared secret is not one that is set")


class Verify(Protocol):
    """What looks at a token."""

    def __call__(self, token: str, now: float | None) -> VerifiedClaims:
        """What it says, if it holds at `now`, in seconds since the epoch. Raises `Rejected`."""

    def cached(self, token: str) -> VerifiedClaims | None:
        """What was found before, which costs nothing now; whether it still holds is for whoever asks."""


@dataclass(frozen=True, slots=True)
class DeferredResult(Generic[B]):
    """A belief that hangs on a token: `believe` gives it for what the token came to, and `places` is where
    it is needed."""

    zones: frozenset[PathZone]
    evaluate: Callable[[VerifiedClaims | RequestRejected], B]
    _by_rejection: dict[tuple[Reason, str], B] = field(default_factory=dict, compare=False)

    def for_rejection(self, rejection: RequestRejected) -> B:
        """What is believed where the token does not hold: worked out once for each way in which it may not,
        of which there are a few."""
        key = (rejection.reason, rejection.detail)
        result = self._by_rejection.get(key)
        if result is None:
            result = self._by_rejection[key] = self.evaluate(rejection)
        return result


class TokenProof(Generic[B]):
    """A token that a belief hangs on, looked at when a path needs it and no earlier.

    `places`: where it is needed. What it comes to is worked out once; that it still holds is asked of the
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
        """The bytes that it keeps alive: the token, and the belief that comes of it."""
        return 1024 + len(self._token)

    def is_evaluated(self) -> bool:
        """Whether `belief` costs no signature."""
        if self._result is None and (verified := self._verify.cached(self._token)) is not None:
            self._store(verified)
        return self._result is not None

    def result(self, now: float | None) -> B:
        """What is believed at `now`, in seconds since the epoch; with None, as if it had expired."""
        try:
            result = self._result or self._verify_now(now)
            if self._validity is not None:
                self._validity.check(now)
        except RequestRejected as rejection:
            return self._deferred.for_rejection(rejection)
        return result

    def _verify_now(self, now: float | None) -> B:
        """Raises `Rejected` for what may be otherwise the next time."""
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
    """What a verified token says: the identity, each claim of it as a header would carry it, and for how
    long."""

    identity: Identity
    claims: Mapping[Role, str]
    validity: Validity


def verified_claims(token: Token, policy: Policy) -> VerifiedClaims:
    """What the token says, as far as the policy reads it. What the token is silent about is absent,
    whatever a header says of it. Raises `Rejected`."""
    joined = None if token.groups is None else policy.groups_separator.join(token.groups)
    texts = {
        Role.USERNAME: token.username,
        Role.NAME: token.name,
        Role.EMAIL: token.email,
        Role.GROUPS: joined,
        Role.UID: token.subject,
    }
    claims = {}
    for role, text in texts.items():
        claim = None if text is None else _claim_text(role, text)
        if claim is not None and (claim or role not in NEVER_EMPTY):
            claims[role] = claim
    for role in (Role.USERNAME, *sorted(policy.required)):
        if role not in claims:
            raise RequestRejected(Reason.IDENTITY_INCOMPLETE, f"the token has no {_CLAIMS[role]}")
    groups = None
    if token.groups is not None:
        groups = tuple(group for one in token.groups if (group := one.strip()))
    identity = Identity(
        claims[Role.USERNAME],
        claims.get(Role.NAME),
        claims.get(Role.EMAIL),
        groups,
        claims.get(Role.UID),
    )
    return VerifiedClaims(identity, claims, token.validity)


def check_claims_match_headers(
    headers: Mapping[Role, str], verified: VerifiedClaims, policy: Policy
) -> None:
    """Raises `Rejected` where a header says something else than the token beside it. A display name or e-mail
    may: the token's counts."""
    for role, header in headers.items():
        claim = verified.claims.get(role)
        if claim is None or claim == header or role in DESCRIPTIVE:
            continue
        if role is Role.GROUPS and _same_groups(header, claim, policy.groups_separator):
            continue
        raise RequestRejected(Reason.JWT_CLAIM_MISMATCH, _mismatch_detail(role, header, claim))


def _claim_text(role: Role, text: str) -> str | None:
    """The claim as a header would carry it; None for a display name or e-mail that none could."""
    try:
        return parse_value(role, text.strip(" \t").encode())
    except UnicodeEncodeError:
        rejection = RequestRejected(
            Reason.IDENTITY_INVALID, f"the token's {_CLAIMS[role]} is no text"
        )
    except RequestRejected as error:
        rejection = error
    if role in DESCRIPTIVE:
        return None
    raise rejection


def _same_groups(header: str, claim: str, separator: str) -> bool:
    return set(split_groups(header, separator)) == set(split_groups(claim, separator))


def _mismatch_detail(role: Role, header: str, claim: str) -> str:
    """Both sides, for the log: they are names of a person or of groups, and neither is a secret."""
    return f"{role.name.lower()}: the header says {_shorten(header)}, the token {_shorten(claim)}"


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
