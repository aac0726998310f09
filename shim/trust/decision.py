"""Decide a request from its request line and header block.

`decide` is pure: no I/O, no clock, no event loop, bytes in. The data plane runs the same three steps,
with a cache for the second (`shim.trust.cached_decisions`).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from functools import partial

from shim.http1.framing import CHUNKED, NO_BODY, framing_lines
from shim.trust.block import HeaderBlock, MetadataWithProof, read_block, split_block
from shim.trust.client_address import PeerInfo
from shim.trust.fields import Field, Kind, parse_line
from shim.trust.identity import DESCRIPTIVE, Identity
from shim.trust.identity_evaluation import TrustResult
from shim.trust.jwt import verify_token
from shim.trust.navidrome_tokens import (
    Accept,
    NavidromeClaims,
    filter_tokens,
    in_query,
    token_locations,
)
from shim.trust.path_zones import Paths, PathZone, RequestLine, parse_request_line
from shim.trust.peers import Peer
from shim.trust.policy import Policy
from shim.trust.reasons import Outcome, PathClass, Reason, Verdict, outcome
from shim.trust.rejection import RequestRejected
from shim.trust.request_metadata import RequestMetadata, extract_token, read_metadata
from shim.trust.subsonic_parameters import has_authorization, without_authorization
from shim.trust.token_proof import TokenProof, VerifiedClaims, Verify, verified_claims

_HANDSHAKE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
# Access to enumeration members is slow; the hot path uses these module constants.
_AUTHENTICATED = Verdict.AUTHENTICATED
_REJECTED = Verdict.REJECTED
_PROTECTED = PathZone.PROTECTED
_DEVICE_OUTCOMES = {
    protected: outcome(
        Reason.DEVICE_PASSWORD, PathClass.PROTECTED if protected else PathClass.PUBLIC
    )
    for protected in (True, False)
}
# With this status, the receiver may disagree with the sender on the request and on the bytes after it.
_AMBIGUOUS_STATUS = 400
_ABSOLUTE = re.compile(rb"(?i:https?)://[^/?#@ ]+/")
_SAFE_METHODS = frozenset({b"GET", b"HEAD"})
_WRITE_METHODS = frozenset({b"POST", b"PUT", b"PATCH", b"DELETE"})
# Maximum body of a request to Navidrome's user API, in bytes: one user's long name would make the list
# unreadable for all.
USER_BODY_BYTES = 65536
# Go parses a form for these methods and this content type only; a value that contains the type counts as
# one.
_FORM_METHODS = frozenset({b"POST", b"PUT", b"PATCH"})
_FORM_TYPE = re.compile(rb"(?im)^content-type:[^\r\n]*x-www-form-urlencoded")


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """The person of a device, whose password a request has. `id` and `name` are the device's."""

    id: str
    name: str
    trust_result: TrustResult


