"""The cache of header blocks and request lines: the same decisions, within limits.

Every test of this folder compares cached decisions with fresh ones (`decisions.judged`). These
tests use shuffled orders, and check what must not be cached.
"""

from __future__ import annotations

import gc
import random
import tracemalloc
import weakref
from types import TracebackType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim.trust.cached_decisions import DecisionCache
from shim.trust.decision import decide
from shim.trust.path_zones import PathZone
from shim.trust.peers import Peer, parse_peer
from shim.trust.policy import Policy, Proof
from shim.trust.reasons import Reason
from tests.support.decisions import (
    ADA,
    EDGE,
    POLICY,
    TIMES,
    UNTRUSTED,
    cached,
    explained,
    head,
    trusting,
)
from tests.support.request_strategies import policies, requests

Request = tuple[bytes, Peer]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(requests(), st.sampled_from((EDGE, UNTRUSTED))), min_size=1, max_size=6),
    policies(),
    st.randoms(use_true_random=False),
)
def test_a_cached_decision_equals_the_fresh_one_in_any_order_and_after_a_policy_change(
    drawn: list[Request], policy: Policy, order: random.Random
) -> None:
    # The same block from both peers, so that each could get the other's decision.
    all_requests = [(text, peer) for text, _ in drawn for peer in (EDGE, UNTRUSTED)] + drawn
    for now in (policy, policy.next_version(suspended=not policy.suspended)):
        cache = DecisionCache(now)
        for _ in range(TIMES // 2):  # each peer's text comes at least twice
            order.shuffle(all_requests)
            for text, peer in all_requests:
                for scheme in (b"http", b"https"):
                    from_cache = cached(cache, text, peer, scheme)
                    assert explained(from_cache) == explained(decide(text, peer, now, scheme))


def test_a_block_is_cached_when_it_is_seen_a_second_time_with_any_request_line() -> None:
    cache = DecisionCache(POLICY)
    first, second, third = (
        cached(cache, head(f"GET /app/{number} HTTP/1.1", ADA), EDGE) for number in range(3)
    )
    assert second.block is not first.block
    assert third.block is second.block
    assert third.render_head().startswith(b"GET /app/2 HTTP/1.1\r\n")


def test_a_block_is_cached_for_its_peer_and_scheme_only() -> None:
    policy = Policy(whitelist=trusting("127.0.0.0/8"))
    cache = DecisionCache(policy)
    text = head("GET /app/ HTTP/1.1", ADA)
    for _ in range(3):
        cached_first = cached(cache, text, EDGE)
    assert cached(cache, text, EDGE).block is cached_first.block
    for peer, scheme in ((parse_peer("127.0.0.3"), b"http"), (EDGE, b"https")):
        other = cached(cache, text, peer, scheme)
        assert other.block is not cached_first.block
        assert explained(other) == explained(decide(text, peer, policy, scheme))


def test_a_new_policy_has_its_own_cache() -> None:
    cache = DecisionCache(POLICY)
    text = head("GET /app/ HTTP/1.1", ADA)
    for _ in range(3):
        assert cached(cache, text, EDGE).outcome.reason is Reason.TRUSTED_PEER
    renewed = DecisionCache(POLICY.next_version(whitelist=trusting("10.0.0.1")))
    assert cached(renewed, text, EDGE).outcome.reason is Reason.UNTRUSTED_PEER


def test_a_rejected_block_is_not_cached() -> None:
    cache = DecisionCache(POLICY)
    text = head("GET /app/ HTTP/1.1", ADA, ADA)
    drawn = [cached(cache, text, EDGE) for _ in range(4)]
    assert {decision.outcome.reason for decision in drawn} == {Reason.IDENTITY_DUPLICATE}
    assert len({id(decision.block) for decision in drawn}) == len(drawn)


def test_untrusted_peers_evict_no_entries_of_trusted_peers() -> None:
    cache = DecisionCache(POLICY)
    text = head("GET /app/ HTTP/1.1", ADA)
    for _ in range(3):
        cached_first = cached(cache, text, EDGE)
    for number in range(1500):
        flood = head("GET /rest/ping HTTP/1.1", f"X-Forwarded-For: {number}", f"Cookie: {number}")
        for _ in range(3):
            cached(cache, flood, UNTRUSTED)
    assert cached(cache, text, EDGE).block is cached_first.block


def test_a_flood_through_the_edge_does_not_evict_entries_in_use() -> None:
    cache = DecisionCache(POLICY)
    text = head("GET /app/ HTTP/1.1", ADA)
    for _ in range(3):
        cached_first = cached(cache, text, EDGE)
    for number in range(1500):
        flood = head("GET /rest/ping HTTP/1.1", f"X-Forwarded-For: {number}", f"Cookie: {number}")
        for _ in range(3):
            cached(cache, flood, EDGE)
        if number % 100 == 0:
            assert cached(cache, text, EDGE).block is cached_first.block, number


def test_the_cache_is_bounded_in_bytes() -> None:
    """Large request lines, each often enough to be cached, in blocks that never repeat."""
    cache = DecisionCache(POLICY)
    padding = "x" * 50_000
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(150):
            for again in range(5):
                text = head(
                    "GET /rest/ping HTTP/1.1",
                    f"X-Forwarded-For: {number}, {padding}",
                    f"X: {again}",
                )
                cached(cache, text, EDGE if number % 2 else UNTRUSTED)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 16 << 20


def test_a_cached_error_does_not_keep_its_traceback() -> None:
    cache = DecisionCache(POLICY)

    def send(number: int) -> None:
        other = f"X-Forwarded-For: {number}"  # so that the rest of the block never repeats
        text = head("GET /app/ HTTP/1.1", b"X-authentik-username: \xff", other)
        assert cached(cache, text, EDGE).outcome.reason is Reason.IDENTITY_INVALID

    def tracebacks() -> int:
        gc.collect()
        return sum(isinstance(each, TracebackType) for each in gc.get_objects())

    for number in range(5):
        send(number)
    before = tracebacks()
    for number in range(5, 105):
        send(number)
    assert tracebacks() <= before + 5


def test_a_cached_block_is_not_used_with_a_malformed_request_line() -> None:
    cache = DecisionCache(POLICY)
    for _ in range(3):
        cached(cache, head("GET /app/ HTTP/1.1", ADA), EDGE)
    for line in ("GET // HTTP/1.1", "TRACE /app/ HTTP/1.1", "GET /app/"):
        text = head(line, ADA)
        assert explained(cached(cache, text, EDGE)) == explained(decide(text, EDGE, POLICY))


def test_the_zone_of_a_valid_path_is_cached() -> None:
    cache = DecisionCache(POLICY)
    for _ in range(2):
        cached(cache, head("GET /rest/ping?u=ada HTTP/1.1", ADA), EDGE)
        cached(cache, head("GET /rest//ping HTTP/1.1", ADA), EDGE)
        cached(cache, head("GET http://h/absolute HTTP/1.1", ADA), EDGE)
    assert cache._caches[True].zones.recent == {b"/rest/ping": PathZone.PUBLIC}


@pytest.mark.parametrize(
    "line",
    [
        "GET /rest/ping HTTP/1.1",
        "GET /rest/ping?v=1 HTTP/1.1",
        "GET /rest/ping?v=1?w=2 HTTP/1.0",
        "GET /rest/ping? HTTP/1.1",
        "HEAD /rest/ping HTTP/1.1",
        "POST /rest/ping HTTP/1.1",
        "TRACE /rest/ping HTTP/1.1",
        "get /rest/ping HTTP/1.1",
        "GET /rest/ping HTTP/1.2",
        "GET /rest/ping HTTP/1.11",
        "GET /rest/ping HTTP/1.1 ",
        "GET /rest/ping",
        "GET  /rest/ping HTTP/1.1",
        " GET /rest/ping HTTP/1.1",
        "GET /rest/ping#a HTTP/1.1",
        "GET /rest/ping?a#b HTTP/1.1",
        "GET /rest/ping?a b HTTP/1.1",
        "GET /rest/ping?\x7f HTTP/1.1",
        "GET /rest/ping?\u00e9 HTTP/1.1",
        "GET /rest/ping?\t HTTP/1.1",
        "GET /rest/ping\n HTTP/1.1",
        "GET /rest/ping\r HTTP/1.1",
        "GET /rest/ping?jwt=1 HTTP/1.1",
        "GET http://h/rest/ping HTTP/1.1",
        "GET http://other/rest/ping HTTP/1.1",
        "\r\nGET /rest/ping HTTP/1.1",
    ],
)
def test_a_cached_zone_gives_the_decision_of_a_fresh_one(line: str) -> None:
    cache = DecisionCache(POLICY)
    for _ in range(3):
        cached(cache, head("GET /rest/ping HTTP/1.1", ADA), EDGE)
    assert b"/rest/ping" in cache._caches[True].zones.recent
    text = head(line, ADA)
    for _ in range(3):
        assert explained(cached(cache, text, EDGE)) == explained(decide(text, EDGE, POLICY))


def test_blocks_with_equal_last_bytes_are_told_apart() -> None:
    cache = DecisionCache(POLICY)
    last = f"X-Request-Id: {'x' * 200}"
    texts = [
        head("GET /rest/ping HTTP/1.1", *fields, last)
        for fields in ([ADA], [ADA, "A: 1"], [ADA, "A: 2"], ["X-authentik-username: eve"], [])
    ]
    for number in range(20):
        for text in (*texts, texts[number % len(texts)]):
            assert explained(cached(cache, text, EDGE)) == explained(decide(text, EDGE, POLICY))
    assert len(cache._caches[True].tails) == 3  # one of each length
    text = texts[number % len(texts)]
    # The same peer's blocks, but another peer's decisions.
    assert explained(cached(cache, text, UNTRUSTED)) == explained(decide(text, UNTRUSTED, POLICY))
    two_heads = text + text
    assert cached(cache, two_heads, EDGE).outcome.reason is Reason.MALFORMED_HEAD
    for changed in (text.replace(b"X-Request", b"X-request"), text[:-4] + b"y\r\n\r\n"):
        assert explained(cached(cache, changed, EDGE)) == explained(decide(changed, EDGE, POLICY))


def test_the_blocks_of_one_browser_are_all_found_by_their_last_bytes() -> None:
    cache = DecisionCache(POLICY)
    last = f"X-Request-Id: {'x' * 200}"
    texts = [
        head("GET /rest/ping HTTP/1.1", f"Accept: {accept}", ADA, last)
        for accept in ("*/*", "image/webp", "application/json")
    ]
    for _ in range(TIMES):
        blocks = [cached(cache, text, EDGE).block for text in texts]
    found = [block for _, block in cache._caches[True].tails.recent.values()]
    assert [found.index(block) for block in blocks if block is not None] == [0, 1, 2]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("GET /app/ HTTP/1.1", ADA),
        ("HEAD /app/ HTTP/1.1", ADA),
        ("POST /auth/createAdmin HTTP/1.1", ADA),
        ("POST /api/user HTTP/1.1", "Content-Length: 1"),
        ("POST /rest/ping HTTP/1.1", "Content-Type: application/x-www-form-urlencoded"),
        ("GET /app/ HTTP/1.0", "Connection: keep-alive"),
        ("GET /app/ HTTP/1.0", "Transfer-Encoding: chunked"),
        ("GET /app/ HTTP/1.1", "Connection: close"),
        ("GET /app/ HTTP/1.1", "Connection: upgrade, close"),
        ("GET /app/ HTTP/1.1", "Cookie: jwt=1"),
        ("GET /app/?jwt=1 HTTP/1.1", ADA),
        ("GET /rest/ping?jwt=1 HTTP/1.1", ADA),
        ("GET /app/?apiKey=1 HTTP/1.1", ADA),
        ("GET /_shim/audit HTTP/1.1", ADA),
        ("PUT /app/ HTTP/1.1", "Sec-Fetch-Site: cross-site"),
    ],
)
@pytest.mark.parametrize("peer", [EDGE, UNTRUSTED], ids=["edge", "untrusted"])
def test_a_block_that_is_found_by_its_last_bytes_gives_the_decision_of_a_fresh_one(
    line: str, field: str, peer: Peer
) -> None:
    for policy in (
        POLICY,
        POLICY.next_version(require_identity=True),
        POLICY.next_version(public_path_proof=Proof.SECRET, secrets=(b"s" * 32,)),
    ):
        cache = DecisionCache(policy)
        text = head(line, ADA if field != ADA else "A: b", field)
        fresh = explained(decide(text, peer, policy))
        for _ in range(TIMES + 1):
            # A rejected request alone would not bring its block into the cache.
            cached(cache, b"GET / HTTP/1.1" + text[text.index(b"\r\n") :], peer)
            assert explained(cached(cache, text, peer)) == fresh


