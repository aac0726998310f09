"""Access to the control plane, and its rights: by address, credential and channel."""

from __future__ import annotations

import asyncio
from urllib.parse import urlencode

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from shim.audit.events import Event, to_record
from shim.control.access import (
    ADMIN_HEADER,
    CHANNEL_HEADER,
    IDENTITY_HEADER,
    UID_HEADER,
    USER_HEADER,
    Access,
    Caller,
    channel_lines,
)
from shim.control.csrf import CSRF_FIELD, CSRF_HEADER
from shim.control.form_keys import FormKeys
from shim.control.keys import ControlKey
from shim.control.sessions import SESSION_COOKIE, SIGN_IN_TRIES
from shim.trust.identity import Identity

SECRET = "s" * 43
TOKEN = "t" * 32
LOOPBACK = ("127.0.0.1", 50_000)
UNTRUSTED = ("192.0.2.7", 50_000)
LOCAL = Caller("loopback", client="127.0.0.1", may_write=False)


def request(
    *headers: tuple[str, str],
    client: tuple[str, int] | None = LOOPBACK,
    server: tuple[str, int | None] = ("127.0.0.1", 4535),
    host: str | None = "127.0.0.1:4535",
    method: str = "GET",
    form: dict[str, str] | None = None,
    query: bytes = b"",
) -> Request:
    lines = [*headers, *([("Host", host)] if host is not None else [])]
    if form is not None:
        lines.append(("Content-Type", "application/x-www-form-urlencoded"))

    async def receive() -> Message:
        return {"type": "http.request", "body": urlencode(form or {}).encode()}

    return Request(
        {
            "type": "http",
            "method": method,
            "path": "/metrics",
            "query_string": query,
            "headers": [(name.lower().encode(), value.encode("utf-8")) for name, value in lines],
            "client": client,
            "server": server,
        },
        receive,
    )


def post(*headers: tuple[str, str], **options: object) -> Request:
    return request(*headers, method="POST", **options)  # type: ignore[arg-type]


def refused(access: Access, incoming: Request) -> int:
    with pytest.raises(HTTPException) as fault:
        access.identify(incoming)
    return fault.value.status_code


def write_status(access: Access, incoming: Request) -> int:
    """Return 200 if this client may write, else the status of the refusal."""
    try:
        asyncio.run(access.authorize_write(incoming))
    except HTTPException as fault:
        return fault.status_code
    return 200


def reload_status(access: Access, incoming: Request) -> int:
    try:
        asyncio.run(access.authorize_reload(incoming))
    except HTTPException as fault:
        return fault.status_code
    return 200


def bearer(token: str, scheme: str = "Bearer") -> tuple[str, str]:
    return ("Authorization", f"{scheme} {token}")


def closed(token: str = TOKEN, key: ControlKey | None = None) -> Access:
    return Access(channel_secret=SECRET, token=token, hosts=["0.0.0.0"], key=key)


OPEN = Access(channel_secret=SECRET, token=None, hosts=["127.0.0.1"])
CLOSED = closed()


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
def test_without_a_token_this_machine_can_read_and_reload(client: str) -> None:
    incoming = request(client=(client, 1))
    assert OPEN.identify(incoming) == Caller("loopback", client=client, may_write=False)
    assert reload_status(OPEN, post(client=(client, 1))) == 200
    assert write_status(OPEN, post(client=(client, 1))) == 403


@pytest.mark.parametrize("client", ["192.0.2.7", "::ffff:192.0.2.7", "2001:db8::1", "testclient"])
def test_without_a_token_no_other_machine_has_access(client: str) -> None:
    assert refused(OPEN, request(client=(client, 1))) == 403


def test_a_unix_socket_counts_as_this_machine() -> None:
    incoming = request(client=None, server=("/run/control.sock", None), host="localhost")
    assert OPEN.identify(incoming) == Caller("loopback", client="@", may_write=False)


def test_a_disconnected_peer_is_not_mistaken_for_a_unix_socket() -> None:
    assert refused(OPEN, request(client=None)) == 403


