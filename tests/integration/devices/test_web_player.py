"""With device passwords only, Navidrome's web player goes on, and nobody can set another password."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.integration.devices.conftest import Music, _Running, error_of, shim_before
from tests.support.real_navidrome import real_navidrome
from tests.support.world import World

_ALICE = {
    "X-authentik-username": "alice",
    "X-authentik-uid": "uid-alice",
    "X-authentik-groups": "music",
}


async def test_the_web_player_plays_with_device_passwords_only(tmp_path: Path) -> None:
    if "NAVIDROME_BIN" not in os.environ:
        pytest.skip("NAVIDROME_BIN names no binary")
    with real_navidrome(os.environ["NAVIDROME_BIN"], tmp_path / "nd", "127.0.0.0/8") as port:
        world = World(_Running(f"http://127.0.0.1:{port}"), tmp_path)
        try:
            async with shim_before(world, SUBSONIC_PASSWORDS="devices") as front:
                account = await _open_web_app(front)
                player = {
                    "u": account["username"],
                    "t": account["subsonicToken"],
                    "s": account["subsonicSalt"],
                }
                await _play(front, player)
                for current in ({}, {"currentPassword": ""}):
                    changed = await front.client.put(
                        f"/api/user/{account['id']}",
                        json={"userName": "alice", "name": "alice", "password": "mine", **current},
                        headers={**_ALICE, "Sec-Fetch-Site": "same-origin"},
                    )
                    assert changed.status_code == 400, changed.text
                assert error_of(await front.rest("ping", u="alice", p="mine")) == 40
                await _play(front, player)
                device = await front.add("uid-alice")
                assert error_of(await front.rest("ping", u="alice", p=device.secret)) is None
                await world.create("dave", "known")
                await front.sign_in("dave")
                assert error_of(await front.rest("ping", u="dave", p="known")) == 40
        finally:
            await world.close()


async def _open_web_app(front: Music) -> dict[str, Any]:
    """Return what Navidrome puts into the page for its player."""
    page = await front.client.get("/app/", headers=_ALICE)
    found = re.search(r'__APP_CONFIG__ = (".*")', page.text)
    assert found is not None
    account: dict[str, Any] = json.loads(json.loads(found[1]))["auth"]
    return account


async def _play(front: Music, player: dict[str, str]) -> None:
    songs = await front.client.get("/api/song?_start=0&_end=1", headers=_ALICE)
    query = {**player, "v": "1.8.0", "c": "NavidromeUI", "id": songs.json()[0]["id"]}
    played = await front.client.get("/rest/stream", params=query, headers={"Range": "bytes=0-99"})
    assert played.status_code == 206 and played.headers["content-type"].startswith("audio/")
    cover = await front.client.get("/rest/getCoverArt", params={**query, "size": 64})
    assert cover.headers["content-type"].startswith("image/")