def test_a_block_is_found_by_its_last_bytes_with_any_request_line() -> None:
    cache = DecisionCache(POLICY)
    for _ in range(6):
        block = cached(cache, head("GET /rest/ping HTTP/1.1", ADA), EDGE).block
    ((found,),) = [cache._caches[True].tails.recent.values()]
    assert found[1] is block
    for line in ("GET /rest/ping?u=1&t=2", "HEAD /rest/ping", "POST /rest/ping?jwt=1"):
        for version in ("1.0", "1.1"):
            text = head(f"{line} HTTP/{version}", ADA)
            decision = cached(cache, text, EDGE)
            assert decision.block is block
            assert explained(decision) == explained(decide(text, EDGE, POLICY))


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["/", "a", "rest", "app", ".", "..", "?", "%2e", "%41", "%e9", ";", "#", "x"]
        ),
        max_size=6,
    ).map("".join),
    st.sampled_from(["GET", "POST", "PUT", "TRACE"]),
    st.sampled_from(["1.1", "1.0", "1.2"]),
)
def test_any_request_line_is_decided_like_a_fresh_one_again_and_again(
    target: str, method: str, version: str
) -> None:
    cache = DecisionCache(POLICY)
    text = head(f"{method} /{target} HTTP/{version}", ADA)
    fresh = explained(decide(text, EDGE, POLICY))
    for _ in range(4):
        assert explained(cached(cache, text, EDGE)) == fresh


