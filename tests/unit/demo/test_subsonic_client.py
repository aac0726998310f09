"""A real Subsonic client works with the stand-in: log in, browse, play."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from libopensonic import AsyncConnection
from libopensonic.errors import CredentialError

from demo.navidrome import StandIn


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    async with StandIn() as server:
        async with httpx.AsyncClient(base_url=server.url) as client:
            await client.post("/auth/createAdmin", json={"username": "ada", "password": "s3cret"})
        yield server


def _client(stand_in: StandIn, password: str, **options: bool) -> Any:
    return AsyncConnection(
        "http://127.0.0.1", username="ada", password=password, port=stand_in.port, **options
    )


@pytest.mark.parametrize("options", [{}, {"use_get": True}, {"legacy_auth": True}])
async def test_it_logs_in_lists_and_streams(stand_in: StandIn, options: dict[str, bool]) -> None:
    client = _client(stand_in, "s3cret", **options)
    try:
        assert await client.ping()
        artists = [a for index in (await client.get_artists()).index for a in index.artist]
        assert [artist.name for artist in artists] == ["Ada", "Bela", "Carol"]
        albums = await client.get_album_list2("alphabeticalByName")
        assert [album.name for album in albums] == ["Air", "Ground", "Sea"]
        album = await client.get_album(albums[0].id)
        assert [song.title for song in album.song] == ["Song 3", "Song 4"]
        assert (await client.search3("song 5")).song[0].title == "Song 5"
        song = await client.get_song(album.song[0].id)
        assert len(await (await client.stream(song.id)).read()) == song.size
        cover = await (await client.get_cover_art(song.cover_art)).read()
        assert cover.startswith(b"\xff\xd8")
    finally:
        await client.cleanup()


async def test_a_wrong_password_is_an_error(stand_in: StandIn) -> None:
    client = _client(stand_in, "wrong")
    try:
        with pytest.raises(CredentialError):
            await client.ping()
    finally:
        await client.cleanup()


async def test_responses_are_the_same_in_xml_and_json(stand_in: StandIn) -> None:
    parameters = {"u": "ada", "p": "s3cret", "v": "1", "c": "x", "id": "none"}
    async with httpx.AsyncClient(base_url=stand_in.url) as client:
        as_xml = await client.get("/rest/getSong", params=parameters)
        as_json = await client.get("/rest/getSong", params={**parameters, "f": "json"})
    assert '<error code="70" message="data not found"></error>' in as_xml.text
    assert as_json.json()["subsonic-response"]["error"]["code"] == 70
