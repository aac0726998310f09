"""The decision: request line and header block together.

`decide` is pure: no I/O, no clock, no event loop, bytes in. The data plane asks the same three steps,
with a memory for the second (`shim.trust.remember`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

from shim.trust.addresses import Peer
from shim.trust.block import HeaderBlock, read_block, split_block
from shim.trust.envelope import CHUNKED, read_envelope
from shim.trust.fields import Kind, parse_field
from shim.trust.forwarding import Source
from shim.trust.identity import Identity
from shim.trust.policy import Policy
from shim.trust.reasons import Outcome, PathClass, Reason, Verdict, outcome
from shim.trust.refusal import Refused
from shim.trust.target import Paths, RequestLine, parse_request_line

_HANDSHAKE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
_SAFE_METHODS = frozenset({b"GET", b"HEAD"})


@dataclass(slots=True)
class Decision:
    """What becomes of a request, and why. Treated as frozen.

    `line` and `block` are None where they could not be read. `keep_alive` tells whether the connection
    may carry another request, `upgrade` whether this one asks for a WebSocket. `detail` says in one
    sentence what was wrong with a rejected request.
    """

    outcome: Outcome
    source: Source
    line: RequestLine | None
    block: HeaderBlock | None
    keep_alive: bool = False
    upgrade: bool = False
    detail: str = ""

    @property
    def identity(self) -> Identity | None:
        """The identity that is believed: set where the verdict is `authenticated`."""
        if self.block is None or self.outcome.verdict is not Verdict.AUTHENTICATED:
            return None
        return self.block.envelope.belief.identity

    def head(self, user_name: bytes | None = None) -> bytes:
        """The head as Navidrome shall see it, its empty line included.

        `user_name` is the account's name as Navidrome stores it. The user header is set only where the
        verdict is `authenticated`, whatever is handed in; without `user_name` to the identity's own name.
        """
        line, block = self.line, self.block
        assert (
            line is not None and block is not None and self.outcome.verdict is not Verdict.REJECTED
        )
        user = b""
        if self.outcome.verdict is Verdict.AUTHENTICATED:
            envelope = block.envelope
            user = envelope.user_line
            if user_name is not None:
                user = b"%b%b\r\n" % (envelope.user_prefix, user_name)
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
        block, identity = self.block, self.identity
        rejected = self.outcome.verdict is Verdict.REJECTED
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
        return tuple(notes)


def decide(head: bytes, peer: Peer, policy: Policy, scheme: bytes = b"http") -> Decision:
    """Judge one request head, its empty line included, from `peer` under `policy`.

    `scheme` is the listener's. Never raises: a head that can't be read is a `rejected` decision.
    """
    source = Source(peer, policy.lists(peer), scheme)
    line_text, _, rest = head.partition(b"\r\n")
    line = block = None
    try:
        line = parse_request_line(line_text, policy.paths)
        block = read_block(
            split_block(rest.removesuffix(b"\r\n"), policy),
            partial(parse_field, names=policy.names),
            partial(read_envelope, source=source, policy=policy),
        )
        return judge(line, block, source, policy)
    except Refused as refused:
        return refuse(refused, source, line, block)


def judge(line: RequestLine, block: HeaderBlock, source: Source, policy: Policy) -> Decision:
    """What a request line and a header block come to together. Raises `Refused`."""
    envelope = block.envelope
    if line.version == 11:
        if envelope.host is None:
            raise Refused(Reason.AMBIGUOUS_HOST, "HTTP/1.1 without Host")
        keep_alive = not envelope.close
    else:
        if envelope.length == CHUNKED:
            # RFC 9112 §6.1: HTTP/1.0 knows no transfer codings; whoever reads it as one is mistaken.
            raise Refused(Reason.AMBIGUOUS_FRAMING, "HTTP/1.0 with Transfer-Encoding")
        keep_alive = envelope.keep_alive and not envelope.close
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
    result = envelope.belief.outcomes[line.place]
    if result.verdict is Verdict.REJECTED:
        raise Refused(result.reason, envelope.belief.detail)
    if (
        envelope.foreign
        and result.verdict is Verdict.AUTHENTICATED
        and (upgrade or line.method not in _SAFE_METHODS)
    ):
        raise Refused(Reason.CROSS_SITE, "a browser says that another site sent it")
    if (
        line.method == b"POST"
        and policy.create_admin_closed
        and policy.paths.creates_admin(line.path)
    ):
        raise Refused(Reason.CREATE_ADMIN_CLOSED, "the first admin is made by the shim")
    return Decision(result, source, line, block, keep_alive, upgrade)


def refuse(
    refused: Refused,
    source: Source,
    line: RequestLine | None = None,
    block: HeaderBlock | None = None,
) -> Decision:
    """The `rejected` decision of a refusal."""
    path_class = PathClass.PROTECTED if line is None else line.path_class
    return Decision(outcome(refused.reason, path_class), source, line, block, detail=refused.detail)


def _headers(head: bytes) -> list[list[str]]:
    lines = head.split(b"\r\n")[1:-2]
    return [
        [text.decode("utf-8", "backslashreplace") for text in line.split(b": ", 1)]
        for line in lines
    ]
