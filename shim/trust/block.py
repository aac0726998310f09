"""The header block: its lines, sorted into those that pass and those that matter.

A block is read once for its peer and its policy and knows nothing of the request line, so that the same
block under another line can be remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shim.trust.envelope import Envelope
from shim.trust.fields import Field, Kind
from shim.trust.policy import Policy
from shim.trust.reasons import Reason
from shim.trust.refusal import Refused


@dataclass(slots=True)
class HeaderBlock:
    """A header block, read. Treated as frozen.

    `forward`: the lines for Navidrome, each with its line end, but for the user header.
    `dropped`: end-to-end fields that the client's `Connection` named and that end here.
    """

    envelope: Envelope
    forward: bytes
    dropped: tuple[Field, ...] = ()

    @property
    def removed(self) -> tuple[Field, ...]:
        """The fields that do not reach Navidrome as they were sent."""
        return self.envelope.removed + self.dropped


def split_block(block: bytes, policy: Policy) -> list[bytes]:
    """The header lines of a block in which each is ended by CRLF. Raises `Refused`."""
    lines = block.split(b"\r\n")
    if lines.pop():
        raise Refused(Reason.MALFORMED_HEAD, "the head does not end in an empty line")
    if len(lines) > policy.max_fields:
        raise Refused(Reason.HEAD_TOO_LARGE, f"more than {policy.max_fields} header lines")
    return lines


def read_block(
    lines: Sequence[bytes],
    read_field: Callable[[bytes], Field],
    read_envelope: Callable[[tuple[Field, ...]], Envelope],
) -> HeaderBlock:
    """Read the lines of a block: `read_field` reads one line, `read_envelope` those that matter.

    Raises `Refused` as these two do.
    """
    passed: list[Field] = []
    mattering: list[Field] = []
    for line in lines:
        field = read_field(line)
        (passed if field.kind is Kind.PASS else mattering).append(field)
    envelope = read_envelope(tuple(mattering))
    dropped: tuple[Field, ...] = ()
    if envelope.named:
        dropped = tuple(field for field in passed if field.name in envelope.named)
        passed = [field for field in passed if field.name not in envelope.named]
    forward = b"".join((envelope.forward, *[field.wire for field in passed]))
    return HeaderBlock(envelope, forward, dropped)