@pytest.mark.parametrize(
    "name", ["Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP"]
)
def test_without_a_token_a_proxy_on_this_machine_grants_no_access(name: str) -> None:
    assert refused(OPEN, request((name, "127.0.0.1"))) == 403


@pytest.mark.parametrize("client", [LOOPBACK, UNTRUSTED])
def test_with_a_token_every_request_requires_it(client: tuple[str, int]) -> None:
    assert refused(CLOSED, request(client=client)) == 401
    assert refused(CLOSED, request(bearer("wrong"), client=client)) == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_token_grants_write_access(scheme: str) -> None:
    incoming = post(bearer(TOKEN, scheme), client=UNTRUSTED)
    assert CLOSED.identify(incoming) == Caller("token", client="192.0.2.7")
    assert write_status(CLOSED, incoming) == 200
    assert reload_status(CLOSED, incoming) == 200


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
def test_a_value_that_is_not_exactly_the_token_is_rejected(headers: list[tuple[str, str]]) -> None:
    assert refused(CLOSED, request(*headers)) == 401


def test_an_unset_token_grants_no_access() -> None:
    assert refused(OPEN, request(bearer(""), client=UNTRUSTED)) == 403
    assert refused(OPEN, request(bearer("None"), client=UNTRUSTED)) == 403


@pytest.mark.parametrize(("secret", "token"), [("", None), (SECRET, "")])
def test_an_empty_secret_or_token_is_a_fault(secret: str, token: str | None) -> None:
    with pytest.raises(ValueError, match="empty"):
        Access(channel_secret=secret, token=token)


# Host


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:4535", "127.0.0.1", "localhost:4535", "LocalHost", "[::1]:4535", "[::1]"],
)
def test_loopback_host_names_are_allowed_on_this_machine(host: str) -> None:
    assert OPEN.identify(request(host=host)) == LOCAL


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:4535",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "192.0.2.1:4535",
        "[2001:db8::1]:4535",
        "[::1]evil.example",
        "[127.0.0.1].evil.example:4535",
        "2130706433",
        "",
        None,
    ],
)
def test_a_rebound_dns_name_is_rejected(host: str | None) -> None:
    assert refused(OPEN, request(host=host)) == 421
    assert reload_status(OPEN, post(host=host)) == 421
    with pytest.raises(HTTPException):
        asyncio.run(OPEN.check_host(request(host=host)))


def test_a_session_and_a_sign_in_are_rejected_with_another_host_too() -> None:
    access = closed()
    cookie = sign_in(access)
    assert refused(access, request(("Cookie", cookie), host="evil.example")) == 421
    with pytest.raises(HTTPException) as fault:
        asyncio.run(access.sign_in(post(host="evil.example"), TOKEN))
    assert fault.value.status_code == 421


def test_two_host_headers_are_rejected() -> None:
    assert refused(OPEN, request(("Host", "localhost"))) == 421


def test_the_listening_address_is_an_allowed_host() -> None:
    access = Access(channel_secret=SECRET, token=None, hosts=["192.0.2.1", "[2001:DB8::1]", "Nas"])

    for host in ("192.0.2.1:4535", "[2001:db8::1]:4535", "nas:4535"):
        assert access.identify(request(host=host)) == LOCAL


@pytest.mark.parametrize("everywhere", ["0.0.0.0", "::", "[::]"])
def test_a_wildcard_listener_allows_any_address_as_host_but_no_name(
    everywhere: str,
) -> None:
    access = Access(channel_secret=SECRET, token=None, hosts=[everywhere])

    assert access.identify(request(host="192.0.2.1:4535")) == LOCAL
    assert refused(access, request(host="evil.example")) == 421


def test_a_request_with_the_token_may_use_any_host() -> None:
    # A page that uses DNS rebinding doesn't know the token.
    assert CLOSED.identify(request(bearer(TOKEN), host="shim:4535")).actor == "token"
    asyncio.run(CLOSED.check_host(request(bearer(TOKEN), host="shim:4535")))


