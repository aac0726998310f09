"""A one-time path on which the shim itself responds, with the names of the headers that arrived.

`navidrome-shim check` requests it through the edge, to learn what the edge's routes do. The response has
names only, never a value, and whether an identity header has the value that `check` sends.
"""

from __future__ import annotations

import hmac
import json
import secrets
from dataclasses import dataclass
from typing import Final, Self

from shim.trust.decision import Decision
from shim.trust.fields import Field, Kind
from shim.trust.policy import Policy
from shim.trust.token_proof import secret_matches

EDGE_PROBE_SECONDS: Final = 30.0
# Marks the response, so that no other server's JSON is taken for it.
EDGE_PROBE_MARK: Final = "navidrome_shim_edge_probe"
# The value of every header that `check` sends. Never an account's name, and the shim removes it in any case.
EDGE_PROBE_VALUE: Final = "navidrome-shim-check"
# What `check` may request besides the public prefixes: a file that browsers fetch without cookies, by its
# exact name, because an edge may have exact rules for it; and Navidrome's API, which needs a sign-in.
MANIFEST: Final = "/app/manifest.webmanifest"
PROTECTED: Final = "/api/"
_NONCE_BYTES = 16
_VALUE = EDGE_PROBE_VALUE.encode()
_MAX_NAMES = 40
_FORWARDED = frozenset(
    {Kind.FORWARDED_FOR, Kind.FORWARDED_PROTO, Kind.FORWARDED_HOST, Kind.FORWARDED}
)


@dataclass(frozen=True, slots=True)
class EdgeProbe:
    """A path that is valid for one request until `deadline`, in the plane's time (seconds)."""

    target: bytes
    deadline: float

    @classmethod
    def create(cls, base: bytes, prefix: str, now: float) -> Self:
        """Return a probe with a random path below a prefix, or with a random query if it is `MANIFEST`.

        `base` begins and ends with a slash.
        """
        path = prefix.strip("/").encode()
        nonce = secrets.token_hex(_NONCE_BYTES).encode()
        end = b"?" if prefix == MANIFEST else b"/" if path else b""
        return cls(b"%b%b%b%b" % (base, path, end, nonce), now + EDGE_PROBE_SECONDS)

    def matches(self, decision: Decision, now: float) -> bool:
        """Return whether this is the request that the probe waits for: a GET of exactly its path."""
        line, block = decision.request_line, decision.block
        return (
            line is not None
            and block is not None
            and now <= self.deadline
            and hmac.compare_digest(line.target, self.target)
            and line.method == b"GET"
            and not block.metadata.has_body
        )


def edge_probe_response(decision: Decision, policy: Policy) -> bytes:
    """Return the complete response to the probe's request, after which the connection closes."""
    assert decision.block is not None
    removed, source = decision.block.removed, decision.source
    body = json.dumps(
        {
            EDGE_PROBE_MARK: 1,
            "peer": source.peer.text,
            "peer_trusted": source.trusted,
            "forwarded": any(field.kind in _FORWARDED for field in removed),
            "identity_headers": _names(removed, Kind.IDENTITY),
            "user_header": _names(removed, Kind.USER),
            "forged": any(
                field.kind in (Kind.IDENTITY, Kind.USER) and field.value == _VALUE
                for field in removed
            ),
            "aliases": _names(removed, Kind.ALIAS),
            "secret": _secret(removed, policy),
        }
    ).encode()
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
        b"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n%b"
        % (len(body), body)
    )


def _names(fields: tuple[Field, ...], kind: Kind) -> list[str]:
    return sorted({field.sent_name for field in fields if field.kind is kind})[:_MAX_NAMES]


def _secret(fields: tuple[Field, ...], policy: Policy) -> str:
    """Return whether the shared secret arrived: `absent`, `valid`, `wrong`, or `unexpected` without
    SHIM_PROXY_SECRET."""
    if not any(field.kind is Kind.SECRET and field.value for field in fields):
        return "absent"
    if not policy.secrets:
        return "unexpected"
    return "valid" if secret_matches(fields, policy) else "wrong"
