"""What is remembered of header blocks and lines, seen from outside: the same answers, within bounds.

That a remembered answer is the fresh one is held by every test of this folder (`asking.judged`); here it
is asked in shuffled orders, and what must not be kept is looked for.
"""

from __future__ import annotations

import gc
import random
import tracemalloc
from types import TracebackType

from hypothesis import given, settings
from hypothesis import strategies as st

from shim.trust.cached_decisions import DecisionCache
from shim.trust.decision import decide
from shim.trust.peers import Peer, parse_peer
from shim.trust.policy import Policy
from shim.trust.reasons import Reason
from tests.support.decisions import ADA, ANYONE, EDGE, POLICY, cached, explained, head, trusting
from tests.support.request_strategies import policies, requests

Asked = tuple[bytes, Peer]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(requests(), st.sampled_from((EDGE, ANYONE))), min_size=1, max_size=6),
    policies(),
    st.randoms(use_true_random=False),
)
def test_a_remembered_response_is_the_fresh_one_in_any_order_and_under_the_next_policy(
    asked: list[Asked], policy: Policy, order: random.Random
) -> None:
    # The same block from both, so that each could be taken for the other's.
    questions = [(text, peer) for text, _ in asked for peer in (EDGE, ANYONE)] + asked
    for now in (policy, policy.next_version(suspended=not policy.suspended)):
        memory = DecisionCache(now)
        for _ in range(3):
            order.shuffle(questions)
            for text, peer in questions:
                for scheme in (b"http", b"https"):
                    remembered = cached(memory, text, peer, scheme)
                    assert explained(remembered) == explained(decide(text, peer, now, scheme))


def test_a_block_is_remembered_when_it_is_seen_a_second_time_whatever_its_line() -> None:
    memory = DecisionCache(POLICY)
    first, second, third = (
        cached(memory, head(f"GET /app/{number} HTTP/1.1", ADA), EDGE) for number in range(3)
    )
    assert second.block is not first.block
    assert third.block is second.block
    assert third.render_head().startswith(b"GET /app/2 HTTP/1.1\r\n")


def test_a_block_is_remembered_for_its_peer_and_its_scheme_alone() -> None:
    policy = Policy(whitelist=trusting("127.0.0.0/8"))
    memory = DecisionCache(policy)
    text = head("GET /app/ HTTP/1.1", ADA)
    for _ in range(3):
        kept = cached(memory, text, EDGE)
    assert cached(memory, text, EDGE).block is kept.block
    for peer, scheme in ((parse_peer("127.0.0.3"), b"http"), (EDGE, b"https")):
        other = cached(memory, text, peer, scheme)
        assert other.block is not kept.block
        assert explained(other) == explained(decide(text, peer, policy, scheme))


def test_a_new_policy_has_a_memory_of_its_own() -> None:
    memory = DecisionCache(POLICY)
    text = head("GET /app/ HTTP/1.1", ADA)
    for _ in range(3):
        assert cached(memory, text, EDGE).outcome.reason is Reason.TRUSTED_PEER
    renewed = DecisionCache(POLICY.next_version(whitelist=trusting("10.0.0.1")))
    assert cached(renewed, text, EDGE).outcome.reason is Reason.UNTRUSTED_PEER


def test_a_rejected_block_is_not_remembered() -> None:
    memory = DecisionCache(POLICY)
    text = head("GET /app/ HTTP/1.1", ADA, ADA)
    asked = [cached(memory, text, EDGE) for _ in range(4)]
    assert {decision.outcome.reason for decision in asked} == {Reason.IDENTITY_DUPLICATE}
    assert len({id(decision.block) for decision in asked}) == len(asked)


def test_peers_that_are_not_listed_push_nobody_out() -> None:
    memory = DecisionCache(POLICY)
    text = head("GET /app/ HTTP/1.1", ADA)
    for _ in range(3):
        kept = cached(memory, text, EDGE)
    for number in range(1500):
        flood = head("GET /rest/ping HTTP/1.1", f"X-Forwarded-For: {number}", f"Cookie: {number}")
        for _ in range(3):
            cached(memory, flood, ANYONE)
    assert cached(memory, text, EDGE).block is kept.block


def test_a_flood_through_the_edge_does_not_push_out_who_keeps_asking() -> None:
    memory = DecisionCache(POLICY)
    text = head("GET /app/ HTTP/1.1", ADA)
    for _ in range(3):
        kept = cached(memory, text, EDGE)
    for number in range(1500):
        flood = head("GET /rest/ping HTTP/1.1", f"X-Forwarded-For: {number}", f"Cookie: {number}")
        for _ in range(3):
            cached(memory, flood, EDGE)
        if number % 100 == 0:
            assert cached(memory, text, EDGE).block is kept.block, number


def test_what_is_remembered_is_bounded_in_bytes() -> None:
    """Large lines that matter, each often enough to be remembered, in blocks that never repeat."""
    memory = DecisionCache(POLICY)
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
                cached(memory, text, EDGE if number % 2 else ANYONE)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 16 << 20


def test_a_remembered_fault_does_not_keep_the_frames_that_it_was_raised_in() -> None:
    memory = DecisionCache(POLICY)

    def ask(number: int) -> None:
        other = f"X-Forwarded-For: {number}"  # so that the rest of what matters is never the same
        text = head("GET /app/ HTTP/1.1", b"X-authentik-username: \xff", other)
        assert cached(memory, text, EDGE).outcome.reason is Reason.IDENTITY_INVALID

    def tracebacks() -> int:
        gc.collect()
        return sum(isinstance(each, TracebackType) for each in gc.get_objects())

    for number in range(5):
        ask(number)
    before = tracebacks()
    for number in range(5, 105):
        ask(number)
    assert tracebacks() <= before + 5


def test_a_remembered_block_says_nothing_behind_a_line_that_can_not_be_read() -> None:
    memory = DecisionCache(POLICY)
    for _ in range(3):
        cached(memory, head("GET /app/ HTTP/1.1", ADA), EDGE)
    for line in ("GET // HTTP/1.1", "TRACE /app/ HTTP/1.1", "GET /app/"):
        text = head(line, ADA)
        assert explained(cached(memory, text, EDGE)) == explained(decide(text, EDGE, POLICY))
