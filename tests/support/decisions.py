"""Request decisions for tests.

`judged` computes a decision without a cache and, as the data plane does, four times through a cache
that all tests share, and compares the results: so every input that a test gives to `decide` also
tests the decision cache.
"""

from __future__ import annotations

from functools import lru_cache

from shim.trust.cached_decisions import DecisionCache, PendingVerification
from shim.trust.decision import Decision, decide
from shim.trust.peers import AddressList, Peer, parse_entry, parse_peer
from shim.trust.policy import Policy
from shim.trust.reasons import Verdict

EDGE = parse_peer("127.0.0.2")
UNTRUSTED = parse_peer("127.0.0.1")
HOST = "music.example.com"
ADA = "X-authentik-username: ada"

# Unknown, seen once, then cached, then found by all bytes twice, then found by the last bytes.
TIMES = 6


def trusting(*entries: str) -> AddressList:
    """A list of these entries."""
    return AddressList(map(parse_entry, entries))


POLICY = Policy(whitelist=trusting("127.0.0.2"))


def head(line: str, *fields: str | bytes, host: str | None = HOST) -> bytes:
    """Build a request head: the request line, `Host` unless it is None, and these fields."""
    lines: list[str | bytes] = [line, *([] if host is None else [f"Host: {host}"]), *fields]
    text = [each.encode() if isinstance(each, str) else each for each in lines]
    return b"\r\n".join(text) + b"\r\n\r\n"


def decided(
    head: bytes, peer: Peer = EDGE, policy: Policy = POLICY, scheme: bytes = b"http"
) -> Decision:
    """Return the decision on this head; the cached decision must equal it."""
    fresh = decide(head, peer, policy, scheme)
    if head.find(b"\r\n\r\n") == len(head) - 4:  # a connection passes on nothing else
        for _ in range(TIMES):
            cached_decision = cached(cache_for(policy), head, peer, scheme)
            assert explained(cached_decision) == explained(fresh)
    return fresh


def cached(cache: DecisionCache, head: bytes, peer: Peer, scheme: bytes = b"http") -> Decision:
    """Return the cache's result for a head that ends in its only empty line."""
    found = cache.evaluate(head, cache.connection_context(peer, scheme))
    return cache.verify(found) if isinstance(found, PendingVerification) else found


@lru_cache(maxsize=64)
def cache_for(policy: Policy) -> DecisionCache:
    """The cache that the tests of this policy share."""
    return DecisionCache(policy)


def explained(decision: Decision) -> tuple[object, ...]:
    """Everything in a decision, in a form that can be compared."""
    rejected = decision.outcome.verdict is Verdict.REJECTED
    return (
        decision.outcome,
        decision.explain(),
        b"" if rejected else decision.render_head(),
        b"" if rejected else decision.render_head(b"Another Name"),
        decision.keep_alive,
        decision.upgrade,
        decision.detail,
        None if decision.block is None else decision.block.metadata.length,
        None if decision.block is None else decision.block.metadata.expect_continue,
        None if decision.block is None else decision.block.metadata.client,
    )
