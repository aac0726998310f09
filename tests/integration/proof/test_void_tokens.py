"""Navidrome tokens of a denied identity: void at a running shim on every path, and their streams
ended.
"""

from __future__ import annotations

import socket
from pathlib import Path

import httpx

from tests.integration.proof.test_accounts import navidrome, person, send, shim_with_accounts
from tests.support.shim_process import Shim

__all__ = ["navidrome"]
GROUPS = {"ALLOWED_GROUPS": "family"}


def token_of(shim: Shim, navidrome: int, name: str) -> str:
    """Provision a user, set a password as the administrator, and log in with it."""
    assert send(shim, "/api/song", **person(name)).status_code == 200
    url = f"http://127.0.0.1:{navidrome}"
    with httpx.Client(
        base_url=url, timeout=30, headers={"Remote-User": "navidrome-shim"}
    ) as client:
        (record,) = [u for u in client.get("/api/user").json() if u["userName"] == name]
        changed = {**record, "password": "pw"}
        client.put(f"/api/user/{record['id']}", json=changed).raise_for_status()
    with httpx.Client(base_url=url, timeout=30) as client:
        login = client.post("/auth/login", json={"username": name, "password": "pw"})
        text: str = login.json()["token"]
        return text


def token_is_accepted(shim: Shim, name: str, token: str, *, form: bool = False) -> bool:
    """Return whether an untrusted peer gets access with the token, on a public path."""
    query = f"u={name}&v=1&c=x&f=json&jwt={token}"
    url = f"http://127.0.0.1:{shim.port}/rest/ping"
    with httpx.Client(timeout=30) as client:
        if form:
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            response = client.post(url, content=query, headers=kind)
        else:
            response = client.get(f"{url}?{query}")
    return bool(response.json()["subsonic-response"]["status"] == "ok")


def test_a_token_of_a_denied_identity_gives_no_access(navidrome: int, tmp_path: Path) -> None:
    with shim_with_accounts(navidrome, tmp_path, **GROUPS) as shim:
        alice, bob = (token_of(shim, navidrome, name) for name in ("alice", "bob"))
        send(shim, "/api/song", **person("alice"))
        for form in (False, True):
            assert token_is_accepted(shim, "alice", alice, form=form)
            assert token_is_accepted(shim, "bob", bob, form=form)
        events = f"GET /api/events?jwt={alice} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", shim.port), 10) as stream:
            stream.sendall(events)
            assert stream.recv(65536).startswith(b"HTTP/1.1 200")
            assert send(shim, "/api/song", **person("alice", "others")).status_code == 403
            stream.settimeout(10)
            try:
                while stream.recv(65536):
                    pass
            except ConnectionResetError:
                pass
        line = shim.wait_for_line(kind="request_failed", reason="account_revoked")
        assert "eyJ" not in str(line)
        send(shim, "/api/song", **person("bob"))
        for form in (False, True):
            assert not token_is_accepted(shim, "alice", alice, form=form)
            assert token_is_accepted(shim, "bob", bob, form=form)
        shim.wait_for_line(kind="navidrome_token_found", reason="navidrome_token_void")
        bearer = {"X_ND_Authorization": f"Bearer {alice}"}
        assert send(shim, "/api/song", "127.0.0.1", **bearer).status_code == 401