@dataclass(slots=True)
class Decision:
    """The decision on a request, with its reason. Treated as frozen.

    `request_line` and `block` are None if they could not be parsed. `request_line_text` is the received
    part of the request line if `request_line` is None.
    `keep_alive`: the connection may carry another request. After a rejected request this is true only for
    a trusted peer and only if the end of that request is unambiguous, so that a flood of rejected
    requests does not close the connections of the edge.
    `upgrade`: the request asks for a WebSocket.
    `detail`: the error of a rejected request in one sentence.
    `trust_result`: the result that the verdict is based on.
    `has_navidrome_tokens`: the request carries data that Navidrome may read as one of its own tokens.
    `subsonic`: the path is below `/rest/`, where Navidrome reads fewer of them.
    `without_void_tokens` removes void tokens, and `void` lists their locations. `with_tokens_bound_to`
    removes the tokens of other accounts, and `removed_tokens` lists their locations. `claims` are those
    of the remaining tokens.
    `form`: the body is a form that may carry such a token too, and is not read yet.
    `to_user_api`: the request is a write to Navidrome's user API.
    `device`: the device whose password the request has, if the reason is `device_password`.
    """

    outcome: Outcome
    source: PeerInfo
    request_line: RequestLine | None
    block: HeaderBlock | None
    keep_alive: bool = False
    upgrade: bool = False
    detail: str = ""
    trust_result: TrustResult | None = None
    has_navidrome_tokens: bool = False
    subsonic: bool = False
    form: bool = False
    to_user_api: bool = False
    void: tuple[str, ...] = ()
    removed_tokens: tuple[str, ...] = ()
    claims: tuple[NavidromeClaims, ...] = ()
    request_line_text: bytes = b""
    device: DeviceIdentity | None = None

    @property
    def requested(self) -> tuple[bytes, bytes]:
        """Return the method and the target, also of a rejected request line if it has them."""
        if self.request_line is not None:
            return self.request_line.method, self.request_line.target
        method, _, remainder = self.request_line_text.partition(b" ")
        target = remainder.partition(b" ")[0]
        # Any other text may be arbitrary data, and the result is used in the log.
        readable = method.isalpha() and (target[:1] == b"/" or _ABSOLUTE.match(target))
        return (method, target) if readable else (b"", b"")

    @property
    def identity(self) -> Identity | None:
        """Return the trusted identity: it is set if the verdict is `authenticated`."""
        if self.trust_result is None or self.outcome.verdict is not _AUTHENTICATED:
            return None
        return self.trust_result.identity

    @property
    def has_body(self) -> bool:
        """Return whether the request has a body."""
        return self.block is not None and self.block.metadata.has_body

    @property
    def writes_users(self) -> bool:
        """Return whether the request can change Navidrome's users.

        Navidrome rejects a write without a sign-in, so an anonymous request is no reason to read the
        users again.
        """
        return self.to_user_api and (
            self.outcome.verdict is _AUTHENTICATED or self.has_navidrome_tokens
        )

    @property
    def token_locations(self) -> tuple[str, ...]:
        """Return where the request carries Navidrome tokens, if `has_navidrome_tokens` is set."""
        if not self.has_navidrome_tokens or self.request_line is None or self.block is None:
            return ()
        return token_locations(self.request_line, self.block, subsonic=self.subsonic)

    def without_void_tokens(self, valid: Accept) -> Decision:
        """Return the same decision without the Navidrome tokens that are not valid.

        If a token is removed and the verdict is `anonymous`, the verdict becomes `stripped`.
        """
        decision, removed = self._filtered(valid)
        if not removed:
            return decision
        result = self.outcome
        if result.verdict is Verdict.ANONYMOUS:
            result = outcome(Reason.NAVIDROME_TOKEN_VOID, result.path_class)
        return replace(decision, outcome=result, void=(*self.void, *removed))

    def with_tokens_bound_to(self, user_name: bytes, user_id: str | None) -> Decision:
        """Return the same decision without the Navidrome tokens that do not name exactly this account.

        If the account's id is None, all tokens are removed.
        """
        decision, removed = self._filtered(lambda claims: claims.names(user_name, user_id))
        return (
            replace(decision, removed_tokens=(*self.removed_tokens, *removed))
            if removed
            else decision
        )

    def _filtered(self, accept: Accept) -> tuple[Decision, tuple[str, ...]]:
        request_line, block = self.request_line, self.block
        if request_line is None or block is None or not self.has_navidrome_tokens:
            return self, ()
        found = filter_tokens(request_line, block, accept, subsonic=self.subsonic)
        if not found.removed and found.accepted == self.claims:
            return self, ()
        decision = replace(
            self,
            request_line=found.line,
            block=found.block,
            has_navidrome_tokens=bool(found.accepted),
            claims=found.accepted,
        )
        return decision, found.removed

    def with_device(self, device: DeviceIdentity, query: bytes) -> Decision:
        """Return the decision on a request that has the password of this device: it is authenticated as its
        person.

        `query` replaces the query: it has no credentials. Those in the headers are removed too, and with them
        every Navidrome token.
        """
        line, block = self.request_line, self.block
        assert line is not None and block is not None
        path = line.path
        # Without a query the target is the same object as the path.
        target = b"%b?%b" % (path, query) if query else path
        if block.carries_credentials is None:
            block.carries_credentials = bool(block.metadata.tokens) or has_authorization(
                block.forward
            )
        if block.carries_credentials:
            block = _without_credentials(block)
        return Decision(
            _DEVICE_OUTCOMES[line.zone is _PROTECTED],
            self.source,
            RequestLine(line.method, target, path, line.version, line.zone, line.hosts),
            block,
            self.keep_alive,
            self.upgrade,
            "",
            device.trust_result,
            subsonic=True,
            form=self.form,
            to_user_api=self.to_user_api,
            void=self.void,
            device=device,
        )

    def with_form(
        self, length: int, claims: tuple[NavidromeClaims, ...], *, void: bool
    ) -> Decision:
        """Return the same decision for a request whose form was read and is sent with this length in
        bytes.

        `claims` are those of the tokens in the form; `void` means that other tokens were removed from it.
        """
        block = self.block
        assert block is not None
        old, new = framing_lines(block.metadata.length), framing_lines(length)
        # A value cannot contain a line end, and the first match is the shim's line: the client's own line
        # is never forwarded.
        forward = block.forward.replace(b"\r\n" + old, b"\r\n" + new, 1)
        metadata = replace(block.metadata, length=length)
        result, locations = self.outcome, self.void
        if void:
            locations = (*locations, "form jwt")
            if result.verdict is Verdict.ANONYMOUS:
                result = outcome(Reason.NAVIDROME_TOKEN_VOID, result.path_class)
        return replace(
            self,
            outcome=result,
            block=replace(block, metadata=metadata, forward=forward),
            form=False,
            void=locations,
            claims=(*self.claims, *claims),
        )

    def render_head(self, user_name: bytes | None = None) -> bytes:
        """Render the request head for Navidrome, including its empty line.

        `user_name` is the account's name as Navidrome stores it; without it the user header has the
        identity's name. The user header is set only if the verdict is `authenticated`, whether or not
        `user_name` is passed.
        """
        request_line, block = self.request_line, self.block
        assert (
            request_line is not None and block is not None and self.outcome.verdict is not _REJECTED
        )
        user_prefix = user_value = b""
        if self.outcome.verdict is _AUTHENTICATED:
            assert self.trust_result is not None
            if user_name is None:
                user_prefix = self.trust_result.user_line
            else:
                user_prefix, user_value = block.metadata.user_prefix, user_name + b"\r\n"
        return b"".join(
            (
                request_line.method,
                b" ",
                request_line.target,
                b" HTTP/1.1\r\n",
                block.forward,
                _HANDSHAKE if self.upgrade else b"",
                user_prefix,
                user_value,
                b"\r\n",
            )
        )

    def render_control_head(self, paths: Paths, lines: bytes) -> bytes:
        """Render the request head for the control plane, with the target relative to its root.

        `lines` authenticate the internal connection. They have a `%b` for the user's name, the uid (empty
        without one), `1` for an administrator, and the rest of the identity (`Identity.as_json`).
        """
        identity, trust_result = self.identity, self.trust_result
        assert (
            self.request_line is not None
            and self.block is not None
            and identity is not None
            and trust_result is not None
        )
        return b"%b %b HTTP/1.1\r\n%b%b\r\n" % (
            self.request_line.method,
            paths.control_target(self.request_line.target),
            self.block.forward,
            lines
            % (
                identity.username.encode(),
                (identity.uid or "").encode(),
                b"1" if trust_result.is_admin else b"",
                identity.as_json(),
            ),
        )

    def explain(self) -> dict[str, object]:
        """Return the decision as `explain --json` prints it."""
        identity = self.identity
        if self.has_navidrome_tokens and identity is not None:
            # The account of a token can only be checked by the component that knows the accounts.
            return self.with_tokens_bound_to(identity.username.encode(), None).explain()
        block = self.block
        rejected = self.outcome.verdict is _REJECTED
        removed = () if block is None else block.removed
        return {
            "verdict": str(self.outcome.verdict),
            "status": self.outcome.status if rejected else None,
            "reason": str(self.outcome.reason),
            "peer": self.source.peer.text,
            "peer_trusted": self.source.trusted,
            "path_class": str(self.outcome.path_class),
            "identity": None if identity is None else asdict(identity),
            "forwarded_headers": [] if rejected else _headers(self.render_head()),
            "removed_headers": [field.sent_name for field in removed],
            "notes": list(self.notes),
        }

    @property
    def token_without_identity(self) -> bool:
        """Return whether a protected path is accessed with a Navidrome token and without an identity."""
        request_line = self.request_line
        return (
            self.has_navidrome_tokens
            and self.identity is None
            and request_line is not None
            and request_line.zone is _PROTECTED
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Return notes on the request in sentences, the detail of the rejection first."""
        notes = [self.detail] if self.detail else []
        for field in () if self.block is None else self.block.removed:
            if field.kind is Kind.ALIAS:
                notes.append(
                    f"{field.sent_name} is an alias of a header that carries an identity: spoofed"
                )
            elif field.kind is Kind.USER:
                notes.append(f"{field.sent_name} was sent from outside: spoofed")
            elif field.role in DESCRIPTIVE and isinstance(field.parsed_value, RequestRejected):
                notes.append(f"{field.sent_name} is not used: {field.parsed_value.detail}")
        if self.void:
            notes.append(
                f"navidrome_token_void: {', '.join(self.void)}: a void Navidrome token is removed"
            )
        if self.removed_tokens:
            notes.append(
                f"token_mismatch: {', '.join(self.removed_tokens)}: a Navidrome token that does not name "
                "the account is removed"
            )
        elif self.token_without_identity:
            notes.append(
                f"{', '.join(self.token_locations)}: a Navidrome token on a protected path, and no identity"
            )
        return tuple(notes)


def _without_credentials(block: HeaderBlock) -> HeaderBlock:
    """Return the block without its Navidrome tokens and `Authorization`."""
    tokens = block.metadata.tokens
    # The lines of the tokens come first.
    forward = block.forward[sum(len(field.wire) for field in tokens) :]
    return replace(
        block,
        metadata=replace(block.metadata, tokens=()),
        forward=without_authorization(forward),
        hop_by_hop=(*block.hop_by_hop, *tokens),
        carries_credentials=False,
    )


def decide(
    head: bytes, peer: Peer, policy: Policy, scheme: bytes = b"http", now: float | None = None
) -> Decision:
    """Decide one request head, including its empty line, from `peer` under `policy`.

    `scheme` is the listener's. `now` is in seconds since the epoch; without it no token is valid. Never
    raises: a head that cannot be parsed is a `rejected` decision.
    """
    source = PeerInfo(peer, policy.trusts(peer), scheme)
    request_line_text, _, remainder = head.partition(b"\r\n")
    request_line = block = None
    try:
        request_line = parse_request_line(request_line_text, policy.paths)
        block = read_block(
            split_block(_strip_empty_line(remainder), policy),
            partial(parse_line, names=policy.names),
            partial(_read_fields, source=source, policy=policy),
        )
        return combine(request_line, block, source, policy, now)
    except RequestRejected as rejection:
        return reject(rejection, source, request_line, block, request_line_text)


def _strip_empty_line(remainder: bytes) -> bytes:
    if not remainder.endswith(b"\r\n"):
        raise RequestRejected(Reason.MALFORMED_HEAD, "the head does not end in an empty line")
    return remainder[:-2]


def _read_fields(fields: tuple[Field, ...], source: PeerInfo, policy: Policy) -> MetadataWithProof:
    other_fields, token = extract_token(fields)
    return attach_proof(read_metadata(other_fields, source, policy), token, Verifier(policy))


def attach_proof(metadata: RequestMetadata, token: str, verify: Verify) -> MetadataWithProof:
    """Return the metadata with the proof of this token, or with None if no path needs a token.

    `verify` verifies the token.
    """
    deferred = metadata.deferred
    return metadata, None if deferred is None else TokenProof(token, deferred, verify)


class Verifier:
    """Verify the provider's tokens under a policy, without a cache."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def __call__(self, token: str, now: float | None) -> VerifiedClaims:
        """Verify the token and return its claims if it is valid at `now`. Raises `RequestRejected`."""
        assert self._policy.tokens is not None
        return verified_claims(verify_token(token, self._policy.tokens, now), self._policy)

    def cached(self, token: str) -> VerifiedClaims | None:  # noqa: ARG002
        """Return None: this class has no cache."""
        return None


def combine(
    request_line: RequestLine,
    block: HeaderBlock,
    source: PeerInfo,
    policy: Policy,
    now: float | None = None,
) -> Decision:
    """Combine a request line and a header block into the decision at `now`. Raises `RequestRejected`."""
    metadata = block.metadata
    upgrade = False
    if metadata.unusual or request_line.hosts is not None:
        upgrade = _check_unusual(request_line, metadata)
    trust_result, zone, method = metadata.trust_result, request_line.zone, request_line.method
    if block.proof is not None and zone in block.proof.zones:
        trust_result = block.proof.result(now)
    result = trust_result.outcomes[zone]
    verdict = result.verdict
    if verdict is _REJECTED:
        required = result.reason is Reason.IDENTITY_REQUIRED and zone is _PROTECTED
        if not required or not _is_open_login(request_line, policy):
            raise RequestRejected(result.reason, trust_result.detail)
        result = trust_result.without_requirement
        verdict = result.verdict
    if (
        metadata.cross_site
        and verdict is _AUTHENTICATED
        and (
            upgrade or method not in _SAFE_METHODS or policy.paths.get_may_mutate(request_line.path)
        )
    ):
        raise RequestRejected(
            Reason.CROSS_SITE,
            f"the browser reports that another site sent it: {metadata.cross_site}",
        )
    to_user_api = form = False
    if method != b"GET":
        to_user_api, form = _check_write(request_line, block, policy)
    has_navidrome_tokens = subsonic = False
    target, path, root = request_line.target, request_line.path, policy.paths.subsonic
    if metadata.tokens or (target is not path and in_query(target, path, root)):
        has_navidrome_tokens, subsonic = True, path.startswith(root)
    # RFC 9112 §9.3
    keep_alive = not metadata.close and (request_line.version == 11 or metadata.keep_alive)
    return Decision(
        result,
        source,
        request_line,
        block,
        keep_alive,
        upgrade,
        "",
        trust_result,
        has_navidrome_tokens,
        subsonic,
        form,
        to_user_api,
    )


def _check_unusual(request_line: RequestLine, metadata: RequestMetadata) -> bool:
    """Check a request without a host, with chunks, with an upgrade or with a target in absolute form.

    Returns whether it asks for a WebSocket. Raises `RequestRejected`.
    """
    if request_line.version == 11:
        if metadata.host is None:
            raise RequestRejected(Reason.AMBIGUOUS_HOST, "HTTP/1.1 without Host")
    elif metadata.length == CHUNKED:
        # RFC 9112 §6.1: HTTP/1.0 has no transfer codings; a recipient that decodes one frames the message
        # wrongly.
        raise RequestRejected(Reason.AMBIGUOUS_FRAMING, "HTTP/1.0 with Transfer-Encoding")
    if request_line.hosts is not None and (metadata.host or b"").lower() not in request_line.hosts:
        raise RequestRejected(Reason.AMBIGUOUS_TARGET, "the target names another host than Host")
    # RFC 9110 §7.8: an upgrade in HTTP/1.0 is ignored. Only a WebSocket upgrade is forwarded: h2c is a
    # known way to bypass the rules of a proxy.
    upgrade = metadata.upgrade and request_line.version == 11
    if upgrade and not (metadata.websocket and request_line.method == b"GET"):
        raise RequestRejected(
            Reason.UPGRADE_REJECTED, "an incomplete WebSocket handshake (RFC 6455 §4.1)"
        )
    return upgrade


def _check_write(
    request_line: RequestLine, block: HeaderBlock, policy: Policy
) -> tuple[bool, bool]:
    """Check a request whose method is not GET.

    Returns whether it writes to Navidrome's user API, and whether its body is a form that may carry a
    Navidrome token. Raises `RequestRejected`.
    """
    if request_line.method == b"POST":
        _check_login_allowed(request_line, policy)
    to_user_api = request_line.method in _WRITE_METHODS and policy.paths.writes_users(
        request_line.path
    )
    length = block.metadata.length
    if to_user_api and length > USER_BODY_BYTES:
        raise user_body_too_large()
    return to_user_api, length not in (NO_BODY, 0) and _is_form(request_line, block)


def user_body_too_large() -> RequestRejected:
    """Return the rejection of a long body for Navidrome's user API."""
    detail = f"the body of a request to Navidrome's user API has more than {USER_BODY_BYTES} bytes"
    return RequestRejected(Reason.BODY_TOO_LARGE, detail)


def _is_form(request_line: RequestLine, block: HeaderBlock) -> bool:
    """Return whether Navidrome reads parameters from the body as a form, below any base path."""
    return (
        request_line.method in _FORM_METHODS
        and b"/rest/" in request_line.path.lower()
        and _FORM_TYPE.search(block.forward) is not None
    )


def _is_open_login(request_line: RequestLine, policy: Policy) -> bool:
    """Return whether the request is for Navidrome's own login, and that login is open without an
    identity.
    """
    return (
        policy.local_login
        and request_line.method == b"POST"
        and policy.paths.is_login(request_line.path)
    )


def _check_login_allowed(request_line: RequestLine, policy: Policy) -> None:
    if policy.create_admin_disabled and policy.paths.creates_admin(request_line.path):
        raise RequestRejected(Reason.CREATE_ADMIN_DISABLED, "the shim creates the first admin")
    if (
        policy.require_identity
        and not policy.local_login
        and policy.paths.is_login(request_line.path)
    ):
        raise RequestRejected(Reason.LOCAL_LOGIN_DISABLED, "Navidrome's own login is disabled")


def reject(
    rejection: RequestRejected,
    source: PeerInfo,
    request_line: RequestLine | None = None,
    block: HeaderBlock | None = None,
    request_line_text: bytes = b"",
) -> Decision:
    """Return the `rejected` decision for a rejection.

    `request_line_text` is the request line if it could not be parsed.
    """
    path_class = PathClass.PROTECTED if request_line is None else request_line.path_class
    result = outcome(rejection.reason, path_class)
    keep_alive = (
        result.status != _AMBIGUOUS_STATUS and source.trusted and _is_complete(request_line, block)
    )
    return Decision(
        result,
        source,
        request_line,
        block,
        keep_alive,
        detail=rejection.detail,
        request_line_text=request_line_text,
    )


def _is_complete(request_line: RequestLine | None, block: HeaderBlock | None) -> bool:
    """Return whether the request ends with its head, and its connection may carry another one."""
    if request_line is None or block is None:
        return False
    metadata = block.metadata
    ends_with_head = not metadata.upgrade and metadata.length in (NO_BODY, 0)
    return ends_with_head and _keeps_alive(request_line, metadata)


def _keeps_alive(request_line: RequestLine, metadata: RequestMetadata) -> bool:
    """Return whether the sender keeps its connection open (RFC 9112 §9.3)."""
    return not metadata.close and (request_line.version == 11 or metadata.keep_alive)


def _headers(head: bytes) -> list[list[str]]:
    lines = head.split(b"\r\n")[1:-2]
    return [
        [text.decode("utf-8", "backslashreplace") for text in line.split(b": ", 1)]
        for line in lines
    ]