# the private channel


def channel(*headers: tuple[str, str], secret: str = SECRET, method: str = "GET") -> Request:
    return request((CHANNEL_HEADER, secret), *headers, host="music.example", method=method)


def admin(*headers: tuple[str, str], uid: str = "u-1", method: str = "GET") -> Request:
    person = ((USER_HEADER, "Zoë"), (UID_HEADER, uid), (ADMIN_HEADER, "1"))
    return channel(*person, ("X-Real-IP", "192.0.2.9"), *headers, method=method)


def test_the_private_channel_authenticates_an_administrator_without_a_token() -> None:
    caller = CLOSED.identify(admin())
    assert caller == Caller(
        "console:Zoë",
        user="Zoë",
        uid="u-1",
        client="192.0.2.9",
        csrf_subject="uid:u-1",
        identity=Identity("Zoë", uid="u-1"),
    )
    assert asyncio.run(CLOSED.authorize(admin())) == caller
    asyncio.run(CLOSED.check_host(admin()))


@pytest.mark.parametrize("rights", ["", "0", "yes", "11"])
def test_a_user_without_rights_is_identified_and_gets_404(rights: str) -> None:
    incoming = channel((USER_HEADER, "eve"), (UID_HEADER, "u-2"), (ADMIN_HEADER, rights))
    caller = CLOSED.identify(incoming)
    assert (caller.user, caller.is_admin, caller.may_write, caller.may_reload) == (
        "eve",
        False,
        False,
        False,
    )
    with pytest.raises(HTTPException) as fault:
        asyncio.run(CLOSED.authorize(incoming))
    assert fault.value.status_code == 404
    assert write_status(CLOSED, incoming) == reload_status(CLOSED, incoming) == 404


