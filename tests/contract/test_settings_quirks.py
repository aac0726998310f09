"""What settings of Navidrome change that matters to the shim, on both servers."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.navidrome import StandInOptions, StandInThread
from shim.navidrome.api import HeaderTrust, Navidrome
from shim.navidrome.session import HeaderSession
from shim.navidrome.transport import Transport
from shim.settings import Upstream
from tests.support.navidrome_client import ADMIN, ADMIN_PASSWORD, EDGE, NavidromeClient
from tests.support.real_navidrome import real_navidrome


@dataclass(frozen=True, slots=True)
class Servers:
    """Starts a server of one kind. `folder` is the real one's."""

    kind: str
    folder: Path

    @contextlib.contextmanager
    def start(self, options: StandInOptions, **settings: str) -> Iterator[NavidromeClient]:
        """A server with these options, which are `settings` for the real one."""
        if self.kind == "stand-in":
            with StandInThread(options) as stand_in:
                yield NavidromeClient(stand_in.port)
            return
        if "NAVIDROME_BIN" not in os.environ:
            pytest.skip("NAVIDROME_BIN names no binary")
        binary, trusted = os.environ["NAVIDROME_BIN"], options.trusted_sources
        with real_navidrome(binary, self.folder / "navidrome", trusted, **settings) as port:
            yield NavidromeClient(port)


@pytest.fixture(params=["stand-in", "real"])
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> Servers:
    return Servers(request.param, tmp_path)


def _create_admin(client: NavidromeClient, base: str = "") -> int:
    admin = {"username": ADMIN, "password": ADMIN_PASSWORD}
    return client.request("POST", f"{base}/auth/createAdmin", None, body=admin).status


def test_only_entries_with_a_prefix_length_are_trusted_sources(servers: Servers) -> None:
    entries = (
        "127.0.0.2/32",
        "127.0.0.4/31",
        "::ffff:127.0.0.16/127",
        "127.0.0.18/032",
        # Without a match, and without an error:
        "127.0.0.21",
        " 127.0.0.22/32",
        "127.0.0.23/32 ",
        "127.0.0.24/255.255.255.255",
        "127.0.0.25/33",
        "127.0.0.26/+32",
        "127.000.000.027/32",
        "localhost",
        "::/0",
        "::ffff:0:0/95",
        "@",
    )
    with servers.start(StandInOptions(trusted_sources=",".join(entries))) as client:
        _create_admin(client)
        trusted = [
            last
            for last in range(1, 30)
            if client.request("GET", "/api/user?_end=1", source=f"127.0.0.{last}").status == 200
        ]
    assert trusted == [2, 4, 5, 16, 17, 18]


def test_routes_and_cookies_are_below_the_base_path(servers: Servers) -> None:
    options = StandInOptions(trusted_sources=f"{EDGE}/32", base_path="/music")
    with servers.start(options, ND_BASEURL="/music") as client:
        assert _create_admin(client) == 405
        assert _create_admin(client, "/music") == 200
        statuses = {
            "/": 302,
            "/music": 302,
            "/music/": 302,
            "/music/nowhere": 302,
            "/app/": 302,
            "/api/user": 302,
            "/share/none": 302,
            "/rest/ping?v=1&c=x": 302,
            "/Music/app/": 302,
            "/musicx/app/": 302,
            "/m%75sic/app/": 302,
            "//music/app/": 302,
            "/music//app/": 302,
            "/music/../music/app/": 302,
            "/music/ping": 302,
            "/ping": 200,
            "/music/app/": 200,
            "/music/api/user": 200,
            "/music/rest/ping?v=1&c=x": 200,
            "/music/robots.txt": 200,
            "/music/share/none": 404,
            "/music/share": 400,
            "/music/auth/login": 405,
        }
        replies = {target: client.request("GET", target) for target in statuses}
        assert {target: reply.status for target, reply in replies.items()} == statuses
        locations = {reply.headers.get("location") for reply in replies.values()}
        assert locations == {None, "/music/app/"}
        assert "; Path=/music; " in replies["/music/rest/ping?v=1&c=x"].headers["set-cookie"]
        client_id = {"X-ND-Client-Unique-Id": "a"}
        reply = client.request("GET", "/music/api/keepalive/x", headers=client_id)
        assert "; Path=/music; " in reply.headers["set-cookie"]
        page = replies["/music/app/"].body
        assert re.search(rb'baseURL\\":\\"/music\\"', page)


def test_users_cannot_change_themselves_without_user_editing(servers: Servers) -> None:
    options = StandInOptions(trusted_sources=f"{EDGE}/32", enable_user_editing=False)
    with servers.start(options, ND_ENABLEUSEREDITING="false") as client:
        _create_admin(client)
        account_id = client.create("alice")
        sent = {"userName": "alice", "password": "new", "currentPassword": "pw"}
        refused = client.request("PUT", f"/api/user/{account_id}", "alice", body=sent)
        assert (refused.status, refused.json()) == (
            403,
            {"error": "Updating user: Permission denied"},
        )
        assert client.request("PUT", f"/api/user/{account_id}", body=sent).status == 200
        assert client.subsonic_opens("alice", "new")


async def test_the_configuration_can_be_hidden(servers: Servers) -> None:
    options = StandInOptions(trusted_sources="127.0.0.1/32", show_configuration=False)
    with servers.start(options, ND_DEVUISHOWCONFIG="false") as client:
        _create_admin(client)
        for user in (ADMIN, None):
            reply = client.request("GET", "/api/config/config", user, source="127.0.0.1")
            assert reply.status == 404
        transport = Transport(Upstream("http", "127.0.0.1", client.port))
        api = Navidrome(transport, HeaderSession("Remote-User", ADMIN), "Remote-User")
        try:
            assert await api.external_authentication() is None
            assert await api.header_trust(ADMIN) is HeaderTrust.KNOWN
        finally:
            await api.close()


def test_logins_without_a_limit(servers: Servers) -> None:
    options = StandInOptions(trusted_sources=f"{EDGE}/32", login_limit=0)
    wrong = {"username": "nobody", "password": "x"}
    with servers.start(options, ND_AUTHREQUESTLIMIT="0") as client:
        for _ in range(7):
            reply = client.request("POST", "/auth/login", None, body=wrong)
            assert (reply.status, "x-ratelimit-limit" in reply.headers) == (401, False)
