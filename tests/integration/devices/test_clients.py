"""Real Subsonic libraries, and requests in the form of well-known apps: lists, covers, streams, playlists."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import libsonic
import pytest
import pytest_asyncio
from libopensonic import AsyncConnection

from tests.integration.devices.conftest import RunningShim, envelope, error_of, token

pytestmark = pytest.mark.asyncio(loop_scope="module")
_salts = itertools.count(1)


@dataclass(frozen=True)
class App:
    """How an app sends its credentials. `form`: in a form; `headers` come beside them; `basic`: as
    `Authorization: Basic` alone."""

    name: str
    credentials: Callable[[str], Mapping[str, str]]
    form: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    basic: bool = False

    async def call(
        self, shim: RunningShim, secret: str, call: str, /, **parameters: Any
    ) -> httpx.Response:
        """Make one call as the app does. A list repeats its parameter."""
        values: dict[str, Any] = {"v": "1.16.1", "c": self.name, "f": "json", **parameters}
        values |= self.credentials(secret)
        headers = {**self.headers, **(_basic("alice", secret) if self.basic else {})}
        if self.form:
            return await shim.client.post(f"/rest/{call}.view", data=values, headers=headers)
        return await shim.client.get(f"/rest/{call}.view", params=values, headers=headers)


def _fixed(secret: str) -> Mapping[str, str]:
    return {"u": "alice", **token(secret, "fixed")}


def _fresh(secret: str) -> Mapping[str, str]:
    return {"u": "alice", **token(secret, f"salt{next(_salts)}")}


def _hexadecimal(secret: str) -> Mapping[str, str]:
    return {"u": "alice", "p": f"enc:{secret.encode().hex()}"}


def _plain(secret: str) -> Mapping[str, str]:
    return {"u": "alice", "p": secret}


def _key(secret: str) -> Mapping[str, str]:
    return {"apiKey": secret}


def _basic(user: str, password: str) -> dict[str, str]:
    text = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {text}"}


APPS = [
    App("Symfonium", _fixed, headers=_basic("edge", "its password")),
    App("DSub", _fixed),
    App("DSub-legacy", _plain),
    App("Feishin", _fixed),
    App("Supersonic", _fresh),
    App("Amperfy", _fresh),
    App("airsonic-refix", _fixed, form=True),
    App("Strawberry", _hexadecimal),
    App("Nocturne", _key),
    App("SubTUI", _key, form=True),
    App("form-salts", _fresh, form=True),
    App("form-password", _plain, form=True),
    App("form-hexadecimal", _hexadecimal, form=True),
    App("curl", lambda _: {}, basic=True),
    App("curl-form", lambda _: {}, form=True, basic=True),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secret(songs: RunningShim) -> str:
    return (await songs.add("uid-alice")).secret


@pytest.mark.parametrize("app", APPS, ids=lambda app: app.name)
async def test_an_app_lists_plays_and_keeps_playlists(
    songs: RunningShim, secret: str, app: App
) -> None:
    async def call(call: str, /, **parameters: Any) -> dict[str, Any]:
        response = await app.call(songs, secret, call, **parameters)
        assert error_of(response) is None, response.text
        return envelope(response)

    albums = (await call("getAlbumList2", type="alphabeticalByName", size=50))["albumList2"][
        "album"
    ]
    album = (await call("getAlbum", id=albums[0]["id"]))["album"]
    song = album["song"][0]
    cover = await app.call(songs, secret, "getCoverArt", id=album["coverArt"], size=64)
    assert cover.status_code == 200 and cover.headers["content-type"].startswith("image/")
    part = replace(app, headers={**app.headers, "Range": "bytes=10-109"})
    played = await part.call(songs, secret, "stream", id=song["id"], format="raw")
    assert played.status_code == 206 and len(played.content) == 100
    await call("scrobble", id=song["id"], submission="true")
    await call("createPlaylist", name=f"By {app.name}", songId=[song["id"], song["id"]])
    playlists = (await call("getPlaylists"))["playlists"]["playlist"]
    mine = next(each for each in playlists if each["name"] == f"By {app.name}")
    assert mine["owner"] == "alice" and mine["songCount"] == 2
    await call("updatePlaylist", playlistId=mine["id"], songIndexToRemove=0)
    assert (await call("getPlaylist", id=mine["id"]))["playlist"]["songCount"] == 1
    await call("deletePlaylist", id=mine["id"])


@pytest.mark.parametrize("how", ["token", "password", "key"])
@pytest.mark.parametrize("method", ["get", "post"])
async def test_py_opensonic(songs: RunningShim, secret: str, method: str, how: str) -> None:
    credentials = {"username": "alice", "password": secret} if how != "key" else {"api_key": secret}
    app = AsyncConnection(
        "http://127.0.0.1",
        port=songs.port,
        use_get=method == "get",
        legacy_auth=how == "password",
        **credentials,
    )
    try:
        assert await app.ping()
        albums = await app.get_album_list2("alphabeticalByName", size=50)
        album = await app.get_album(albums[0].id)
        song = album.song[0]
        async with await app.get_cover_art(album.cover_art, size=64) as response:
            assert response.status == 200
        async with await app.stream(song.id, tformat="raw", byte_range="bytes=0-99") as response:
            assert response.status == 206 and len(await response.read()) == 100
        await app.scrobble(song.id)
        name = f"py-opensonic {method} {how}"
        await app.create_playlist(name=name, song_ids=[song.id])
        assert name in {each.name for each in await app.get_playlists()}
    finally:
        await app.cleanup()


@pytest.mark.parametrize("how", ["token", "password"])
async def test_py_sonic(songs: RunningShim, secret: str, how: str) -> None:
    def use() -> None:
        app = libsonic.Connection(
            "http://127.0.0.1",
            "alice",
            secret,
            port=songs.port,
            legacyAuth=how == "password",
        )
        assert app.ping()
        albums = app.getAlbumList2("alphabeticalByName", size=50)["albumList2"]["album"]
        album = app.getAlbum(albums[0]["id"])["album"]
        song = album["song"][0]
        assert app.getCoverArt(album["coverArt"], size=64).read(2) == b"\xff\xd8"
        whole = app.stream(song["id"], tformat="raw").read()
        assert len(whole) > 1000
        assert app.scrobble(song["id"])["status"] == "ok"
        name = f"py-sonic {how}"
        app.createPlaylist(name=name, songIds=[song["id"]])
        playlists = app.getPlaylists()["playlists"]["playlist"]
        assert name in {each["name"] for each in playlists}

    await asyncio.to_thread(use)


async def test_a_link_for_a_speaker_works(songs: RunningShim, secret: str) -> None:
    """An app hands the address of a stream to a speaker, which sends nothing else."""
    albums = envelope(
        await songs.rest("getAlbumList2", type="newest", u="alice", **token(secret, "a"))
    )["albumList2"]["album"]
    album = envelope(await songs.rest("getAlbum", id=albums[0]["id"], apiKey=secret))["album"]
    query = httpx.QueryParams(
        {
            "u": "alice",
            **token(secret, "speaker"),
            "v": "1.8",
            "c": "x",
            "id": album["song"][0]["id"],
        }
    )
    async with httpx.AsyncClient(trust_env=False) as speaker:
        url = f"{songs.url}/rest/stream?{query}"
        head = await speaker.head(url)
        whole = await speaker.get(url)
    assert head.status_code == whole.status_code == 200
    assert whole.headers["content-type"].startswith("audio/")
