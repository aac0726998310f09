"""First requests through the real edges to an empty Navidrome: the account, and its owner."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from libopensonic import AsyncConnection
from libopensonic.errors import CredentialError

from demo.navidrome import StandInOptions, StandInThread
from demo.outpost import Outpost, OutpostOptions, OutpostUser
from tests.e2e.conftest import ADMIN_GROUP, EDGES, USERS, Deployment
from tests.e2e.servers import SECRET, Upstreams, shim

SHIMS_ACCOUNT = "navidrome-shim"
CONTACT = "who-runs-it@example.org"
OWN_PASSWORD = "a password of her own"
GUEST = OutpostUser("guest", "A Guest", "guest@example.org", ("colleagues",))
ALICE, BOSS, JOERG = USERS[:3]
KATE = OutpostUser("kate", "Kate", "kate@example.org", ("family",))


@contextmanager
def start_edge_and_shim(
    folder: Path, edge: str, navidrome: str
) -> Iterator[tuple[str, str, Outpost]]:
    """An edge and a shim that provisions the accounts of a Navidrome; the URLs of both, the provider."""
    settings = {
        "SHIM_PROVISIONING": "true",
        "SHIM_PROXY_SECRET": SECRET,
        "SHIM_ALLOWED_GROUPS": "family",
        "SHIM_ADMIN_GROUPS": ADMIN_GROUP,
        "SHIM_SUPPORT_CONTACT": CONTACT,
    }
    users = (ALICE, BOSS, JOERG, KATE, GUEST)
    with (
        Outpost(OutpostOptions(users=users)) as outpost,
        shim(folder, navidrome, **settings) as before,
        EDGES[edge](folder, Upstreams(outpost.url, before.url, SECRET)) as url,
    ):
        yield url, before.url, outpost


@contextmanager
def start_provisioned(folder: Path, edge: str) -> Iterator[Deployment]:
    """The same with a stand-in without accounts."""
    with (
        StandInThread(StandInOptions()) as stand_in,
        start_edge_and_shim(folder, edge, stand_in.url) as (url, shim_url, outpost),
    ):
        yield Deployment(edge, url, shim_url, "", outpost, stand_in)


@pytest.fixture(scope="module", params=["traefik", "caddy"])
def provisioned(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    edge: str = request.param
    with start_provisioned(tmp_path_factory.mktemp(edge), edge) as deployment:
        yield deployment


@pytest.mark.parametrize("user", [ALICE, BOSS, JOERG], ids=lambda user: user.username)
def test_a_first_request_through_an_edge_gets_the_page_for_the_right_account(
    provisioned: Deployment, user: OutpostUser
) -> None:
    is_admin = ADMIN_GROUP in user.groups
    with provisioned.client(user.username) as browser:
        page = browser.get("/app/")
    assert page.status_code == httpx.codes.OK
    auth = auth_of(page)
    assert (auth["username"], auth["name"], auth["isAdmin"]) == (user.username, user.name, is_admin)
    account = accounts_of(provisioned)[user.username]
    assert (account["id"], account["name"]) == (auth["id"], user.name)
    assert (account["email"], account["isAdmin"]) == (user.email, is_admin)


def test_the_first_user_of_an_empty_navidrome_is_not_admin(tmp_path: Path) -> None:
    with start_provisioned(tmp_path, "traefik") as fresh, fresh.client("alice") as browser:
        assert auth_of(browser.get("/app/"))["isAdmin"] is False
        admins = {name: account["isAdmin"] for name, account in accounts_of(fresh).items()}
    assert admins == {SHIMS_ACCOUNT: True, "alice": False}


def test_only_the_shim_creates_the_first_admin(tmp_path: Path) -> None:
    mine = {"username": "mine", "password": "mine"}
    with start_provisioned(tmp_path, "traefik") as fresh, fresh.client("alice") as browser:
        response = browser.post("/auth/createAdmin", json=mine)
        assert response.status_code == httpx.codes.FORBIDDEN
        assert "mine" not in accounts_of(fresh)


def test_a_user_without_an_allowed_group_gets_the_support_contact_and_no_account(
    provisioned: Deployment,
) -> None:
    with provisioned.client(GUEST.username) as browser:
        pages = [browser.get(path) for path in ("/app/", "/api/song")]
    assert [page.status_code for page in pages] == [httpx.codes.FORBIDDEN] * 2
    assert pages[0].headers["Content-Type"] == "text/html; charset=utf-8"
    for page in pages:
        assert "not in a group that may use this music server" in page.text
        assert CONTACT in page.text
    assert GUEST.username not in accounts_of(provisioned)
    text = {value for seen in provisioned.stand_in.seen for value in seen.values("Remote-User")}
    assert GUEST.username not in text


async def test_the_owner_sets_a_password_without_the_generated_one_and_uses_an_app(
    provisioned: Deployment,
) -> None:
    with provisioned.client(KATE.username) as browser:
        own_id = auth_of(browser.get("/app/"))["id"]
        record = browser.get(f"/api/user/{own_id}").json()
        async with app_of(provisioned) as app:
            with pytest.raises(CredentialError):
                await app.get_artists()
        # Like the web app: the whole record, the new password, and no current one.
        saved = browser.put(
            f"/api/user/{own_id}",
            json={**record, "changePassword": True, "password": OWN_PASSWORD},
            headers={"Origin": provisioned.url, "Sec-Fetch-Site": "same-origin"},
        )
        assert saved.status_code == httpx.codes.OK, saved.text
        browser.get("/app/")
    assert record["email"] == KATE.email  # the account was created by the shim and not by Navidrome
    assert {**saved.json(), **_MOVING} == {**record, **_MOVING}
    async with app_of(provisioned) as app:
        assert await app.ping()
        [album] = await app.get_album_list2("alphabeticalByName", size=1)
        song = (await app.get_album(album.id)).song[0]
        async with await app.stream(song.id, tformat="raw") as response:
            received = await response.read()
    whole = request_directly(provisioned, f"/rest/stream?v=1.16.1&c=x&id={song.id}", KATE.username)
    assert len(received) > 0
    assert hashlib.sha256(received).digest() == hashlib.sha256(whole.content).digest()


# Fields that Navidrome itself changes.
_MOVING = {"updatedAt": "", "lastAccessAt": ""}


def auth_of(page: httpx.Response) -> dict[str, Any]:
    """The signed-in user of the web app's page."""
    text = page.text.partition("__APP_CONFIG__")[2].partition("=")[2].strip()
    auth: dict[str, Any] = json.loads(json.JSONDecoder().raw_decode(text)[0])["auth"]
    return auth


def accounts_of(deployment: Deployment) -> dict[str, dict[str, Any]]:
    """Navidrome's accounts by name, as its API shows them."""
    listed = request_directly(deployment, "/api/user", SHIMS_ACCOUNT).json()
    return {account["userName"]: account for account in listed}


def request_directly(deployment: Deployment, target: str, user: str) -> httpx.Response:
    """Navidrome's response to a request from the shim's address."""
    url = deployment.stand_in.url + target
    return httpx.get(url, headers={"Remote-User": user}, trust_env=False)


@asynccontextmanager
async def app_of(deployment: Deployment) -> AsyncIterator[AsyncConnection]:
    """The owner's app, with the edge's address, her name and the password that she set."""
    edge = urlsplit(deployment.url)
    app = AsyncConnection(
        f"http://{edge.hostname}", KATE.username, OWN_PASSWORD, edge.port, use_get=True
    )
    try:
        yield app
    finally:
        await app.cleanup()
