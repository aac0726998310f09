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
from shim.trust.identity import DESCRIPTIVE, NEVER_EMPTY, Identity, Role, read_text, split_groups
from shim.trust.jwt import Span, Token
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
# The one refusal that stays true: whatever else is wrong with a token, the clock is asked before that, and
# may say something else the next time.
_LASTING = Reason.JWT_INVALID


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


class Verify(Protocol):
    """What looks at a token."""

    def __call__(self, text: str, now: float | None) -> Said:
        """What it says, if it holds at `now`, in seconds since the epoch. Raises `Refused`."""

    def recall(self, text: str) -> Said | None:
        """What was found before, which costs nothing now; whether it still holds is for whoever asks."""


@dataclass(frozen=True, slots=True)
class Awaited(Generic[B]):
    """A belief that hangs on a token: `believe` gives it for what the token came to, and `places` is where
    it is needed."""

    places: frozenset[Place]
    believe: Callable[[Said | Refused], B]
    _refused: dict[tuple[Reason, str], B] = field(default_factory=dict, compare=False)

    def refused(self, refusal: Refused) -> B:
        """What is believed where the token does not hold: worked out once for each way in which it may not,
        of which there are a few."""
        key = (refusal.reason, refusal.detail)
        found = self._refused.get(key)
        if found is None:
            found = self._refused[key] = self.believe(refusal)
        return found


class TokenProof(Generic[B]):
    """A token that a belief hangs on, looked at when a path needs it and no earlier.

    `places`: where it is needed. What it comes to is worked out once; that it still holds is asked of the
    clock each time.
    """

    __slots__ = ("_awaited", "_found", "_span", "_text", "_verify", "places")

    def __init__(self, text: str, awaited: Awaited[B], verify: Verify) -> None:
        self.places = awaited.places
        self._text = text
        self._verify = verify
        self._awaited = awaited
        self._found: B | None = None
        self._span: Span | None = None

    @property
    def size(self) -> int:
        """The bytes that it keeps alive: the token, and the belief that comes of it."""
        return 1024 + len(self._text)

    def known(self) -> bool:
        """Whether `belief` costs no signature."""
        if self._found is None and (said := self._verify.recall(self._text)) is not None:
            self._take(said)
        return self._found is not None

    def belief(self, now: float | None) -> B:
        """What is believed at `now`, in seconds since the epoch; with None, as if it had expired."""
        try:
            found = self._found or self._look(now)
            if self._span is not None:
                self._span.hold(now)
        except Refused as refused:
            return self._awaited.refused(refused)
        return found

    def _look(self, now: float | None) -> B:
        """Raises `Refused` for what may be otherwise the next time."""
        try:
            return self._take(self._verify(self._text, now))
        except Refused as refused:
            if refused.reason is not _LASTING:
                raise
            self._found = self._awaited.refused(refused)
            return self._found

    def _take(self, said: Said) -> B:
        self._span = said.span
        self._found = self._awaited.believe(said)
        return self._found


@dataclass(frozen=True, slots=True)
class Said:
    """What a verified token says: the identity, each claim of it as a header would carry it, and for how
    long."""

    identity: Identity
    claims: Mapping[Role, str]
    span: Span


def said_by(token: Token, policy: Policy) -> Said:
    """What the token says, as far as the policy reads it. What the token is silent about is absent,
    whatever a header says of it. Raises `Refused`."""
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
        claim = None if text is None else _claim(role, text)
        if claim is not None and (claim or role not in NEVER_EMPTY):
            claims[role] = claim
    for role in (Role.USERNAME, *sorted(policy.required)):
        if role not in claims:
            raise Refused(Reason.IDENTITY_INCOMPLETE, f"the token has no {_CLAIMS[role]}")
    groups = None
    if token.groups is not None:
        groups = tuple(group for one in token.groups if (group := one.strip()))
    identity = Identity(
        claims[Role.USERNAME],
        claims.get(Role.NAME),
        claims.get(Role.EMAIL),
        groups,
        claims.get(Role.UID),
        verified=True,
    )
    return Said(identity, claims, token.span)


def ask_agreement(headers: Mapping[Role, str], said: Said, policy: Policy) -> None:
    """Raises `Refused` where a header says something else than the token beside it. A display name or e-mail
    may: the token's counts."""
    for role, header in headers.items():
        claim = said.claims.get(role)
        if claim is None or claim == header or role in DESCRIPTIVE:
            continue
        if role is Role.GROUPS and _same_groups(header, claim, policy.groups_separator):
            continue
        raise Refused(Reason.JWT_DISAGREES, _disagreement(role, header, claim))


def _claim(role: Role, text: str) -> str | None:
    """The claim as a header would carry it; None for a display name or e-mail that none could."""
    try:
        return read_text(role, text.strip(" \t").encode())
    except UnicodeEncodeError:
        refused = Refused(Reason.IDENTITY_INVALID, f"the token's {_CLAIMS[role]} is no text")
    except Refused as error:
        refused = error
    if role in DESCRIPTIVE:
        return None
    raise refused


def _same_groups(header: str, claim: str, separator: str) -> bool:
    return set(split_groups(header, separator)) == set(split_groups(claim, separator))


def _disagreement(role: Role, header: str, claim: str) -> str:
    """Both sides, for the log: they are names of a person or of groups, and neither is a secret."""
    return f"{role.name.lower()}: the header says {_short(header)}, the token {_short(claim)}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
