"""The decision: request line and header block together.

`decide` is pure: no I/O, no clock, no event loop, bytes in. The data plane asks the same three steps,
with a memory for the second (`shim.trust.remember`).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from functools import partial

from shim.trust.addresses import Peer
from shim.trust.block import HeaderBlock, Sealed, read_block, split_block
from shim.trust.claims import Belief
from shim.trust.envelope import (
    CHUNKED,
    NO_BODY,
    Envelope,
    framing_lines,
    read_envelope,
    set_apart,
)
from shim.trust.fields import Field, Kind, parse_line
from shim.trust.forwarding import Source
from shim.trust.identity import Identity
from shim.trust.jwt import verify_token
from shim.trust.policy import Policy
from shim.trust.proof import Said, TokenProof, Verify, said_by
from shim.trust.reasons import Outcome, PathClass, Reason, Verdict, outcome
from shim.trust.refusal import Refused
from shim.trust.target import Paths, Place, RequestLine, parse_request_line
from shim.trust.tokens import Accept, NavidromeClaims, filter_tokens, in_query, token_locations

_HANDSHAKE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
# Members of an enumeration are dear to look up; what a request passes has them at hand.
_AUTHENTICATED = Verdict.AUTHENTICATED
_REJECTED = Verdict.REJECTED
_PROTECTED = Place.PROTECTED
# What is refused so may not be what its sender takes it for, nor what follows it.
_DOUBTED = 400
_SAFE_METHODS = frozenset({b"GET", b"HEAD"})
# Of a request to Navidrome's user API: one user's long name would make the list unreadable for all.
USER_BODY_BYTES = 65536
# Go reads a form of these methods alone, and of this type; whatever looks like it is taken for one.
_FORM_METHODS = frozenset({b"POST", b"PUT", b"PATCH"})
_FORM_TYPE = re.compile(rb"(?im)^content-type:[^\r\n]*x-www-form-urlencoded")


@dataclass(slots=True)
class Decision:
    """What becomes of a request, and why. Treated as frozen.

    `line` and `block` are None where they could not be read. `keep_alive` tells whether the connection
    may carry another request: after a rejected one only a listed peer's, and only where there is no doubt
    about where that request ended, so that a flood of them doesn't cost the edge its connections. `upgrade`
    tells whether this one asks for a WebSocket. `detail` says in one sentence what was wrong with a rejected
    request. `belief` is what the verdict stands on. `tokens`: the request carries what Navidrome may take for
    a token of its own; `subsonic`: its path is below `/rest/`, where Navidrome reads fewer of them. Void
    tokens are removed by `without_void_tokens`, and `void` says where they were; those of another account by
    `bound`, and `loosed` says where. `claims` are those of the tokens that are left. `form`: the body is a
    form that may carry one as well, and was not read yet. `writes_users`: it can change Navidrome's users.
    """

    outcome: Outcome
    source: Source
    line: RequestLine | None
    block: HeaderBlock | None
    keep_alive: bool = False
    upgrade: bool = False
    detail: str = ""
    belief: Belief | None = None
    tokens: bool = False
    subsonic: bool = False
    form: bool = False
    writes_users: bool = False
    void: tuple[str, ...] = ()
    loosed: tuple[str, ...] = ()
    claims: tuple[NavidromeClaims, ...] = ()

    @property
    def identity(self) -> Identity | None:
        """The identity that is believed: set where the verdict is `authenticated`."""
        if self.belief is None or self.outcome.verdict is not _AUTHENTICATED:
            return None
        return self.belief.identity

    @property
    def token_places(self) -> tuple[str, ...]:
        """Where the request carries tokens of Navidrome's own, if `tokens` says that it may."""
        if not self.tokens or self.line is None or self.block is None:
            return ()
        return token_locations(self.line, self.block, subsonic=self.subsonic)

    def without_void_tokens(self, valid: Accept) -> Decision:
        """Return the same decision without the Navidrome tokens that are not valid. Where nobody else was
        named, its verdict is `stripped` then."""
        decision, removed = self._filtered(valid)
        if not removed:
            return decision
        result = self.outcome
        if result.verdict is Verdict.ANONYMOUS:
            result = outcome(Reason.NAVIDROME_TOKEN_VOID, result.path_class)
        return replace(decision, outcome=result, void=(*self.void, *removed))

    def bound(self, user_name: bytes, user_id: str | None) -> Decision:
        """Return the same decision without the Navidrome tokens that do not name exactly this account;
        where its id is not known, none does."""
        decision, removed = self._filtered(lambda claims: claims.names(user_name, user_id))
        return replace(decision, loosed=(*self.loosed, *removed)) if removed else decision

    def _filtered(self, accept: Accept) -> tuple[Decision, tuple[str, ...]]:
        line, block = self.line, self.block
        if line is None or block is None or not self.tokens:
            return self, ()
        found = filter_tokens(line, block, accept, subsonic=self.subsonic)
        if not found.removed and found.accepted == self.claims:
            return self, ()
        decision = replace(
            self,
            line=found.line,
            block=found.block,
            tokens=bool(found.accepted),
            claims=found.accepted,
        )
        return decision, found.removed

    def with_form(
        self, length: int, claims: tuple[NavidromeClaims, ...], *, void: bool
    ) -> Decision:
        """Return the same decision for a request whose form was read and is sent with this length.
        `claims` are those of the tokens in it; `void`: others were removed."""
        block = self.block
        assert block is not None
        old, new = framing_lines(block.envelope.length), framing_lines(length)
        # A line can stand in no value, and the first one is ours: the client's own is never forwarded.
        forward = block.forward.replace(b"\r\n" + old, b"\r\n" + new, 1)
        envelope = replace(block.envelope, length=length)
        result, places = self.outcome, self.void
        if void:
            places = (*places, "form jwt")
            if result.verdict is Verdict.ANONYMOUS:
                result = outcome(Reason.NAVIDROME_TOKEN_VOID, result.path_class)
        return replace(
            self,
            outcome=result,
            block=replace(block, envelope=envelope, forward=forward),
            form=False,
            void=places,
            claims=(*self.claims, *claims),
        )

    def head(self, user_name: bytes | None = None) -> bytes:
        """The head as Navidrome shall see it, its empty line included.

        `user_name` is the account's name as Navidrome stores it. The user header is set only where the
        verdict is `authenticated`, whatever is handed in; without `user_name` to the identity's own name.
        """
        line, block = self.line, self.block
        assert line is not None and block is not None and self.outcome.verdict is not _REJECTED
        user = b""
        if self.outcome.verdict is _AUTHENTICATED:
            assert self.belief is not None
            user = self.belief.user_line
            if user_name is not None:
                user = b"%b%b\r\n" % (block.envelope.user_prefix, user_name)
        return b"%b %b HTTP/1.1\r\n%b%b%b\r\n" % (
            line.method,
            line.target,
            block.forward,
            _HANDSHAKE if self.upgrade else b"",
            user,
        )

    def own_head(self, paths: Paths, lines: bytes) -> bytes:
        """The head as the control plane shall see it: below its own root, with `lines` that prove the
        channel and end in the name of the header that takes the user's name."""
        assert self.line is not None and self.block is not None and self.identity is not None
        return b"%b %b HTTP/1.1\r\n%b%b%b\r\n\r\n" % (
            self.line.method,
            paths.own_target(self.line.target),
            self.block.forward,
            lines,
            self.identity.username.encode(),
        )

    def explain(self) -> dict[str, object]:
        """The decision as `explain --json` prints it."""
        identity = self.identity
        if self.tokens and identity is not None:
            # Whose account a token names is only known where the accounts are.
            return self.bound(identity.username.encode(), None).explain()
        block = self.block
        rejected = self.outcome.verdict is _REJECTED
        removed = () if block is None else block.removed
        return {
            "verdict": str(self.outcome.verdict),
            "status": self.outcome.status if rejected else None,
            "reason": str(self.outcome.reason),
            "peer": self.source.peer.text,
            "peer_trusted": self.source.listed,
            "path_class": str(self.outcome.path_class),
            "identity": None if identity is None else asdict(identity),
            "forwarded_headers": [] if rejected else _headers(self.head()),
            "removed_headers": [field.sent_name for field in removed],
            "notes": list(self.notes),
        }

    @property
    def token_without_identity(self) -> bool:
        """Whether a Navidrome token on a protected path speaks for itself, since nobody is named."""
        line = self.line
        return (
            self.tokens and self.identity is None and line is not None and line.place is _PROTECTED
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that say what else there was to see, the refusal's own first."""
        notes = [self.detail] if self.detail else []
        for field in () if self.block is None else self.block.removed:
            if field.kind is Kind.ALIAS:
                notes.append(
                    f"{field.sent_name} is an alias of a header that carries an identity: spoofed"
                )
            elif field.kind is Kind.USER:
                notes.append(f"{field.sent_name} was sent from outside: spoofed")
        if self.void:
            notes.append(
                f"navidrome_token_void: {', '.join(self.void)}: a Navidrome token that is void is removed"
            )
        if self.loosed:
            notes.append(
                f"token_mismatch: {', '.join(self.loosed)}: a Navidrome token that does not name "
                "the account is removed"
            )
        elif self.token_without_identity:
            notes.append(
                f"{', '.join(self.token_places)}: a Navidrome token on a protected path, and no identity"
            )
        return tuple(notes)


def decide(
    head: bytes, peer: Peer, policy: Policy, scheme: bytes = b"http", now: float | None = None
) -> Decision:
    """Judge one request head, its empty line included, from `peer` under `policy`.

    `scheme` is the listener's; `now` is in seconds since the epoch, without it no token holds. Never
    raises: a head that can't be read is a `rejected` decision.
    """
    source = Source(peer, policy.lists(peer), scheme)
    line_text, _, rest = head.partition(b"\r\n")
    line = block = None
    try:
        line = parse_request_line(line_text, policy.paths)
        block = read_block(
            split_block(_without_empty_line(rest), policy),
            {},
            partial(parse_line, names=policy.names),
            partial(_read_fields, source=source, policy=policy),
        )
        return judge(line, block, source, policy, now)
    except Refused as refused:
        return refuse(refused, source, line, block)


def _without_empty_line(rest: bytes) -> bytes:
    if not rest.endswith(b"\r\n"):
        raise Refused(Reason.MALFORMED_HEAD, "the head does not end in an empty line")
    return rest[:-2]


def _read_fields(fields: tuple[Field, ...], source: Source, policy: Policy) -> Sealed:
    bare, token = set_apart(fields)
    return seal(read_envelope(bare, source, policy), token, Verifier(policy))


def seal(envelope: Envelope, token: str, verify: Verify) -> Sealed:
    """The envelope with this token beside it, if one is awaited. `verify` looks at it."""
    awaited = envelope.awaited
    return envelope, None if awaited is None else TokenProof(token, awaited, verify)


class Verifier:
    """Looks at the provider's tokens, as a policy has it, each time anew."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def __call__(self, text: str, now: float | None) -> Said:
        """What the token says, if it holds at `now`. Raises `Refused`."""
        assert self._policy.tokens is not None
        return said_by(verify_token(text, self._policy.tokens, now), self._policy)

    def recall(self, text: str) -> Said | None:  # noqa: ARG002
        """What was found before: nothing is remembered here."""
        return None


def judge(
    line: RequestLine,
    block: HeaderBlock,
    source: Source,
    policy: Policy,
    now: float | None = None,
) -> Decision:
    """What a request line and a header block come to together at `now`. Raises `Refused`."""
    envelope = block.envelope
    if line.version == 11:
        if envelope.host is None:
            raise Refused(Reason.AMBIGUOUS_HOST, "HTTP/1.1 without Host")
    elif envelope.length == CHUNKED:
        # RFC 9112 §6.1: HTTP/1.0 knows no transfer codings; whoever reads it as one is mistaken.
        raise Refused(Reason.AMBIGUOUS_FRAMING, "HTTP/1.0 with Transfer-Encoding")
    if line.authority is not None and line.authority != (envelope.host or b"").lower():
        raise Refused(Reason.AMBIGUOUS_TARGET, "the target names another host than Host")
    if envelope.upgrade is not None and not (
        envelope.upgrade == b"websocket"
        and envelope.websocket
        and line.method == b"GET"
        and line.version == 11
    ):
        # h2c is a known way around a proxy's rules; nothing but a whole WebSocket handshake is passed on.
        raise Refused(
            Reason.UPGRADE_REFUSED, "an upgrade that is no WebSocket handshake (RFC 6455 §4.1)"
        )
    upgrade = envelope.upgrade is not None
    belief, place = envelope.belief, line.place
    if block.proof is not None and place in block.proof.places:
        belief = block.proof.belief(now)
    result = belief.outcomes[place]
    verdict = result.verdict
    if verdict is _REJECTED:
        if result.reason is not Reason.IDENTITY_REQUIRED or not _logs_in(line, policy):
            raise Refused(result.reason, belief.detail)
        result = belief.unasked
        verdict = result.verdict
    if (
        envelope.foreign
        and verdict is _AUTHENTICATED
        and (upgrade or line.method not in _SAFE_METHODS or policy.paths.acts_by_get(line.path))
    ):
        raise Refused(Reason.CROSS_SITE, "a browser says that another site sent it")
    writes_users = form = False
    if line.method != b"GET":
        writes_users, form = _check_write(line, block, policy)
    tokens = subsonic = False
    target, path = line.target, line.path
    root = policy.paths.subsonic
    if envelope.tokens or (target is not path and in_query(target, path, root)):
        tokens, subsonic = True, path.startswith(root)
    keep_alive = _lasts(line, envelope)
    return Decision(
        result,
        source,
        line,
        block,
        keep_alive,
        upgrade,
        "",
        belief,
        tokens,
        subsonic,
        form,
        writes_users,
    )


def _check_write(line: RequestLine, block: HeaderBlock, policy: Policy) -> tuple[bool, bool]:
    """Return whether a request that is no GET can change Navidrome's users, and whether its body is a form
    that may carry a Navidrome token. Raises `Refused`."""
    if line.method == b"POST":
        _ask_login(line, policy)
    writes_users = line.method != b"HEAD" and policy.paths.writes_users(line.path)
    length = block.envelope.length
    if writes_users and length > USER_BODY_BYTES:
        raise user_body_too_large()
    return writes_users, length not in (NO_BODY, 0) and _is_form(line, block)


def user_body_too_large() -> Refused:
    """Return the rejection of a long body for Navidrome's user API."""
    detail = f"the body of a request to Navidrome's user API has more than {USER_BODY_BYTES} bytes"
    return Refused(Reason.BODY_TOO_LARGE, detail)


def _is_form(line: RequestLine, block: HeaderBlock) -> bool:
    """Return whether the body is a form that Navidrome reads parameters from, below whichever base path."""
    return (
        line.method in _FORM_METHODS
        and b"/rest/" in line.path.lower()
        and _FORM_TYPE.search(block.forward) is not None
    )


def _logs_in(line: RequestLine, policy: Policy) -> bool:
    """Whether Navidrome's own login is asked, and open to whoever has no identity."""
    return policy.local_login and line.method == b"POST" and policy.paths.logs_in(line.path)


def _ask_login(line: RequestLine, policy: Policy) -> None:
    if policy.create_admin_closed and policy.paths.creates_admin(line.path):
        raise Refused(Reason.CREATE_ADMIN_CLOSED, "the first admin is made by the shim")
    if policy.require_identity and not policy.local_login and policy.paths.logs_in(line.path):
        raise Refused(Reason.LOCAL_LOGIN_CLOSED, "Navidrome's own login is closed")


def refuse(
    refused: Refused,
    source: Source,
    line: RequestLine | None = None,
    block: HeaderBlock | None = None,
) -> Decision:
    """The `rejected` decision of a refusal."""
    path_class = PathClass.PROTECTED if line is None else line.path_class
    result = outcome(refused.reason, path_class)
    keep_alive = result.status != _DOUBTED and source.listed and _ends_here(line, block)
    return Decision(result, source, line, block, keep_alive, detail=refused.detail)


def _ends_here(line: RequestLine | None, block: HeaderBlock | None) -> bool:
    """Whether the request ends with its head, and its connection may carry another one."""
    if line is None or block is None:
        return False
    envelope = block.envelope
    whole = envelope.upgrade is None and envelope.length in (NO_BODY, 0)
    return whole and _lasts(line, envelope)


def _lasts(line: RequestLine, envelope: Envelope) -> bool:
    """Whether the sender keeps its connection (RFC 9112 §9.3)."""
    return not envelope.close and (line.version == 11 or envelope.keep_alive)


def _headers(head: bytes) -> list[list[str]]:
    lines = head.split(b"\r\n")[1:-2]
    return [
        [text.decode("utf-8", "backslashreplace") for text in line.split(b": ", 1)]
        for line in lines
    ]
