"""Remember which peers sent identities that did not count, so that `/readyz` and `check` can name the cause.

Every client that reaches the shim can cause these findings, so they are warnings: they never make the shim
unready.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from shim.health import Check, State
from shim.trust.decision import Decision
from shim.trust.fields import Kind
from shim.trust.peers import parse_peer
from shim.trust.policy import Policy
from shim.trust.reasons import Reason

RECENT_SECONDS = 900.0
# A finding that is older ends when an identity of the same peer counted after it. Before that it stays,
# because the peer may have a right and a wrong route.
RESOLVED_SECONDS = 60.0
# Peers that are remembered, and named in one check.
_PEERS = 64
_NAMED = 5
# Enum members are slow to look up.
_UNTRUSTED, _UNTRUSTED_REJECTED = Reason.UNTRUSTED_PEER, Reason.UNTRUSTED_PEER_REJECTED
_MISSING, _MISMATCH = Reason.SECRET_MISSING, Reason.SECRET_MISMATCH
_INCOMPLETE = Reason.IDENTITY_INCOMPLETE
_SECRET = Kind.SECRET


@dataclass(slots=True)
class _Seen:
    """When a peer's identities last did not count, by cause, and when one last did; 0 is never."""

    untrusted: float = 0.0
    secret_missing: float = 0.0
    secret_mismatch: float = 0.0
    secret_unexpected: float = 0.0
    incomplete: float = 0.0
    missing: str = ""  # what the incomplete identity lacks, in one sentence
    accepted: float = 0.0


class EdgeMonitor:
    """Sees every decision that strips or rejects, and each identity that is in use, once a minute."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._peers: dict[str, _Seen] = {}

    def decided(self, decision: Decision) -> None:
        """Remember a request whose identity did not count, if the edge may be the cause."""
        reason = decision.outcome.reason
        if reason is _UNTRUSTED or reason is _UNTRUSTED_REJECTED:
            self._peer(decision).untrusted = self._now()
        elif reason is _MISSING:
            self._peer(decision).secret_missing = self._now()
        elif reason is _MISMATCH:
            self._peer(decision).secret_mismatch = self._now()
        elif reason is _INCOMPLETE:
            seen = self._peer(decision)
            seen.incomplete, seen.missing = self._now(), decision.detail

    def identity_used(self, decision: Decision) -> None:
        """Remember that an identity of this peer counted."""
        seen, block, now = self._peer(decision), decision.block, self._now()
        seen.accepted = now
        if block is not None and any(f.kind is _SECRET and f.value for f in block.removed):
            seen.secret_unexpected = now

    def check(self, policy: Policy) -> Check:
        """Return the check of the last 15 minutes, by the policy in force."""
        findings = [
            self._find(
                lambda seen: seen.untrusted,
                "an identity from {peers} did not count, because this address is not trusted",
                "If this is the edge, add it to SHIM_REVERSE_PROXY_WHITELIST. If not, let only the edge "
                "reach SHIM_LISTEN.",
                lambda peer: not policy.trusts(parse_peer(peer)),
            ),
            *self._incomplete(),
        ]
        if policy.secrets:
            header = policy.names.secret
            findings += [
                self._find(
                    lambda seen: seen.secret_missing,
                    f"an identity from {{peers}} came without {header}, so it was rejected",
                    f"Let the edge send one of SHIM_PROXY_SECRET in {header} on the authenticated route.",
                ),
                self._find(
                    lambda seen: seen.secret_mismatch,
                    f"an identity from {{peers}} came with another secret in {header}, so it was rejected",
                    "Set the same secret at the edge and in SHIM_PROXY_SECRET.",
                ),
            ]
        else:
            findings.append(
                self._find(
                    lambda seen: seen.secret_unexpected,
                    f"{{peers}} sends {policy.names.secret}, but SHIM_PROXY_SECRET is not set: the secret "
                    "proves nothing",
                    "Set SHIM_PROXY_SECRET to the value that the edge sends.",
                    ends=False,
                )
            )
        found = [each for each in findings if each is not None]
        if not found:
            return Check("edge", State.OK, "no identity was rejected because of the edge recently")
        details, remedies = zip(*found, strict=True)
        return Check("edge", State.WARNING, "; ".join(details), " ".join(remedies))

    def _incomplete(self) -> list[tuple[str, str] | None]:
        """Return a finding for each part of an identity that was missing."""
        missing = sorted({seen.missing for seen in self._peers.values() if seen.missing})
        return [self._find_incomplete(each) for each in missing]

    def _find_incomplete(self, missing: str) -> tuple[str, str] | None:
        return self._find(
            lambda seen: seen.incomplete if seen.missing == missing else 0.0,
            f"an identity from {{peers}} was rejected: {missing}",
            "Let the edge copy every header of the provider, also an empty one, as in docs/providers.md.",
            # Users differ: one in no group is rejected while others are not.
            ends=False,
        )

    def _find(
        self,
        at: Callable[[_Seen], float],
        detail: str,
        remedy: str,
        applies: Callable[[str], bool] = lambda _peer: True,
        *,
        ends: bool = True,
    ) -> tuple[str, str] | None:
        """Return detail and remedy if a peer has this finding. `ends`: an identity that counted later ends
        it."""
        now = self._now()
        peers = [
            (peer, at(seen))
            for peer, seen in self._peers.items()
            if at(seen) > now - RECENT_SECONDS
            and at(seen) > 0
            and not (ends and seen.accepted > at(seen) and at(seen) < now - RESOLVED_SECONDS)
            and applies(peer)
        ]
        if not peers:
            return None
        names = ", ".join(peer for peer, _ in peers[:_NAMED])
        if len(peers) > _NAMED:
            names += f" and {len(peers) - _NAMED} more"
        age = round(now - max(time for _, time in peers))
        return f"{detail.format(peers=names)} (last {age} s ago)", remedy

    def _peer(self, decision: Decision) -> _Seen:
        peers, peer = self._peers, decision.source.peer.text
        seen = peers.get(peer)
        if seen is None:
            if len(peers) >= _PEERS:
                del peers[next(iter(peers))]
            seen = peers[peer] = _Seen()
        return seen
