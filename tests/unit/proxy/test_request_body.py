"""Buffered bodies: within a limit for each and a budget for all."""

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
    budget = BodyBudget(8000)
    buffer = BodyBuffer(
        CHUNKED if chunked else len(body), 600, budget.share(b"192.0.2.1", trusted=True)
    )
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


def test_a_content_length_over_the_limit_is_rejected_at_once() -> None:
    budget = BodyBudget(8000)
    with pytest.raises(BodyTooLarge):
        BodyBuffer(101, 100, budget.share(b"192.0.2.1", trusted=True))
    buffer = BodyBuffer(CHUNKED, 100, budget.share(b"192.0.2.1", trusted=True))
    with pytest.raises(BodyTooLarge):
        buffer.feed(chunks(bytes(101), 50))
    assert budget.used == 0


def test_a_body_of_many_chunks_over_the_limit_is_rejected() -> None:
    budget = BodyBudget(1 << 23)
    with pytest.raises(BodyTooLarge):
        BodyBuffer(CHUNKED, 1 << 20, budget.share(b"192.0.2.1", trusted=True)).feed(
            chunks(bytes(5000), 1)
        )
    buffer = BodyBuffer(CHUNKED, 1 << 20, budget.share(b"192.0.2.1", trusted=True))
    buffer.feed(chunks(bytes(1 << 20), 1024))
    assert buffer.take() == bytes(1 << 20)


def test_a_body_with_another_coding_is_an_error() -> None:
    with pytest.raises(ChunkedError):
        BodyBuffer(CHUNKED, 100, BodyBudget(800).share(b"", trusted=True)).feed(b"x\r\n")


def buffer_of(budget: BodyBudget, client: bytes | None, *, trusted: bool = True) -> BodyBuffer:
    return BodyBuffer(1000, 1000, budget.share(client, trusted=trusted))


def test_untrusted_peers_share_half_of_the_budget() -> None:
    budget = BodyBudget(800)
    untrusted = [buffer_of(budget, b"192.0.2.%d" % n, trusted=False) for n in range(5)]
    for buffer in untrusted[:4]:
        buffer.feed(bytes(100))
    with pytest.raises(BufferFull):
        untrusted[4].feed(b"x")
    trusted = [buffer_of(budget, b"198.51.100.%d" % n) for n in range(5)]
    for buffer in trusted[:4]:
        buffer.feed(bytes(100))
    with pytest.raises(BufferFull):
        trusted[4].feed(b"x")
    untrusted[0].release()
    untrusted[4].feed(bytes(100))


@pytest.mark.parametrize(
    ("client", "same", "other"),
    [
        (b"192.0.2.1", b"192.0.2.1", b"192.0.2.2"),
        (b"2001:db8::1", b"2001:db8::ffff:1", b"2001:db8:0:1::1"),
        (None, None, b"192.0.2.1"),
    ],
)
def test_one_client_can_use_an_eighth_of_the_budget(
    client: bytes | None, same: bytes | None, other: bytes
) -> None:
    budget = BodyBudget(800)
    first, second = buffer_of(budget, client), buffer_of(budget, same)
    first.feed(bytes(60))
    second.feed(bytes(40))
    with pytest.raises(BufferFull):
        second.feed(b"x")
    buffer_of(budget, other).feed(bytes(100))
    first.release()
    second.feed(bytes(60))
    assert budget.used == 200
