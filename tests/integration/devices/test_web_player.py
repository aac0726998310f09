"""With device passwords only, Navidrome's web player goes on, and nobody can set another password."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.integration.devices.conftest import RunningShim, _Running, error_of, run_shim
from tests.support.harness import Harness
from tests.support.real_navidrome import real_navidrome

_ALICE = {
    "X-authentik-username": "alice",
    "X-authentik-uid": "uid-alice",
    "X-authentik-groups": "music",
}


async def test_the_web_player_plays_with_device_passwords_only(tmp_path: Path) -> None:
    if "NAVIDROME_BIN" not in os.environ:
        pytest.skip("NAVIDROME_BIN names no binary")
    with real_navidrome(os.environ["NAVIDROME_BIN"], tmp_path / "nd", "127.0.0.0/8") as port:
        harness = Harness(_Running(f"http://127.0.0.1:{port}"), tmp_path)
        try:
            async with run_shim(harness, SUBSONIC_PASSWORDS="devices") as shim:
                account = await _open_web_app(shim)
                player = {
                    "u": account["username"],
                    "t": account["subsonicToken"],
                    "s": account["subsonicSalt"],
                }
                await _play(shim, player)
                for current in ({}, {"currentPassword": ""}):
                    changed = await shim.client.put(
                        f"/api/user/{account['id']}",
                        json={"userName": "alice", "name": "alice", "password": "mine", **current},
                        headers={**_ALICE, "Sec-Fetch-Site": "same-origin"},
                    )
                    assert changed.status_code == 400, changed.text
                assert error_of(await shim.rest("ping", u="alice", p="mine")) == 40
                await _play(shim, player)
                device = await shim.add("uid-alice")
                assert error_of(await shim.rest("ping", u="alice", p=device.secret)) is None
                await harness.create("dave", "known")
                await shim.sign_in("dave")
                assert error_of(await shim.rest("ping", u="dave", p="known")) == 40
        finally:
            await harness.close()


async def _open_web_app(shim: RunningShim) -> dict[str, Any]:
    """Return what Navidrome puts into the page for its player."""
    page = await shim.client.get("/app/", headers=_ALICE)
    found = re.search(r'__APP_CONFIG__ = (".*")', page.text)
    assert found is not None
    account: dict[str, Any] = json.loads(json.loads(found[1]))["auth"]
    return account


async def _play(shim: RunningShim, player: dict[str, str]) -> None:
    songs = await shim.client.get("/api/song?_start=0&_end=1", headers=_ALICE)
    query = {**player, "v": "1.8.0", "c": "NavidromeUI", "id": songs.json()[0]["id"]}
    played = await shim.client.get("/rest/stream", params=query, headers={"Range": "bytes=0-99"})
    assert played.status_code == 206 and played.headers["content-type"].startswith("audio/")
    cover = await shim.client.get("/rest/getCoverArt", params={**query, "size": 64})
    assert cover.headers["content-type"].startswith("image/")
