"""`decide` with a memory for what repeats.

Between two requests of one browser the request line changes and the header block mostly does not. So a
block is remembered by its bytes, its peer's address and the listener's scheme; a header line by its bytes;
and an envelope by the remembered lines that it was read from, with the provider's token beside it and
without. One object serves one policy: a new policy means a new memory, and nothing old can match. Request
lines are not remembered. Peers that are not on the list have a memory of their own. A token that was
verified is remembered by its digest, so that another block with the same one costs no second signature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from sys import getsizeof

from shim.trust.addresses import Peer
from shim.trust.block import HeaderBlock, Sealed, read_block, split_block
from shim.trust.decide import Decision, Verifier, judge, refuse, seal
from shim.trust.envelope import Envelope, read_envelope, set_apart
from shim.trust.fields import Field, FieldNames, parse_line
from shim.trust.forwarding import Source
from shim.trust.identity import Identity
from shim.trust.jwt import digest
from shim.trust.memory import Memory
from shim.trust.policy import Policy
from shim.trust.proof import Said, Verify
from shim.trust.reasons import Reason
from shim.trust.refusal import Refused
from shim.trust.target import RequestLine, parse_request_line

# What an entry costs in bytes, with everything that it keeps alive; each entry pays for what several share.


def _block_cost(key: tuple[str, bytes], block: HeaderBlock) -> int:
    envelope, proof = block.envelope, block.proof
    fields = (*envelope.removed, *envelope.tokens, *block.dropped)
    size = 512 + len(key[1]) + len(block.forward) + (0 if proof is None else proof.size)
    return size + _fields_cost(fields) + _envelope_size(envelope)


def _line_cost(line: bytes, field: Field) -> int:
    return 256 + len(line) + _field_cost(field)


def _sealed_cost(key: tuple[str, tuple[Field, ...]], sealed: Sealed) -> int:
    envelope, proof = sealed
    return _envelope_cost(key, envelope) + (0 if proof is None else proof.size)


def _envelope_cost(key: tuple[str, tuple[Field, ...]], envelope: Envelope) -> int:
    # It keeps its fields alive, long after the memory of lines has let go of them.
    return 512 + _fields_cost(key[1]) + _envelope_size(envelope)


def _token_cost(_: tuple[bytes, int], said: Said) -> int:
    return 1024 + _identity_size(said.identity) + sum(map(getsizeof, said.claims.values()))


def _fields_cost(fields: Sequence[Field]) -> int:
    return sum(map(_field_cost, fields))


def _field_cost(field: Field) -> int:
    # Of an identity header that is read there is the text as well, up to four bytes for a character.
    text = 0 if field.claim is None else getsizeof(field.claim)
    return 384 + len(field.name) + len(field.value) + len(field.wire) + text


def _envelope_size(envelope: Envelope) -> int:
    """The bytes of an envelope without its fields."""
    beliefs = 1024 if envelope.awaited is None else 4096
    named = 256 + sum(128 + len(name) for name in envelope.named)
    identity = envelope.belief.identity
    who = 0 if identity is None else _identity_size(identity)
    return 1024 + len(envelope.forward) + beliefs + named + who


def _identity_size(identity: Identity) -> int:
    texts = (identity.username, identity.name, identity.email, identity.uid)
    groups = identity.groups or ()
    return 256 + sum(map(getsizeof, (*texts, groups, *groups)))


class _Notebook:
    """What is remembered of the peers on the list, or of the others. `share` is 1 or a part of it."""

    __slots__ = ("blocks", "envelopes", "lines", "sealed")

    def __init__(self, share: float) -> None:
        size = int(share * (1 << 20))
        self.blocks: Memory[tuple[str, bytes], HeaderBlock] = Memory(
            int(512 * share), 3 * size, _block_cost
        )
        self.envelopes: Memory[tuple[str, tuple[Field, ...]], Envelope] = Memory(
            int(512 * share), 2 * size, _envelope_cost
        )
        self.sealed: Memory[tuple[str, tuple[Field, ...]], Sealed] = Memory(
            int(512 * share), 2 * size, _sealed_cost
        )
        self.lines: Memory[bytes, Field] = Memory(int(2048 * share), size, _line_cost)

    @property
    def size(self) -> int:
        """The bytes in use."""
        return self.blocks.size + self.envelopes.size + self.sealed.size + self.lines.size


@dataclass(slots=True)
class Standing:
    """Where a connection stands under one policy: its source, and what reads and remembers for it."""

    source: Source
    key: str
    notebook: _Notebook
    read_line: Callable[[bytes], Field]
    read_fields: Callable[[tuple[Field, ...]], Sealed]


@dataclass(frozen=True, slots=True)
class Unproven:
    """A request that was read, and hangs on a token that was not looked at yet. `block_text` is what its
    header block is to be remembered by, if it is."""

    line: RequestLine
    block: HeaderBlock
    block_text: bytes | None
    standing: Standing


class RememberedDecisions:
    """Decides as `decide` does, under one policy, and remembers header blocks, lines and envelopes."""

    __slots__ = ("_notebooks", "_verify", "policy")

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._verify = _VerifiedTokens(policy)
        self._notebooks = {True: _Notebook(1.0), False: _Notebook(0.25)}

    def standing(self, peer: Peer, scheme: bytes) -> Standing:
        """What a connection keeps and hands in with every request."""
        listed = self.policy.lists(peer)
        source = Source(peer, listed, scheme)
        key = f"{scheme.decode()} {peer.text}"
        notebook = self._notebooks[listed]
        return Standing(
            source,
            key,
            notebook,
            _line_reader(notebook.lines, self.policy.names),
            _field_reader(notebook, key, source, self.policy, self._verify),
        )

    def recall(self, block_text: bytes, standing: Standing) -> HeaderBlock | None:
        """The header block of these bytes, if it is remembered. What is remembered has no empty line."""
        return standing.notebook.blocks.get((standing.key, block_text))

    @property
    def size(self) -> int:
        """The bytes that everything remembered keeps alive, at most."""
        return self._verify.size + sum(each.size for each in self._notebooks.values())

    def decide(
        self,
        line_text: bytes,
        block_text: bytes,
        standing: Standing,
        block: HeaderBlock | None = None,
        now: float | None = None,
    ) -> Decision:
        """Judge a request: its line without its end, and its header lines each with its end. `block` is
        what `recall` gave for them, `now` the time in seconds since the epoch."""
        found = self.weigh(line_text, block_text, standing, block, now)
        return self.prove(found, now) if isinstance(found, Unproven) else found

    def weigh(
        self,
        line_text: bytes,
        block_text: bytes,
        standing: Standing,
        block: HeaderBlock | None = None,
        now: float | None = None,
    ) -> Decision | Unproven:
        """The same, but for a request that hangs on a token which was not seen before: that takes as long
        as many requests, and `prove` is for whoever has the time."""
        known = block is not None
        try:
            line = parse_request_line(line_text, self.policy.paths)
        except Refused as refused:
            # As if the block had not been looked at yet.
            return refuse(refused, standing.source, line_text=line_text)
        if block is None:
            try:
                block = read_block(
                    split_block(block_text, self.policy),
                    standing.notebook.lines.recent,
                    standing.read_line,
                    standing.read_fields,
                )
            except Refused as refused:
                return refuse(refused, standing.source, line)
        text = None if known else block_text
        proof = block.proof
        if proof is not None and line.place in proof.places and not proof.known():
            return Unproven(line, block, text, standing)
        return self._judge(line, block, standing, text, now)

    def prove(self, unproven: Unproven, now: float | None = None) -> Decision:
        """Judge what was left undecided."""
        return self._judge(
            unproven.line, unproven.block, unproven.standing, unproven.block_text, now
        )

    def _judge(
        self,
        line: RequestLine,
        block: HeaderBlock,
        standing: Standing,
        block_text: bytes | None,
        now: float | None,
    ) -> Decision:
        try:
            decision = judge(line, block, standing.source, self.policy, now)
        except Refused as refused:
            return refuse(refused, standing.source, line, block)
        if block_text is not None:
            standing.notebook.blocks.offer((standing.key, block_text), block)
        return decision

    def refuse(
        self, reason: Reason, detail: str, standing: Standing, line_text: bytes = b""
    ) -> Decision:
        """The decision on a request whose head never became whole; `line_text` is what came of its line."""
        return refuse(Refused(reason, detail), standing.source, line_text=line_text)


def _line_reader(memory: Memory[bytes, Field], names: FieldNames) -> Callable[[bytes], Field]:
    def read(line: bytes) -> Field:
        field = memory.get(line)
        if field is None:
            field = parse_line(line, names)
            memory.offer(line, field)
        return field

    return read


def _field_reader(
    notebook: _Notebook, peer: str, source: Source, policy: Policy, verify: Verify
) -> Callable[[tuple[Field, ...]], Sealed]:
    envelopes, sealed = notebook.envelopes, notebook.sealed

    def read(fields: tuple[Field, ...]) -> Sealed:
        key = (peer, fields)
        found = sealed.get(key)
        if found is None:
            found = read_anew(fields)
            sealed.offer(key, found, _mark(fields))
        return found

    def read_anew(fields: tuple[Field, ...]) -> Sealed:
        bare, token = set_apart(fields)
        if not token:
            return seal(read_envelope(bare, source, policy), token, verify)
        key = (peer, bare)
        envelope = envelopes.get(key)
        if envelope is None:
            envelope = read_envelope(bare, source, policy)
            envelopes.offer(key, envelope, _mark(bare))
        return seal(envelope, token, verify)

    return read


def _mark(fields: tuple[Field, ...]) -> int:
    # Not the fields' own hash: what was not remembered is gone, and another one has its place in memory.
    return hash(tuple([field.wire for field in fields]))


class _VerifiedTokens(Verifier):
    """Remembers the tokens that held: only the provider's get in, so nobody else can push one out."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self._memory: Memory[tuple[bytes, int], Said] = Memory(2048, 1 << 22, _token_cost)

    def __call__(self, text: str, now: float | None) -> Said:
        """What the token says. What was remembered has to be held against `now` by whoever asks."""
        key = (digest(text), len(text))
        said = self._memory.get(key)
        if said is None:
            said = super().__call__(text, now)
            self._memory.keep(key, said)
        return said

    @property
    def size(self) -> int:
        """The bytes in use."""
        return self._memory.size

    def recall(self, text: str) -> Said | None:
        """What is remembered of it."""
        return self._memory.get((digest(text), len(text)))
