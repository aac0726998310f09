"""The shim with the real Navidrome over a Unix socket, where `NAVIDROME_BIN` names one.

Navidrome's settings are those of `deploy/systemd/navidrome.service`; only the folders differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.servers import SECRET, Shim, shim
from tests.e2e.test_systemd import environment
from tests.support.real_navidrome import real_navidrome

pytestmark = pytest.mark.skipif(
    "NAVIDROME_BIN" not in os.environ, reason="NAVIDROME_BIN names no binary"
)
SUBSONIC = "/rest/getUser?v=1.16.1&c=test&f=json&username="


@pytest.fixture(scope="module")
def behind_a_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shim]:
    folder = tmp_path_factory.mktemp("socket")
    path = folder / "navidrome.sock"
    unit = environment("navidrome")
    settings = {
        "ND_ADDRESS": f"unix:{path}",
        "ND_UNIXSOCKETPERM": unit["ND_UNIXSOCKETPERM"],
        "ND_EXTAUTH_USERHEADER": unit["ND_EXTAUTH_USERHEADER"],
        "ND_EXTAUTH_LOGOUTURL": "https://music.example.org/outpost.goauthentik.io/sign_out",
    }
    trusted = unit["ND_EXTAUTH_TRUSTEDSOURCES"]
    with real_navidrome(os.environ["NAVIDROME_BIN"], folder / "nd", trusted, **settings):
        assert path.stat().st_mode & 0o777 == int(unit["ND_UNIXSOCKETPERM"], 8)
        more = {"SHIM_PROVISIONING": "true", "SHIM_PROXY_SECRET": SECRET}
        with shim(folder, f"unix:{path}", **more) as started:
            yield started


def visit(shim: Shim, path: str, user: str = "", secret: str = SECRET) -> httpx.Response:
    claims = {"X-authentik-username": user, "X-authentik-uid": f"uid-{user}"} if user else {}
    headers = {**claims, "X-Shim-Proxy-Secret": secret} if secret else claims
    return httpx.get(shim.url + path, headers=headers, trust_env=False, timeout=30)


def test_a_trusted_identity_gets_an_account_over_the_socket(behind_a_socket: Shim) -> None:
    response = visit(behind_a_socket, "/app/", "ada")
    assert response.status_code == httpx.codes.OK
    assert r"\"username\":\"ada\"" in response.text
    assert "/outpost.goauthentik.io/sign_out" in response.text


def test_navidrome_trusts_no_request_without_the_shims_header(behind_a_socket: Shim) -> None:
    visit(behind_a_socket, "/app/", "ada")
    without = httpx.get(
        behind_a_socket.url + SUBSONIC + "ada", headers={"Remote-User": "ada"}, trust_env=False
    )
    assert without.json()["subsonic-response"]["status"] == "failed"
    assert visit(behind_a_socket, "/app/", "eve", secret="").status_code == 401


def test_the_shim_is_ready_and_finds_its_user_header_accepted(behind_a_socket: Shim) -> None:
    ready = httpx.get(f"http://{behind_a_socket.control}/readyz", trust_env=False)
    assert ready.status_code == httpx.codes.OK, ready.text
    states = {name: check["state"] for name, check in ready.json()["checks"].items()}
    # The edge's state is about the requests of the other tests.
    states.pop("edge")
    assert set(states.values()) == {"ok"}, ready.text
    assert "user_header" in states