@pytest.mark.parametrize(
    "incoming",
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
def test_an_invalid_private_channel_gets_404_even_on_loopback(incoming: Request) -> None:
    for access in (OPEN, CLOSED):
        assert refused(access, incoming) == 404
        with pytest.raises(HTTPException):
            asyncio.run(access.check_host(incoming))


def test_a_user_name_outside_the_channel_is_ignored() -> None:
    incoming = request((USER_HEADER, "admin"), (ADMIN_HEADER, "1"))
    assert OPEN.identify(incoming) == LOCAL
    assert refused(CLOSED, incoming) == 401


def test_the_headers_of_the_channel_are_the_ones_that_are_read() -> None:
    identity = Identity(
        "Zoë", "Zoë Ä", None, ("a|b", "\u202e"), uid="u-1", uid_source="header X-authentik-uid"
    )
    lines = channel_lines(SECRET) % ("Zoë".encode(), b"u-1", b"1", identity.as_json())
    fields = [line.split(": ", 1) for line in lines.decode().split("\r\n")[:-1]]
    incoming = request(*((name, value) for name, value in fields), host="music.example")
    assert CLOSED.identify(incoming).user == "Zoë"
    assert CLOSED.identify(incoming).is_admin
    assert CLOSED.identify(incoming).identity == identity


def test_a_client_that_sends_an_identity_of_its_own_adds_nothing() -> None:
    forged = Identity("eve", groups=("admins",), uid="u-2", uid_source="forged").as_json().decode()
    incoming = channel(
        (USER_HEADER, "eve"),
        (UID_HEADER, "u-2"),
        (IDENTITY_HEADER, forged),
        (IDENTITY_HEADER, Identity("eve", uid="u-2").as_json().decode()),
    )
    assert CLOSED.identify(incoming).identity == Identity("eve", uid="u-2")


# form keys


def test_the_key_of_a_form_is_of_one_client_and_expires() -> None:
    now = [1000.0]
    keys = FormKeys(ControlKey(), lambda: now[0])
    first, second = keys.issue("uid:1"), keys.issue("uid:1")
    found = keys.read(first, "uid:1")
    assert found is not None and found != keys.read(second, "uid:1")
    assert keys.read(first, "uid:2") is None
    for wrong in ("", ".", "..", "a.b.c", first[:-1], first.replace(found, "0" * 16)):
        assert keys.read(wrong, "uid:1") is None
    assert FormKeys(ControlKey(), lambda: now[0]).read(first, "uid:1") is None
    now[0] += 12 * 3600
    assert keys.read(first, "uid:1") is None


# sessions


def sign_in(access: Access) -> str:
    """Return the Cookie header of a new session."""
    return f"{SESSION_COOKIE}={asyncio.run(access.sign_in(post(), TOKEN))}"


def test_a_session_has_the_rights_of_its_token() -> None:
    access = closed()
    caller = access.identify(request(("Cookie", sign_in(access)), client=UNTRUSTED))
    assert (caller.actor, caller.client, caller.may_write) == ("token", "192.0.2.7", True)
    assert caller.session is not None


def test_signing_in_and_out_is_recorded() -> None:
    events: list[Event] = []
    access = Access(channel_secret=SECRET, token=TOKEN, hosts=["0.0.0.0"], record=events.append)
    cookie = ("Cookie", sign_in(access))
    access.sign_out(access.identify(request(cookie)))
    access.sign_out(access.identify(request(bearer(TOKEN))))  # no session: nothing ends
    records = [to_record(event) for event in events]
    assert [(each["action"], each["actor"], each["client"]) for each in records] == [
        ("console.sign_in", "token", "127.0.0.1"),
        ("console.sign_out", "token", "127.0.0.1"),
    ]
    assert {each["origin"] for each in records} == {"console"}


def test_a_session_ends_when_it_is_signed_out() -> None:
    access = closed()
    first, second = sign_in(access), sign_in(access)
    access.sign_out(access.identify(request(("Cookie", first))))
    assert refused(access, request(("Cookie", first))) == 401
    assert access.identify(request(("Cookie", second))).actor == "token"


def test_a_session_ends_when_the_token_changes_and_survives_a_restart() -> None:
    key = ControlKey()
    cookie = ("Cookie", sign_in(closed(key=key)))
    assert closed(key=key).identify(request(cookie)).actor == "token"
    assert refused(closed("n" * 32, key), request(cookie)) == 401
    assert refused(closed(), request(cookie)) == 401
    assert OPEN.identify(request(cookie)) == LOCAL  # no token: no sessions


def test_an_altered_cookie_is_rejected() -> None:
    access = closed()
    name, _, value = sign_in(access).partition("=")
    expiry, session, signature = value.split(".")
    for other in (
        f"{int(expiry) + 1}.{session}.{signature}",
        f"{expiry}.{session}x.{signature}",
        f"{expiry}.{session}.{signature[:-1]}",
        f"{expiry}.{session}.",
        f"{expiry}{session}..{signature}",
        "",
        "..",
        "é.é.é",
    ):
        assert refused(access, request(("Cookie", f"{name}={other}"))) == 401, other


# wrong tokens


def by_form(access: Access, token: str, client: tuple[str, int]) -> int:
    """Send a token to `/sign-in`, and return the status."""
    try:
        asyncio.run(access.sign_in(post(client=client), token))
    except HTTPException as fault:
        return fault.status_code
    return 200


def by_bearer(access: Access, token: str, client: tuple[str, int]) -> int:
    try:
        access.identify(request(bearer(token), client=client))
    except HTTPException as fault:
        return fault.status_code
    return 200


def by_health_check(access: Access, token: str, client: tuple[str, int]) -> int:
    """Ask for `/healthz` by another name, which only the token allows."""
    try:
        asyncio.run(access.check_host(request(bearer(token), client=client, host="evil.example")))
    except HTTPException as fault:
        return {421: 401}.get(fault.status_code, fault.status_code)
    return 200


WAYS = {"form": by_form, "bearer": by_bearer, "health check": by_health_check}


@pytest.mark.parametrize("client", [LOOPBACK, UNTRUSTED], ids=["this machine", "another one"])
@pytest.mark.parametrize("way", WAYS)
def test_after_five_wrong_tokens_a_minute_only_the_right_one_gets_through_whichever_way_it_comes(
    way: str, client: tuple[str, int]
) -> None:
    """Behind a proxy all clients have one address, so wrong tokens must lock out nobody who has the right
    one."""
    access = closed()
    for number in range(SIGN_IN_TRIES):
        assert WAYS[way](access, f"wrong-{number}", client) == 401
    for each in WAYS.values():
        assert each(access, "wrong", client) == 429
        assert each(access, TOKEN, client) == 200
        assert each(access, "wrong", client) == 429  # a success ends no limit
    # Another address is not affected, whichever one it is.
    for other in (("192.0.2.8", 1), ("127.0.0.9", 1), ("::1", 1)):
        for each in WAYS.values():
            assert each(access, TOKEN, other) == 200


def test_a_refused_token_is_told_when_to_try_again() -> None:
    access = closed()
    for number in range(SIGN_IN_TRIES):
        by_bearer(access, str(number), LOOPBACK)
    with pytest.raises(HTTPException) as fault:
        access.identify(request(bearer("another")))
    assert fault.value.headers is not None
    assert 0 < int(fault.value.headers["Retry-After"]) <= 60


def test_a_program_with_an_old_token_does_not_limit_others_at_its_address() -> None:
    access = closed()
    for _ in range(20):
        assert by_bearer(access, "the old token", LOOPBACK) == 401
    assert by_bearer(access, TOKEN, LOOPBACK) == 200


def test_sessions_and_open_streams_do_not_end_because_of_wrong_tokens() -> None:
    access = closed()
    cookie, stream = sign_in(access), request(bearer(TOKEN))
    for number in range(SIGN_IN_TRIES + 1):
        by_bearer(access, str(number), LOOPBACK)
    assert access.identify(request(("Cookie", cookie))).actor == "token"
    assert access.may_still_read(stream)
    assert not access.may_still_read(request(bearer("wrong")))


def test_the_health_check_does_not_compare_a_token_that_it_does_not_need() -> None:
    access = closed()
    for number in range(SIGN_IN_TRIES + 1):
        asyncio.run(access.check_host(request(bearer(str(number)))))
    assert by_bearer(access, TOKEN, LOOPBACK) == 200


def test_each_wrong_token_is_an_event_without_the_token() -> None:
    events: list[Event] = []
    access = Access(channel_secret=SECRET, token=TOKEN, hosts=["0.0.0.0"], record=events.append)
    wrong = [f"guess-number-{number}" for number in range(SIGN_IN_TRIES + 1)]
    for token in wrong:
        by_bearer(access, token, UNTRUSTED)
    assert by_bearer(access, TOKEN, LOOPBACK) == 200
    records = [to_record(event) for event in events]
    assert [(each["reason"], each["status"]) for each in records] == [
        *[("wrong_token", 401)] * SIGN_IN_TRIES,
        ("too_many_failures", 429),
    ]
    first = records[0]
    assert (first["kind"], first["client"], first["peer"]) == (
        "control_token_rejected",
        "192.0.2.7",
        "192.0.2.7",
    )
    assert (first["method"], first["path"], first["path_class"]) == ("GET", "/metrics", "internal")
    assert "guess" not in str(records)


@pytest.mark.parametrize("query", [b"", b"?#", b"\xff"])
@pytest.mark.parametrize("host", ["127.0.0.1", "[", "[::1", "a/b?c#d", "a/../x", "", None])
def test_no_host_or_query_hides_a_wrong_token_or_changes_its_path(
    host: str | None, query: bytes
) -> None:
    events: list[Event] = []
    access = Access(channel_secret=SECRET, token=TOKEN, hosts=["0.0.0.0"], record=events.append)
    statuses = []
    for number in range(SIGN_IN_TRIES + 1):
        with pytest.raises(HTTPException) as fault:
            access.identify(request(bearer(f"wrong-{number}"), host=host, query=query))
        statuses.append(fault.value.status_code)
    assert statuses[-1] == 429
    assert 500 not in statuses
    assert [to_record(each)["path"] for each in events] == ["/metrics"] * len(statuses)


@pytest.mark.parametrize(
    "incoming",
    [post(("Sec-Fetch-Site", "cross-site")), post(("Origin", "https://evil.example"))],
)
def test_another_sites_page_cannot_use_up_the_attempts(incoming: Request) -> None:
    access = closed()
    for number in range(SIGN_IN_TRIES + 1):
        with pytest.raises(HTTPException) as fault:
            asyncio.run(access.sign_in(incoming, f"wrong-{number}"))
        assert fault.value.status_code == 403
    assert asyncio.run(access.sign_in(post(), TOKEN))


def test_there_is_no_sign_in_without_a_token_or_through_the_edge() -> None:
    for access, incoming in ((OPEN, post()), (CLOSED, admin(method="POST"))):
        with pytest.raises(HTTPException) as fault:
            asyncio.run(access.sign_in(incoming, ""))
        assert fault.value.status_code == 404


# CSRF


def csrf_of(access: Access, incoming: Request) -> str:
    return access.csrf_token(access.identify(incoming))


def test_a_session_writes_with_a_csrf_token_of_its_own_in_header_or_form() -> None:
    access = closed()
    cookie, other = ("Cookie", sign_in(access)), ("Cookie", sign_in(access))
    token = csrf_of(access, request(cookie))
    assert write_status(access, post(cookie, (CSRF_HEADER, token))) == 200
    assert write_status(access, post(cookie, form={CSRF_FIELD: token})) == 200
    assert write_status(access, post(cookie)) == 403
    assert write_status(access, post(cookie, form={CSRF_FIELD: ""})) == 403
    assert write_status(access, post(other, (CSRF_HEADER, token))) == 403
    assert write_status(access, post(cookie, (CSRF_HEADER, token[:-1]))) == 403
    expiry, _, signature = token.partition(".")
    assert (
        write_status(access, post(cookie, (CSRF_HEADER, f"{int(expiry) + 1}.{signature}"))) == 403
    )


def test_an_administrator_writes_with_a_csrf_token_bound_to_the_uid() -> None:
    token = csrf_of(CLOSED, admin())
    assert write_status(CLOSED, admin((CSRF_HEADER, token), method="POST")) == 200
    assert write_status(CLOSED, admin(method="POST")) == 403
    assert write_status(CLOSED, admin((CSRF_HEADER, token), uid="u-2", method="POST")) == 403
    assert write_status(CLOSED, admin((CSRF_HEADER, token), uid="", method="POST")) == 403


def test_a_browser_on_this_machine_reloads_with_a_csrf_token() -> None:
    browser = ("Origin", "http://127.0.0.1:4535")
    token = csrf_of(OPEN, request(("Sec-Fetch-Site", "none")))
    assert reload_status(OPEN, post(browser, (CSRF_HEADER, token))) == 200
    assert reload_status(OPEN, post(browser)) == 403
    assert reload_status(OPEN, post(("Sec-Fetch-Site", "same-origin"))) == 403


@pytest.mark.parametrize(
    "header",
    [
        ("Origin", "https://evil.example"),
        ("Origin", "null"),
        ("Origin", "http://127.0.0.1:8080"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ],
)
def test_a_cross_site_page_can_neither_write_nor_read(header: tuple[str, str]) -> None:
    access = closed()
    cookie = ("Cookie", sign_in(access))
    token = (CSRF_HEADER, csrf_of(access, request(cookie)))
    assert write_status(access, post(cookie, token, header)) == 403
    assert refused(access, request(cookie, header)) == 403
    assert reload_status(OPEN, post((CSRF_HEADER, csrf_of(OPEN, request())), header)) == 403
    assert refused(OPEN, request(header)) == 403


def test_a_link_on_another_site_opens_a_page_and_writes_nothing() -> None:
    link = (("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"))
    assert OPEN.identify(request(*link)).actor == "loopback"
    assert reload_status(OPEN, post(*link)) == 403
