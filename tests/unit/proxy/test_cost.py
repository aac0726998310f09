"""Bounded work: 64 kB of the worst input known for each parser cost a bounded number of Python instructions.

Instructions are counted, not time: what loops in C is linear and measured by hand, with
`python -m tests.bench.worst_inputs`.
"""

from __future__ import annotations

import pytest

from tests.bench import worst_inputs
from tests.bench.worst_inputs import (
    FORMS,
    HEADS,
    PAGES,
    RESPONSES,
    TOKENS,
    decide_head,
    read_form,
    read_response,
)
from tests.support.instructions import instructions

_HEADS = HEADS | TOKENS

# An ordinary request of a browser takes 3,000 to 5,000; a loop over 64 kB takes hundreds of thousands.
MAX_INSTRUCTIONS = 40_000


@pytest.mark.parametrize("address", ["10.0.0.2", "203.0.113.9"])
@pytest.mark.parametrize("name", _HEADS)
def test_a_head_costs_bounded_work_from_any_peer(name: str, address: str) -> None:
    decide_head(
        _HEADS[name], worst_inputs.POLICY, address
    )  # the work of the first parse, which is cached, is not counted
    cost = instructions(lambda: decide_head(_HEADS[name], worst_inputs.POLICY, address))
    assert cost < MAX_INSTRUCTIONS


@pytest.mark.parametrize("name", PAGES)
def test_a_page_without_an_identity_costs_bounded_work(name: str) -> None:
    decide_head(PAGES[name], worst_inputs.PAGES_POLICY, "10.0.0.2")
    cost = instructions(lambda: decide_head(PAGES[name], worst_inputs.PAGES_POLICY, "10.0.0.2"))
    assert cost < MAX_INSTRUCTIONS


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response_head_costs_bounded_work(name: str) -> None:
    read_response(RESPONSES[name])
    assert instructions(lambda: read_response(RESPONSES[name])) < MAX_INSTRUCTIONS


@pytest.mark.parametrize("name", FORMS)
def test_a_form_costs_bounded_work(name: str) -> None:
    assert instructions(lambda: read_form(FORMS[name])) < MAX_INSTRUCTIONS


def test_an_ordinary_loop_is_counted() -> None:
    assert instructions(lambda: [byte + 1 for byte in bytes(10_000)]) > MAX_INSTRUCTIONS
