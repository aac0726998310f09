"""How a server reports its user header and trusted sources, on both servers."""

from __future__ import annotations

import pytest

from shim.navidrome.api import Navidrome, obeys
from shim.navidrome.errors import NotAuthenticated
from shim.navidrome.session import HeaderSession
from shim.navidrome.transport import Transport
from shim.settings import Upstream
from tests.support.navidrome_client import ADMIN, EDGE, UNTRUSTED, NavidromeClient

PING = "/rest/ping?v=1.16.1&c=x&f=json"


def test_the_configuration_names_the_user_header_and_the_trusted_sources(
    client: NavidromeClient,
) -> None:
    shown = client.request("GET", "/api/config/config").json()
    assert shown["id"] == "config"
    external = shown["config"]["ExtAuth"]
    assert (external["UserHeader"], external["TrustedSources"]) == ("Remote-User", f"{EDGE}/32")


def test_the_configuration_is_for_admins_only(client: NavidromeClient) -> None:
    name = client.new_name()
    client.create(name)
    assert client.request("GET", "/api/config/config", name).status == 403
    assert client.request("GET", "/api/config/config", None).status == 401
    assert client.request("GET", "/api/config/config", source=UNTRUSTED).status == 401


@pytest.mark.parametrize(
    ("header", "source", "code"),
    [
        ("Remote-User", EDGE, 40),
        ("remote-user", EDGE, 40),
        ("X-WebAuth-User", EDGE, 10),
        ("Remote-User", UNTRUSTED, 10),
    ],
)
def test_a_ping_shows_whether_the_user_header_is_accepted_and_creates_no_user(
    client: NavidromeClient, header: str, source: str, code: int
) -> None:
    name = client.new_name()
    reply = client.request("GET", PING, None, headers={header: name}, source=source)
    assert (reply.status, reply.json()["subsonic-response"]["error"]["code"]) == (200, code)
    assert client.request("GET", f"/api/user?user_name={name}").json() == []


async def test_the_shim_reads_the_configuration_and_the_probe(client: NavidromeClient) -> None:
    # Requests of this test come from an untrusted address.
    transport = Transport(Upstream("http", "127.0.0.1", client.port))
    api = Navidrome(transport, HeaderSession("Remote-User", ADMIN), "Remote-User")
    assert not await obeys(transport, "Remote-User", "X-WebAuth-User")
    with pytest.raises(NotAuthenticated):
        await api.external_authentication()
    await api.close()


def test_a_list_is_read_in_pages_with_its_total_in_each(client: NavidromeClient) -> None:
    for _ in range(5):
        client.create(client.new_name())
    whole = client.request("GET", "/api/user?_sort=id").json()
    assert [row["id"] for row in whole] == sorted(row["id"] for row in whole)
    pages: list[dict[str, object]] = []
    for start in range(0, len(whole) + 2, 2):
        target = f"/api/user?_sort=id&_order=ASC&_start={start}&_end={start + 2}"
        reply = client.request("GET", target)
        assert reply.headers["x-total-count"] == str(len(whole))
        pages += reply.json() or []
    assert [row["id"] for row in pages] == [row["id"] for row in whole]
