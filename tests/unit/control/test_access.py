"""Who is let into the control plane: by which address, with which proof, over which way."""

from __future__ import annotations

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from shim.control.access import CHANNEL_HEADER, USER_HEADER, Access, Caller

SECRET = "s" * 43
TOKEN = "t" * 32
LOOPBACK = ("127.0.0.1", 50_000)
STRANGER = ("192.0.2.7", 50_000)


def request(
    *headers: tuple[str, str],
    client: tuple[str, int] | None = LOOPBACK,
    server: tuple[str, int | None] = ("127.0.0.1", 4535),
    host: str | None = "127.0.0.1:4535",
) -> Request:
    lines = [*headers, *([("Host", host)] if host is not None else [])]
    return Request(
        {
            "type": "http",
            "method": "GET",
            "path": "/metrics",
            "headers": [(name.lower().encode(), value.encode("utf-8")) for name, value in lines],
            "client": client,
            "server": server,
        }
    )


def refused(access: Access, asked: Request) -> int:
    with pytest.raises(HTTPException) as fault:
        access.authorize(asked)
    return fault.value.status_code


def bearer(token: str, scheme: str = "Bearer") -> tuple[str, str]:
    return ("Authorization", f"{scheme} {token}")


OPEN = Access(channel_secret=SECRET, token=None, hosts=["127.0.0.1"])
CLOSED = Access(channel_secret=SECRET, token=TOKEN, hosts=["0.0.0.0"])


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
def test_without_a_token_this_machine_is_let_in(client: str) -> None:
    assert OPEN.authorize(request(client=(client, 1))) == Caller(None)


@pytest.mark.parametrize("client", ["192.0.2.7", "::ffff:192.0.2.7", "2001:db8::1", "testclient"])
def test_without_a_token_nobody_else_is(client: str) -> None:
    assert refused(OPEN, request(client=(client, 1))) == 403


def test_a_unix_socket_is_this_machine() -> None:
    asked = request(client=None, server=("/run/control.sock", None), host="localhost")
    assert OPEN.authorize(asked) == Caller(None)


def test_a_peer_that_is_gone_is_not_taken_for_a_unix_socket() -> None:
    assert refused(OPEN, request(client=None)) == 403


@pytest.mark.parametrize(
    "name", ["Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP"]
)
def test_without_a_token_a_proxy_on_this_machine_lets_nobody_in(name: str) -> None:
    assert refused(OPEN, request((name, "127.0.0.1"))) == 403


@pytest.mark.parametrize("client", [LOOPBACK, STRANGER])
def test_with_a_token_nobody_is_let_in_without_it(client: tuple[str, int]) -> None:
    assert refused(CLOSED, request(client=client)) == 401
    assert refused(CLOSED, request(bearer("wrong"), client=client)) == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_token_lets_in(scheme: str) -> None:
    assert CLOSED.authorize(request(bearer(TOKEN, scheme), client=STRANGER)) == Caller(None)


@pytest.mark.parametrize(
    "headers",
    [
        [bearer(TOKEN, "Basic")],
        [bearer(TOKEN + "x")],
        [bearer(TOKEN[:-1])],
        [bearer("")],
        [("Authorization", TOKEN)],
        [bearer(TOKEN), bearer(TOKEN)],
        [bearer("é" * 32)],
    ],
)
def test_what_is_not_exactly_the_token_does_not(headers: list[tuple[str, str]]) -> None:
    assert refused(CLOSED, request(*headers)) == 401


def test_a_token_that_nobody_set_lets_nobody_in() -> None:
    assert refused(OPEN, request(bearer(""), client=STRANGER)) == 403
    assert refused(OPEN, request(bearer("None"), client=STRANGER)) == 403


@pytest.mark.parametrize(("secret", "token"), [("", None), (SECRET, "")])
def test_an_empty_secret_or_token_is_a_fault(secret: str, token: str | None) -> None:
    with pytest.raises(ValueError, match="empty"):
        Access(channel_secret=secret, token=token)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:4535", "127.0.0.1", "localhost:4535", "LocalHost", "[::1]:4535", "[::1]"],
)
def test_this_machine_may_be_asked_for_by_loopback(host: str) -> None:
    assert OPEN.authorize(request(host=host)) == Caller(None)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:4535",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "192.0.2.1:4535",
        "[2001:db8::1]:4535",
        "2130706433",
        "",
        None,
    ],
)
def test_a_name_that_was_made_to_point_here_is_rejected(host: str | None) -> None:
    assert refused(OPEN, request(host=host)) == 421
    with pytest.raises(HTTPException):
        OPEN.check_host(request(host=host))


def test_two_hosts_are_rejected() -> None:
    assert refused(OPEN, request(("Host", "localhost"))) == 421


def test_the_address_that_is_listened_on_may_be_asked_for() -> None:
    access = Access(channel_secret=SECRET, token=None, hosts=["192.0.2.1", "[2001:DB8::1]", "Nas"])

    for host in ("192.0.2.1:4535", "[2001:db8::1]:4535", "nas:4535"):
        assert access.authorize(request(host=host)) == Caller(None)


@pytest.mark.parametrize("everywhere", ["0.0.0.0", "::", "[::]"])
def test_who_listens_everywhere_may_be_asked_for_by_any_address_but_not_by_name(
    everywhere: str,
) -> None:
    access = Access(channel_secret=SECRET, token=None, hosts=[everywhere])

    assert access.authorize(request(host="192.0.2.1:4535")) == Caller(None)
    assert refused(access, request(host="evil.example")) == 421


def test_who_has_the_token_may_ask_by_any_name() -> None:
    # A page that was led here by a name of its own doesn't know the token.
    assert CLOSED.authorize(request(bearer(TOKEN), host="shim:4535")) == Caller(None)
    CLOSED.check_host(request(bearer(TOKEN), host="shim:4535"))


def channel(*headers: tuple[str, str], secret: str = SECRET) -> Request:
    return request((CHANNEL_HEADER, secret), *headers, host="music.example")


def test_the_private_channel_brings_the_user_and_needs_no_token() -> None:
    assert CLOSED.authorize(channel((USER_HEADER, "Zoë"))) == Caller("Zoë")
    CLOSED.check_host(channel((USER_HEADER, "Zoë")))


@pytest.mark.parametrize(
    "asked",
    [
        channel((USER_HEADER, "ada"), secret="wrong"),
        channel((USER_HEADER, "ada"), secret=""),
        channel((USER_HEADER, "ada"), secret="é"),
        channel((USER_HEADER, "ada"), (CHANNEL_HEADER, SECRET)),
        channel((USER_HEADER, "ada"), (USER_HEADER, "admin")),
        channel((USER_HEADER, "")),
        channel(),
        channel((USER_HEADER, "ada"), bearer(TOKEN), secret="wrong"),
    ],
)
def test_a_private_channel_that_is_none_finds_nothing_even_on_loopback(asked: Request) -> None:
    for access in (OPEN, CLOSED):
        assert refused(access, asked) == 404
        with pytest.raises(HTTPException):
            access.check_host(asked)


def test_a_user_name_without_the_channel_counts_for_nothing() -> None:
    assert OPEN.authorize(request((USER_HEADER, "admin"))) == Caller(None)
