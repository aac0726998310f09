"""What binds an identity to the edge's authenticated route, or to the provider itself.

A shared secret shows which route the edge took; a verified token, who the provider says is there. A token's
claims become the identity, and the headers beside it may only say the same.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from shim.trust.fields import Field, Kind
from shim.trust.identity import Identity, Role, read_text, split_groups
from shim.trust.jwt import Span, Token, Verify
from shim.trust.policy import Policy
from shim.trust.reasons import Reason
from shim.trust.refusal import Refused
from shim.trust.target import Place

B = TypeVar("B")

# The claims that the headers are made from (OpenID Connect Core §5.1).
_CLAIMS = {
    Role.USERNAME: "preferred_username",
    Role.NAME: "name",
    Role.EMAIL: "email",
    Role.GROUPS: "groups",
    Role.UID: "sub",
}
# What the clock says of a token is true for now only.
_PASSING = frozenset({Reason.JWT_EXPIRED, Reason.JWT_NOT_YET_VALID})


def secret_holds(fields: Sequence[Field], policy: Policy) -> bool:
    """Whether the shared secret was sent, once, and is one that is set."""
    sent = [field.value for field in fields if field.kind is Kind.SECRET]
    if len(sent) != 1:
        return False
    # Every secret is compared, so that time tells nothing of which one is near.
    return sum(hmac.compare_digest(sent[0], secret) for secret in policy.secrets) > 0


def ask_secret(fields: Sequence[Field], policy: Policy) -> None:
    """Raises `Refused` where a shared secret is set, and what was sent is missing or wrong."""
    if not policy.secrets:
        return
    if not any(field.kind is Kind.SECRET for field in fields):
        raise Refused(Reason.SECRET_MISSING, "an identity was sent without the shared secret")
    if not secret_holds(fields, policy):
        raise Refused(Reason.SECRET_MISMATCH, "the shared secret is not one that is set")


class TokenProof(Generic[B]):
    """A token that a belief hangs on, looked at when a path needs it and no earlier.

    `places`: where it is needed. What it comes to is worked out once; that it still holds is asked of the
    clock each time.
    """

    __slots__ = ("_believe", "_found", "_span", "_text", "_verify", "places")

    def __init__(
        self,
        text: str,
        verify: Verify,
        believe: Callable[[Token | Refused], B],
        places: frozenset[Place],
    ) -> None:
        self.places = places
        self._text = text
        self._verify = verify
        self._believe = believe
        self._found: B | None = None
        self._span: Span | None = None

    def belief(self, now: float | None) -> B:
        """What is believed at `now`, in seconds since the epoch; with None, as if it had expired."""
        try:
            if self._span is not None:
                self._span.hold(now)
            if self._found is None:
                self._found = self._look(now)
        except Refused as refused:
            return self._believe(refused)
        return self._found

    def _look(self, now: float | None) -> B:
        """Raises `Refused` where it is the clock that refuses."""
        try:
            token = self._verify(self._text, now)
        except Refused as refused:
            if refused.reason in _PASSING:
                raise
            return self._believe(refused)
        self._span = token.span
        self._span.hold(now)
        return self._believe(token)


def agreed_identity(headers: Mapping[Role, str], token: Token, policy: Policy) -> Identity:
    """The identity that a verified token names, where every header beside it that the token speaks of
    says the same.

    What the token is silent about is absent, whatever a header says of it. Raises `Refused`.
    """
    claims = {
        Role.USERNAME: _claim(Role.USERNAME, token.username),
        Role.NAME: _claim(Role.NAME, token.name),
        Role.EMAIL: _claim(Role.EMAIL, token.email),
        Role.UID: _claim(Role.UID, token.subject),
    }
    separator = policy.groups_separator
    joined = None if token.groups is None else separator.join(token.groups)
    claims[Role.GROUPS] = _claim(Role.GROUPS, joined)
    for role, header in headers.items():
        claim = claims.get(role)
        if claim is not None and not _same(role, header, claim, separator):
            raise Refused(Reason.JWT_DISAGREES, _disagreement(role, header, claim))
    for role in (Role.USERNAME, *sorted(policy.required)):
        if claims.get(role) is None:
            raise Refused(Reason.IDENTITY_INCOMPLETE, f"the token has no {_CLAIMS[role]}")
    username = claims[Role.USERNAME]
    assert username is not None
    groups = None
    if token.groups is not None:
        groups = tuple(group for one in token.groups if (group := one.strip()))
    return Identity(
        username, claims[Role.NAME], claims[Role.EMAIL], groups, claims[Role.UID], verified=True
    )


def _claim(role: Role, text: str | None) -> str | None:
    """The claim as a header would carry it."""
    if text is None:
        return None
    try:
        data = text.strip(" \t").encode()
    except UnicodeEncodeError:
        raise Refused(Reason.IDENTITY_INVALID, f"the token's {_CLAIMS[role]} is no text") from None
    return read_text(role, data)


def _same(role: Role, header: str, claim: str, separator: str) -> bool:
    if role is Role.GROUPS:
        return set(split_groups(header, separator)) == set(split_groups(claim, separator))
    return header == claim


def _disagreement(role: Role, header: str, claim: str) -> str:
    """Both sides, for the log: they are names of a person or of groups, and neither is a secret."""
    return f"{role.name.lower()}: the header says {_short(header)}, the token {_short(claim)}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
