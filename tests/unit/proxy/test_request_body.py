"""Bodies that are buffered: within a limit of their own and a budget for all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.http1.chunked import ChunkedError
from shim.http1.framing import CHUNKED
from shim.proxy.request_body import BodyBudget, BodyBuffer, BodyTooLarge, BufferFull


def chunks(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in pieces) + b"0\r\n\r\n"


@given(st.binary(max_size=600), st.booleans(), st.lists(st.integers(1, 700), max_size=8))
def test_a_body_is_the_same_in_any_slicing(body: bytes, chunked: bool, cuts: list[int]) -> None:
    budget = BodyBudget(1000)
    buffer = BodyBuffer(CHUNKED if chunked else len(body), 600, budget, trusted=True)
    sent = (chunks(body, 7) if chunked else body) + b"GET "
    rest = b""
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(sent)], strict=True):
        rest += sent[start:end] if buffer.done else buffer.feed(sent[start:end])
    assert buffer.done
    assert (buffer.take(), rest) == (body, b"GET ")
    assert budget.used == len(body)
    buffer.release()
    buffer.release()
    assert budget.used == 0


def test_a_body_over_its_limit_is_too_large_at_once_where_its_length_says_so() -> None:
    budget = BodyBudget(1000)
    with pytest.raises(BodyTooLarge):
        BodyBuffer(101, 100, budget, trusted=True)
    buffer = BodyBuffer(CHUNKED, 100, budget, trusted=True)
    with pytest.raises(BodyTooLarge):
        buffer.feed(chunks(bytes(101), 50))
    assert budget.used == 0


def test_a_body_of_many_chunks_is_too_large() -> None:
    budget = BodyBudget(1 << 20)
    with pytest.raises(BodyTooLarge):
        BodyBuffer(CHUNKED, 1 << 20, budget, trusted=True).feed(chunks(bytes(5000), 1))
    buffer = BodyBuffer(CHUNKED, 1 << 20, budget, trusted=True)
    buffer.feed(chunks(bytes(1 << 20), 1024))
    assert buffer.take() == bytes(1 << 20)


def test_a_body_in_no_coding_is_an_error() -> None:
    with pytest.raises(ChunkedError):
        BodyBuffer(CHUNKED, 100, BodyBudget(100), trusted=True).feed(b"x\r\n")


def test_peers_that_are_not_trusted_share_half_of_the_budget() -> None:
    budget = BodyBudget(100)
    stranger = BodyBuffer(100, 100, budget, trusted=False)
    stranger.feed(bytes(50))
    with pytest.raises(BufferFull):
        stranger.feed(b"x")
    trusted = BodyBuffer(50, 100, budget, trusted=True)
    trusted.feed(bytes(50))
    with pytest.raises(BufferFull):
        BodyBuffer(1, 100, budget, trusted=True).feed(b"x")
    stranger.release()
    BodyBuffer(50, 100, budget, trusted=False).feed(bytes(50))
