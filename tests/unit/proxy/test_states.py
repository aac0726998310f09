"""The transition table, and a connection that follows it."""

from __future__ import annotations

import asyncio

import pytest

from shim.proxy.states import (
    CLOSING,
    FORWARDING,
    READING_HEAD,
    TRANSITIONS,
    TUNNEL,
    IllegalTransition,
    State,
)
from tests.support.http_client import get
from tests.support.running_proxy import EDGE, RunningProxy
from tests.support.scripted_navidrome import Navidrome

PAIRS = [(old, new) for old in TRANSITIONS for new in TRANSITIONS]


def reachable(start: State) -> set[State]:
    found, left = {start}, [start]
    while left:
        new = TRANSITIONS[left.pop()] - found
        found |= new
        left += new
    return found


def test_every_state_has_a_row_and_is_reachable() -> None:
    assert reachable(READING_HEAD) == set(TRANSITIONS)


@pytest.mark.parametrize("state", TRANSITIONS, ids=repr)
def test_every_state_can_be_closed(state: State) -> None:
    assert CLOSING in TRANSITIONS[state]


def test_no_transition_leaves_the_closed_state() -> None:
    assert reachable(CLOSING) == {CLOSING}
    assert reachable(TUNNEL) == {TUNNEL, CLOSING}


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=repr)
async def test_a_connection_makes_the_listed_transitions_only(
    proxy: RunningProxy, old: State, new: State
) -> None:
    client = await proxy.client(EDGE)
    assert (await client.request("BREW / HTTP/1.1\r\nHost: h\r\n\r\n")).status == 501
    connection = proxy.connection_of(client)
    connection.state = old
    if new in TRANSITIONS[old]:
        connection.enter(new)
        assert connection.state is new
        connection.state = READING_HEAD
        client.close()
    else:
        with pytest.raises(IllegalTransition, match=f"no transition from {old} to {new}"):
            connection.enter(new)
        assert connection.state is old
        connection.state = READING_HEAD
        assert connection.transport.is_closing(), "it is aborted"


async def test_an_illegal_transition_aborts_both_connections_and_is_logged(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    raised: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: raised.append(context.get("exception"))
    )
    client = await proxy.client()
    await client.send(get().encode())
    served, _ = await navidrome.requests()
    connection = proxy.connection_of(client)
    assert connection.state is FORWARDING
    connection.state = TUNNEL  # an internal error, as far as the response is concerned
    await served.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    await client.read_to_reset()
    await proxy.until_no_client()
    assert [type(each) for each in raised] == [IllegalTransition]
