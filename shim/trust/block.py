"""Split a header block into the lines that pass and the fields that the shim interprets.

A block is read once for its peer and its policy, independent of the request line, so that it can be
cached and used with another request line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from shim.trust.fields import Field, Kind
from shim.trust.identity_evaluation import TrustResult
from shim.trust.policy import Policy
from shim.trust.reasons import Reason
from shim.trust.rejection import RequestRejected
from shim.trust.request_metadata import RequestMetadata
from shim.trust.token_proof import TokenProof

# Access to enumeration members is slow; the hot path uses this module constant.
_PASS = Kind.PASS

# The metadata of a request, and the proof of its token, which some paths need.
MetadataWithProof: TypeAlias = tuple[RequestMetadata, TokenProof[TrustResult] | None]


@dataclass(slots=True)
class HeaderBlock:
    """A parsed header block. Treated as frozen.

    `forward`: the lines for Navidrome, each with its line end, without the user header.
    `proof`: the token that the trust result depends on, if a path needs one.
    `hop_by_hop`: the fields that the client's `Connection` lists and that are not forwarded.
    `carries_credentials`: whether it has Navidrome tokens or `Authorization`; None until that was read.
    """

    metadata: RequestMetadata
    forward: bytes
    proof: TokenProof[TrustResult] | None = None
    hop_by_hop: tuple[Field, ...] = ()
    carries_credentials: bool | None = None

    @property
    def removed(self) -> tuple[Field, ...]:
        """Return the fields that do not reach Navidrome as they were sent."""
        return self.metadata.removed + self.hop_by_hop


def split_block(block: bytes, policy: Policy) -> list[bytes]:
    """Split a block into its header lines, each ended by CRLF in the block.

    The lines keep their CR, which `parse_line` checks: a search for one byte is twice as fast as one for
    two. Raises `RequestRejected`.
    """
    lines = block.split(b"\n")
    if lines.pop():
        raise RequestRejected(Reason.MALFORMED_HEAD, "the head does not end in an empty line")
    if len(lines) > policy.max_fields:
        raise RequestRejected(Reason.HEAD_TOO_LARGE, f"more than {policy.max_fields} header lines")
    return lines


def read_block(
    lines: Sequence[bytes],
    read_line: Callable[[bytes], Field],
    read_fields: Callable[[tuple[Field, ...]], MetadataWithProof],
) -> HeaderBlock:
    """Read the lines of a block.

    `read_line` parses a line, `read_fields` reads all fields that the shim interprets. Raises
    `RequestRejected` as these two do.
    """
    fields = list(map(read_line, lines))
    # Only a field that passes has a line of its own to forward.
    metadata, proof = read_fields(tuple([field for field in fields if not field.forward_line]))
    if metadata.connection_listed:
        return _without_connection_listed(fields, metadata, proof)
    return HeaderBlock(
        metadata, metadata.forward + b"".join([field.forward_line for field in fields]), proof
    )


def _without_connection_listed(
    fields: Sequence[Field], metadata: RequestMetadata, proof: TokenProof[TrustResult] | None
) -> HeaderBlock:
    hop_by_hop = [f for f in fields if f.kind is _PASS and f.name in metadata.connection_listed]
    forwarded = [f.forward_line for f in fields if f.name not in metadata.connection_listed]
    return HeaderBlock(metadata, metadata.forward + b"".join(forwarded), proof, tuple(hop_by_hop))
