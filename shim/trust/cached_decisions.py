"""Cache the repeated parts of `decide`.

Between two requests of one browser the request line changes and the header block mostly does not. So a
block is cached by its bytes, the address of its peer and the scheme of the listener; a header line by its
bytes; and request metadata by the cached lines that it was read from, with and without the provider's
token. A cache serves one policy: a new policy has a new cache, so that no old entry can match. Of a request
line only the zone of its path is cached. Untrusted peers have separate caches. A verified token is cached by
its digest, so that another block with the same token needs no second signature check.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from sys import getsizeof
from typing import TypeAlias

from shim.http1.request_line import KNOWN_PATH_LINE
from shim.trust.block import HeaderBlock, MetadataWithProof, read_block, split_block
from shim.trust.cache import AdmissionCache
from shim.trust.client_address import PeerInfo
from shim.trust.decision import Decision, Verifier, attach_proof, combine, reject
from shim.trust.fields import Field, FieldNames, parse_line
from shim.trust.identity import Identity
from shim.trust.jwt import digest
from shim.trust.navidrome_tokens import in_query
from shim.trust.path_zones import PathZone, RequestLine, parse_request_line
from shim.trust.peers import Peer
from shim.trust.policy import Policy
from shim.trust.reasons import Reason, Verdict
from shim.trust.rejection import RequestRejected
from shim.trust.request_metadata import RequestMetadata, extract_token, read_metadata
from shim.trust.token_proof import VerifiedClaims, Verify

# Access to enumeration members is slow; the hot path uses this module constant.
_REJECTED = Verdict.REJECTED
# Edges sort the headers, or put their own last: so the last bytes mostly differ between two browsers, and the
# blocks of one browser mostly differ in their length.
_TAIL = 128
# What a block is first looked for by: its peer, its length with the empty line, and its last bytes.
_Tail: TypeAlias = tuple[str, int, bytes]

# The cost functions return the size of an entry in bytes, including all objects that it keeps alive. A
# shared object counts in each entry.


def _block_cost(key: tuple[str, bytes], block: HeaderBlock) -> int:
    metadata, proof = block.metadata, block.proof
    fields = (*metadata.removed, *metadata.tokens, *block.hop_by_hop)
    size = 512 + len(key[1]) + len(block.forward) + (0 if proof is None else proof.size)
    return size + _fields_cost(fields) + _metadata_size(metadata)


def _tail_cost(key: _Tail, found: tuple[bytes, HeaderBlock]) -> int:
    return 256 + len(key[2]) + _block_cost(("", found[0]), found[1])


def _line_cost(line: bytes, field: Field) -> int:
    return 256 + len(line) + _field_cost(field)


def _proven_metadata_cost(key: tuple[str, tuple[Field, ...]], with_proof: MetadataWithProof) -> int:
    metadata, proof = with_proof
    return _metadata_cost(key, metadata) + (0 if proof is None else proof.size)


def _metadata_cost(key: tuple[str, tuple[Field, ...]], metadata: RequestMetadata) -> int:
    # The entry keeps its fields alive after the cache of lines has evicted them.
    return 512 + _fields_cost(key[1]) + _metadata_size(metadata)


def _zone_cost(path: bytes, _: PathZone) -> int:
    return 128 + len(path)


def _identity_cost(identity: Identity, _: Identity) -> int:
    return 128 + _identity_size(identity)


def _token_cost(_: tuple[bytes, int], verified: VerifiedClaims) -> int:
    return 1024 + _identity_size(verified.identity) + sum(map(getsizeof, verified.claims.values()))


def _fields_cost(fields: Sequence[Field]) -> int:
    return sum(map(_field_cost, fields))


def _field_cost(field: Field) -> int:
    # A parsed identity header also holds its text, up to four bytes per character.
    text = 0 if field.parsed_value is None else getsizeof(field.parsed_value)
    return 384 + len(field.name) + len(field.value) + len(field.wire) + text


def _metadata_size(metadata: RequestMetadata) -> int:
    """Return the size of request metadata in bytes, without its fields."""
    result_size = 1024 if metadata.deferred is None else 4096
    listed_size = 256 + sum(128 + len(name) for name in metadata.connection_listed)
    identity = metadata.trust_result.identity
    identity_size = 0 if identity is None else _identity_size(identity)
    return 1024 + len(metadata.forward) + result_size + listed_size + identity_size


def _identity_size(identity: Identity) -> int:
    texts = (identity.username, identity.name, identity.email, identity.uid)
    groups = identity.groups or ()
    return 256 + sum(map(getsizeof, (*texts, groups, *groups)))


class _LineTable(dict[bytes, Field]):
    """A generation of parsed lines. A line that is not in it is read by `read`."""

    __slots__ = ("read",)

    def __init__(self, read: Callable[[bytes], Field]) -> None:
        super().__init__()
        self.read = read

    def __missing__(self, line: bytes) -> Field:
        return self.read(line)


class _PeerCaches:
    """The caches for trusted peers, or those for untrusted peers.

    `share` scales their limits; 1 is the full size. `zones` has valid paths only. `tails` finds a block and
    its bytes, with the empty line, by its length and last bytes: hashing all of them takes several times as
    long as comparing them.
    """

    __slots__ = (
        "__weakref__",
        "_names",
        "blocks",
        "lines",
        "metadata_cache",
        "tails",
        "with_proof",
        "zones",
    )

    def __init__(self, share: float, names: FieldNames) -> None:
        size = int(share * (1 << 20))
        self._names = names
        self.blocks: AdmissionCache[tuple[str, bytes], HeaderBlock] = AdmissionCache(
            int(512 * share), 7 * size // 4, _block_cost
        )
        self.tails: AdmissionCache[_Tail, tuple[bytes, HeaderBlock]] = AdmissionCache(
            int(512 * share), 9 * size // 8, _tail_cost
        )
        self.metadata_cache: AdmissionCache[tuple[str, tuple[Field, ...]], RequestMetadata] = (
            AdmissionCache(int(512 * share), 2 * size, _metadata_cost)
        )
        self.with_proof: AdmissionCache[tuple[str, tuple[Field, ...]], MetadataWithProof] = (
            AdmissionCache(int(512 * share), 2 * size, _proven_metadata_cost)
        )
        self.lines: AdmissionCache[bytes, Field] = AdmissionCache(
            int(2048 * share), size, _line_cost, _line_tables(weakref.ref(self))
        )
        self.zones: AdmissionCache[bytes, PathZone] = AdmissionCache(
            int(512 * share), size // 8, _zone_cost
        )

    def read_line(self, line: bytes) -> Field:
        """Return a line that is not in the recent generation. Raises `RequestRejected`."""
        field = self.lines.get(line)
        if field is None:
            field = parse_line(line, self._names)
            self.lines.offer(line, field)
        return field

    @property
    def size(self) -> int:
        """Return the size of all entries in bytes."""
        metadata = self.metadata_cache.size + self.with_proof.size
        blocks = self.blocks.size + self.tails.size
        return blocks + metadata + self.lines.size + self.zones.size


def _line_tables(caches: weakref.ref[_PeerCaches]) -> Callable[[], _LineTable]:
    """Return the function that makes the tables of these caches. A table refers to them weakly, so that a
    replaced cache is freed at once: the garbage collector does not look at what existed at the start."""

    def read(line: bytes) -> Field:
        found = caches()
        assert found is not None
        return found.read_line(line)

    return lambda: _LineTable(read)


class _SharedIdentities:
    """One object for all equal identities, so that comparing two of them rarely has to read them."""

    __slots__ = ("_cache",)

    def __init__(self) -> None:
        self._cache: AdmissionCache[Identity, Identity] = AdmissionCache(
            512, 1 << 19, _identity_cost
        )

    def shared(self, identity: Identity) -> Identity:
        """Return the shared object that is equal to this identity."""
        known = self._cache.get(identity)
        if known is None:
            self._cache.offer(identity, identity)
        return known or identity

    @property
    def size(self) -> int:
        """Return the size of all entries in bytes."""
        return self._cache.size


@dataclass(slots=True)
class ConnectionContext:
    """The state of a connection under one policy: its source, and its caches and its reader."""

    source: PeerInfo
    key: str
    caches: _PeerCaches
    read_fields: Callable[[tuple[Field, ...]], MetadataWithProof]


@dataclass(frozen=True, slots=True)
class PendingVerification:
    """A parsed request whose decision depends on a token that is not verified yet.

    `block_text` is the cache key of its header block, or None if the block came from the cache.
    """

    request_line: RequestLine
    block: HeaderBlock
    block_text: bytes | None
    context: ConnectionContext


class DecisionCache:
    """Decide as `decide` does under one policy, with caches for header blocks, lines and request
    metadata.
    """

    __slots__ = ("_caches", "_identities", "_subsonic", "_verify", "policy")

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._subsonic = policy.paths.subsonic
        self._identities = _SharedIdentities()
        self._verify = _VerifiedTokens(policy, self._identities)
        self._caches = {
            True: _PeerCaches(1.0, policy.names),
            False: _PeerCaches(0.25, policy.names),
        }

    def connection_context(self, peer: Peer, scheme: bytes) -> ConnectionContext:
        """Return the context that a connection keeps and passes with every request."""
        trusted = self.policy.trusts(peer)
        source = PeerInfo(peer, trusted, scheme)
        key = f"{scheme.decode()} {peer.text}"
        caches = self._caches[trusted]
        return ConnectionContext(
            source,
            key,
            caches,
            _field_reader(caches, key, source, self.policy, self._verify, self._identities),
        )

    def cached_headers(self, block_text: bytes, context: ConnectionContext) -> HeaderBlock | None:
        """Return the cached header block for these bytes, or None.

        The bytes do not include the empty line that ends the head.
        """
        return context.caches.blocks.get((context.key, block_text))

    @property
    def size(self) -> int:
        """Return an upper limit of the bytes that all entries keep alive."""
        own = self._verify.size + self._identities.size
        return own + sum(each.size for each in self._caches.values())

    def decide(
        self,
        request_line_text: bytes,
        block_text: bytes,
        context: ConnectionContext,
        block: HeaderBlock | None = None,
        now: float | None = None,
    ) -> Decision:
        """Decide a request, and verify its token at once.

        `request_line_text` is its request line without its line end, `block_text` its header lines, each
        with its line end. `block` is the result of `cached_headers` for them. `now` is in seconds since
        the epoch.
        """
        try:
            request_line = self._read_line(request_line_text, context)
        except RequestRejected as rejection:
            return reject(rejection, context.source, request_line_text=request_line_text)
        new_text = block_text if block is None else None
        try:
            block = block or self._read_block(block_text, context)
        except RequestRejected as rejection:
            return reject(rejection, context.source, request_line)
        found = self._combine(request_line, block, new_text, context, now)
        return self.verify(found, now) if isinstance(found, PendingVerification) else found

    def evaluate(
        self, head: bytes, context: ConnectionContext, now: float | None = None
    ) -> Decision | PendingVerification:
        """Decide a request as `decide` does, by its head with its empty line, unless it depends on a token
        that is not in the cache.

        Verifying a token takes as long as many requests, so such a request is returned as
        `PendingVerification`, and the caller runs `verify` when there is time. `now` is in seconds since the
        epoch.
        """
        zone = None
        common = KNOWN_PATH_LINE.match(head)
        if common is not None:
            method, path, query, http10 = common.groups()
            zone = context.caches.zones.recent.get(path)
        if zone is None or common is None:
            return self._evaluate_unknown(head, context, now)
        target = path if query is None else path + query
        version = 11 if http10 is None else 10
        request_line = RequestLine(method, target, path, version, zone, None)
        end = common.end()
        tail = (context.key, len(head) - end, head[-_TAIL:])
        found = context.caches.tails.recent.get(tail)
        new_text = None
        if found is not None and head.startswith(found[0], end):
            block = found[1]
        else:
            try:
                block, new_text = self._find_block(head, end, tail, context)
            except RequestRejected as rejection:
                return reject(rejection, context.source, request_line)
        metadata = block.metadata
        trust_result = metadata.trust_result
        outcome = trust_result.outcomes[zone]
        # Most requests. `combine` has the same result, as the tests show.
        if (
            metadata.plain
            and method == b"GET"
            and http10 is None
            and outcome.verdict is not _REJECTED
            and (query is None or not in_query(target, path, self._subsonic))
        ):
            if new_text is not None:
                context.caches.blocks.offer((context.key, new_text), block)
            source = context.source
            return Decision(outcome, source, request_line, block, True, False, "", trust_result)
        return self._combine(request_line, block, new_text, context, now)

    def _evaluate_unknown(
        self, head: bytes, context: ConnectionContext, now: float | None
    ) -> Decision | PendingVerification:
        """Decide a request whose path is not cached."""
        line_text = head.partition(b"\r\n")[0]
        try:
            request_line = self._read_line(line_text, context)
        except RequestRejected as rejection:
            # Pass no block, as if it had not been parsed yet.
            return reject(rejection, context.source, request_line_text=line_text)
        end = len(line_text) + 2
        tail = (context.key, len(head) - end, head[-_TAIL:])
        try:
            block, new_text = self._find_block(head, end, tail, context)
        except RequestRejected as rejection:
            return reject(rejection, context.source, request_line)
        return self._combine(request_line, block, new_text, context, now)

    def _find_block(
        self, head: bytes, end: int, tail: _Tail, context: ConnectionContext
    ) -> tuple[HeaderBlock, bytes | None]:
        """Return the header block of a head, which begins at `end`, and its text if it is not cached.

        Raises `RequestRejected`.
        """
        block_text, caches = head[end:-2], context.caches
        block = caches.blocks.get((context.key, block_text))
        if block is None:
            return self._read_block(block_text, context), block_text
        if caches.tails.recall(tail) is None:
            caches.tails.offer(tail, (head[end:], block))
        return block, None

    def _read_block(self, block_text: bytes, context: ConnectionContext) -> HeaderBlock:
        """Parse a header block. Raises `RequestRejected`."""
        return read_block(
            split_block(block_text, self.policy),
            context.caches.lines.recent.__getitem__,
            context.read_fields,
        )

    def _read_line(self, text: bytes, context: ConnectionContext) -> RequestLine:
        """Parse a request line, and cache the zone of its path. Raises `RequestRejected`."""
        request_line = parse_request_line(text, self.policy.paths)
        path, zones = request_line.path, context.caches.zones
        # A target in absolute form has a path of its own.
        if request_line.hosts is None and zones.get(path) is None:
            zones.offer(path, request_line.zone)
        return request_line

    def _combine(
        self,
        request_line: RequestLine,
        block: HeaderBlock,
        new_text: bytes | None,
        context: ConnectionContext,
        now: float | None,
    ) -> Decision | PendingVerification:
        """Decide a request by its request line and its header block. `new_text` is the block's text if it is
        not cached."""
        proof = block.proof
        if proof is not None and request_line.zone in proof.zones and not proof.is_evaluated():
            return PendingVerification(request_line, block, new_text, context)
        return self._combine_verified(request_line, block, new_text, context, now)

    def verify(self, pending: PendingVerification, now: float | None = None) -> Decision:
        """Verify the token of a pending request and decide the request."""
        return self._combine_verified(
            pending.request_line, pending.block, pending.block_text, pending.context, now
        )

    def _combine_verified(
        self,
        request_line: RequestLine,
        block: HeaderBlock,
        new_text: bytes | None,
        context: ConnectionContext,
        now: float | None,
    ) -> Decision:
        try:
            decision = combine(request_line, block, context.source, self.policy, now)
        except RequestRejected as rejection:
            return reject(rejection, context.source, request_line, block)
        if new_text is not None:
            context.caches.blocks.offer((context.key, new_text), block)
        return decision

    def reject(
        self,
        reason: Reason,
        detail: str,
        context: ConnectionContext,
        request_line_text: bytes = b"",
    ) -> Decision:
        """Return the decision for a request whose head is incomplete.

        `request_line_text` is the received part of its request line.
        """
        return reject(
            RequestRejected(reason, detail), context.source, request_line_text=request_line_text
        )


def _field_reader(
    caches: _PeerCaches,
    peer: str,
    source: PeerInfo,
    policy: Policy,
    verify: Verify,
    identities: _SharedIdentities,
) -> Callable[[tuple[Field, ...]], MetadataWithProof]:
    metadata_cache, with_proof = caches.metadata_cache, caches.with_proof

    def read(fields: tuple[Field, ...]) -> MetadataWithProof:
        key = (peer, fields)
        found = with_proof.recent.get(key) or with_proof.recall(key)
        if found is None:
            found = read_uncached(fields)
            with_proof.offer(key, found, _stable_hash(fields))
        return found

    def read_uncached(fields: tuple[Field, ...]) -> MetadataWithProof:
        other_fields, token = extract_token(fields)
        if not token:
            return attach_proof(read_new(other_fields), token, verify)
        key = (peer, other_fields)
        metadata = metadata_cache.get(key)
        if metadata is None:
            metadata = read_new(other_fields)
            metadata_cache.offer(key, metadata, _stable_hash(other_fields))
        return attach_proof(metadata, token, verify)

    def read_new(fields: tuple[Field, ...]) -> RequestMetadata:
        metadata = read_metadata(fields, source, policy)
        result = metadata.trust_result
        if result.identity is not None:
            result.identity = identities.shared(result.identity)
        return metadata

    return read


def _stable_hash(fields: tuple[Field, ...]) -> int:
    # The hash of the fields depends on their identity: a field that was not cached is freed, and another
    # one may reuse its memory.
    return hash(tuple([field.wire for field in fields]))


class _VerifiedTokens(Verifier):
    """Cache verified tokens. Only tokens of the provider are stored, so other clients cannot evict an
    entry.
    """

    def __init__(self, policy: Policy, identities: _SharedIdentities) -> None:
        super().__init__(policy)
        self._identities = identities
        self._cache: AdmissionCache[tuple[bytes, int], VerifiedClaims] = AdmissionCache(
            2048, 1 << 22, _token_cost
        )

    def __call__(self, token: str, now: float | None) -> VerifiedClaims:
        """Return the claims of the token. The caller must check the validity of a cached result against
        `now`.
        """
        key = (digest(token), len(token))
        verified = self._cache.get(key)
        if verified is None:
            verified = super().__call__(token, now)
            verified = replace(verified, identity=self._identities.shared(verified.identity))
            self._cache.put(key, verified)
        return verified

    @property
    def size(self) -> int:
        """Return the size of all entries in bytes."""
        return self._cache.size

    def cached(self, token: str) -> VerifiedClaims | None:
        """Return the cached claims of the token, or None."""
        return self._cache.get((digest(token), len(token)))