def test_equal_identities_of_two_browsers_are_one_object() -> None:
    cache = DecisionCache(POLICY)
    identities = [
        cached(cache, head("GET / HTTP/1.1", ADA, f"X-Forwarded-For: 192.0.2.{n}"), EDGE).identity
        for n in range(4)
    ]
    assert identities[1] is identities[2] is identities[3]
    other = cached(cache, head("GET / HTTP/1.1", "X-authentik-username: eve"), EDGE).identity
    assert other is not None
    assert other.username == "eve"


def test_a_replaced_cache_is_freed_without_the_garbage_collector() -> None:
    # At the start the shim excludes what exists from garbage collection, also the cache of that time.
    cache = DecisionCache(POLICY)
    for peer in (EDGE, UNTRUSTED):
        for _ in range(TIMES):
            cached(cache, head("GET / HTTP/1.1", ADA, "Cookie: a=b", "Accept: */*"), peer)
    context = cache.connection_context(EDGE, b"http")
    caches = [weakref.ref(each) for each in cache._caches.values()]
    gc.collect()
    gc.disable()
    try:
        del cache
        assert [each() is None for each in caches] == [False, True]
        cached_line = context.caches.lines.recent[b"Accept: */*\r"]
        assert cached_line.value == b"*/*"
        del context
        assert [each() is None for each in caches] == [True, True]
    finally:
        gc.enable()
