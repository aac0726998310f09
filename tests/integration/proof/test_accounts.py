"""Proofs and accounts together: a complete shim, with provisioning, and a Navidrome."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.provider import Provider
from tests.support.real_navidrome import real_navidrome
from tests.support.shim_process import Shim, run_shim
from tests.support.shim_settings import eventually, send_sighup

EDGE = "127.0.0.2"
ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["stand-in", "real"])
def navidrome(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """The port of a Navidrome without users."""
    if request.param == "stand-in":
        with _stand_in() as port:
            yield port
        return
    binary = os.environ.get("NAVIDROME_BIN")
    if binary is None:
        pytest.skip("NAVIDROME_BIN names no binary")
    with real_navidrome(binary, tmp_path / "navidrome", "127.0.0.1/32") as port:
        yield port


@contextmanager
def _stand_in() -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "demo.navidrome", "127.0.0.1:0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline().rsplit(":", 1)[1])
    finally:
        process.terminate()
        process.wait(15.0)
        process.stdout.close()


@contextmanager
def shim_with_accounts(navidrome: int, folder: Path, **settings: str) -> Iterator[Shim]:
    """A shim whose reloadable settings are in its `.env`."""
    write(folder, **settings)
    database = f"sqlite:///{folder / 'shim.db'}"
    with run_shim(
        navidrome,
        folder,
        without=("REVERSE_PROXY_WHITELIST",),
        PROVISIONING="true",
        DATABASE_URL=database,
    ) as shim:
        yield shim


def write(folder: Path, **settings: str) -> None:
    all_settings = {"REVERSE_PROXY_WHITELIST": EDGE, **settings}
    (folder / ".env").write_text("".join(f"SHIM_{n}='{v}'\n" for n, v in all_settings.items()))


def send(shim: Shim, path: str, source: str = EDGE, **headers: str) -> httpx.Response:
    transport = httpx.HTTPTransport(local_address=source)
    url = f"http://127.0.0.1:{shim.port}{path}"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with httpx.Client(transport=transport, timeout=30) as client:
        return client.get(url, headers=named)


def person(name: str, groups: str = "family") -> dict[str, str]:
    return {
        "X_authentik_username": name,
        "X_authentik_uid": f"uid-{name}",
        "X_authentik_groups": groups,
    }


def page(response: httpx.Response) -> dict[str, Any]:
    """The user in the web app's page."""
    assert response.status_code == 200, response.text
    text = response.text.partition("__APP_CONFIG__")[2].partition("=")[2]
    config = json.loads(json.JSONDecoder().raw_decode(text.strip())[0])
    found: dict[str, Any] = config["auth"]
    return found


def token_of_an_admin(navidrome: int) -> str:
    """Another admin's token, which Navidrome issued for a password."""
    with httpx.Client(base_url=f"http://127.0.0.1:{navidrome}", timeout=30) as client:
        root = {"userName": "root", "name": "root", "password": "pw", "isAdmin": True}
        as_the_shim = {"Remote-User": "navidrome-shim"}
        client.post("/api/user", json=root, headers=as_the_shim).raise_for_status()
        login = client.post("/auth/login", json={"username": "root", "password": "pw"})
        text: str = login.json()["token"]
        bearer = {"X-ND-Authorization": f"Bearer {text}"}
        by_token = client.get("/api/user", headers={**bearer, "Remote-User": "alice"})
        assert by_token.status_code == 200, "a token has priority over the user header"
        return text


def test_a_token_of_another_account_does_not_override_the_identity(
    navidrome: int, tmp_path: Path
) -> None:
    with shim_with_accounts(navidrome, tmp_path) as shim:
        page(send(shim, "/app/", **person("alice")))
        root = token_of_an_admin(navidrome)
        for path, headers in (
            ("/api/user", {"X_ND_Authorization": f"Bearer {root}"}),
            ("/api/user", {"X_ND_Authorization": f"bEaReRx{root}"}),
            ("/api/user", {"Cookie": f'theme=dark; jwt="{root}"'}),
            (f"/api/user?jwt={root}", {}),
            (f"/api/user?%6Awt={root}", {}),
        ):
            response = send(shim, path, **headers, **person("alice"))
            assert response.status_code == 403, (path, headers)
            assert "X-ND-Authorization" not in response.headers
        token_event = shim.wait_for_line(kind="navidrome_token_found")
        # The account was created without the shim: until the users are listed again, the token is
        # void.
        assert token_event["reason"] == "navidrome_token_void"
        assert token_event["user"] == "alice"
        assert root not in json.dumps(shim.lines, default=str)


def test_a_token_of_the_same_account_is_forwarded(navidrome: int, tmp_path: Path) -> None:
    with shim_with_accounts(navidrome, tmp_path) as shim:
        alice = page(send(shim, "/app/", **person("alice")))
        base = f"http://127.0.0.1:{navidrome}/api/user/{alice['id']}"
        with httpx.Client(timeout=30, headers={"Remote-User": "navidrome-shim"}) as client:
            record = client.get(base).json()
            client.put(base, json={**record, "password": "pw"}).raise_for_status()
            where = f"http://127.0.0.1:{navidrome}/auth/login"
            login = client.post(where, json={"username": "alice", "password": "pw"})
            mine = login.json()["token"]
        response = send(shim, "/api/song", X_ND_Authorization=f"Bearer {mine}", **person("alice"))
        assert response.status_code == 200
        assert "X-ND-Authorization" in response.headers, (
            "Navidrome accepted and refreshed the token"
        )
        assert not [line for line in shim.lines if line.get("kind") == "navidrome_token_found"]


def test_a_reload_applies_new_groups_to_known_users_too(navidrome: int, tmp_path: Path) -> None:
    with shim_with_accounts(navidrome, tmp_path) as shim:
        for name in ("alice", "bob"):
            assert page(send(shim, "/app/", **person(name)))["isAdmin"] is False
        write(tmp_path, ALLOWED_GROUPS="family,admins", ADMIN_GROUPS="admins")
        send_sighup(shim)
        shim.wait_for_line(kind="policy_changed", subject="settings")
        assert page(send(shim, "/app/", **person("alice", "admins")))["isAdmin"] is True
        assert page(send(shim, "/app/", **person("bob")))["isAdmin"] is False
        assert send(shim, "/app/", **person("bob", "others")).status_code == 403
        write(tmp_path, ALLOWED_GROUPS="admins", ADMIN_GROUPS="admins")
        send_sighup(shim)
        eventually(lambda: send(shim, "/app/", **person("bob")).status_code, 403)
        assert send(shim, "/app/", **person("alice", "admins")).status_code == 200


def test_a_rename_is_adopted_from_a_verified_token(
    navidrome: int, issuer: Provider, tmp_path: Path
) -> None:
    settings = issuer.settings(JWT_VERIFY="optional")
    with shim_with_accounts(navidrome, tmp_path, **settings) as shim:
        first = issuer.token(sub="uid-1", preferred_username="alice")
        known = page(send(shim, "/app/", X_authentik_jwt=first))
        assert known["username"] == "alice"
        by_headers = {"X_authentik_username": "alicia", "X_authentik_uid": "uid-1"}
        response = send(shim, "/app/", **by_headers, X_authentik_groups="family|admins")
        assert response.status_code == 403
        assert "Your user name changed at the identity provider" in response.text
        renamed = issuer.token(sub="uid-1", preferred_username="alicia")
        now = page(send(shim, "/app/", X_authentik_jwt=renamed))
        assert (now["username"], now["id"]) == ("alicia", known["id"])
