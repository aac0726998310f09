"""Define the states of a client connection, and every transition that is allowed between them.

The table below is the only definition of the transitions. `ClientConnection.enter` checks each
transition against it: one that is not listed is a defect of the shim, so the connection is aborted, and
`IllegalTransition` reaches the event loop, which logs it.

    READING_HEAD ─▶ VERIFYING ─▶ FETCHING_JWKS ─▶ PROVISIONING ─▶ BUFFERING_FORM ─▶ CONNECTING ─▶ FORWARDING
         ▲                                                                                        │      │
         └─────────────────────────────────── next request ───────────────────────────────────────┘    TUNNEL

A request skips each state it does not need; most go from READING_HEAD to FORWARDING and back.
"""

from __future__ import annotations


class State:
    """A state of a connection. Compared and hashed by identity, which is cheaper than an enum."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


READING_HEAD = State("READING_HEAD")  # idle, or a request head is incomplete
VERIFYING = State("VERIFYING")  # a token waits in the verification queue
FETCHING_JWKS = State("FETCHING_JWKS")  # the key set is fetched again, once
PROVISIONING = State("PROVISIONING")  # waits for the account gate
BUFFERING_FORM = State("BUFFERING_FORM")  # a body is read before the request is sent
CONNECTING = State("CONNECTING")  # waits for an upstream connection
FORWARDING = State("FORWARDING")  # the request is sent to Navidrome, the response to the client
TUNNEL = State("TUNNEL")  # WebSocket: bytes are forwarded unchanged
CLOSING = State("CLOSING")  # the last response was sent; reading has ended

_REJECTED = {READING_HEAD, CLOSING}  # with the connection kept open, or closed

TRANSITIONS: dict[State, frozenset[State]] = {
    READING_HEAD: frozenset(
        {VERIFYING, FETCHING_JWKS, PROVISIONING, BUFFERING_FORM, CONNECTING, FORWARDING, *_REJECTED}
    ),
    # The policy changed while the token waited: it is queued again, under the new policy.
    VERIFYING: frozenset(
        {VERIFYING, FETCHING_JWKS, PROVISIONING, BUFFERING_FORM, CONNECTING, FORWARDING, *_REJECTED}
    ),
    FETCHING_JWKS: frozenset(
        {VERIFYING, PROVISIONING, BUFFERING_FORM, CONNECTING, FORWARDING, *_REJECTED}
    ),
    PROVISIONING: frozenset({BUFFERING_FORM, CONNECTING, FORWARDING, *_REJECTED}),
    # The account was revoked during the wait for the form or the connection: provisioning runs again.
    BUFFERING_FORM: frozenset({PROVISIONING, CONNECTING, FORWARDING, *_REJECTED}),
    CONNECTING: frozenset({PROVISIONING, FORWARDING, *_REJECTED}),
    # An idle upstream connection was already closed: the request is sent over another one.
    FORWARDING: frozenset({READING_HEAD, CONNECTING, TUNNEL, CLOSING}),
    TUNNEL: frozenset({CLOSING}),
    CLOSING: frozenset({CLOSING}),
}


class IllegalTransition(RuntimeError):
    """A transition that the table does not list."""

    def __init__(self, old: State, new: State) -> None:
        super().__init__(f"no transition from {old} to {new}")
