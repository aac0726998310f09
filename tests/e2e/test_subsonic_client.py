"""A real Subsonic app (py-opensonic), which is not aware of the edge: logs in, lists and plays."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from libopensonic import AsyncConnection
from libopensonic.errors import CredentialError

from tests.e2e.conftest import PASSWORD, Deployment
from tests.e2e.test_takeover import identity_fields


async def connected(
    deployment: Deployment, password: str = PASSWORD, **options: Any
) -> AsyncConnection:
    """The app, set up with a server's address, a user's name and a password."""
    edge = urlsplit(deployment.url)
    return AsyncConnection(f"http://{edge.hostname}", "alice", password, edge.port, **options)


@pytest.fixture(params=["post", "get", "password"])
async def app(
    deployment: Deployment, request: pytest.FixtureRequest
) -> AsyncIterator[AsyncConnection]:
    """The app in the three ways in which apps authenticate."""
    how: str = request.param
    connection = await connected(deployment, use_get=how != "post", legacy_auth=how == "password")
    yield connection
    await connection.cleanup()


@pytest.fixture
async def player(deployment: Deployment) -> AsyncIterator[AsyncConnection]:
    """The app as it plays: by GET.

    By POST, Traefik itself sometimes truncates a long response that starts at once, with or without
    the shim: Go's ReverseProxy closes the request's body while its transport still reads it, and
    with that the connection.
    """
    connection = await connected(deployment, use_get=True)
    yield connection
    await connection.cleanup()


async def test_it_logs_in(app: AsyncConnection, deployment: Deployment) -> None:
    assert await app.ping()
    assert deployment.received
    for seen in deployment.received:
        assert identity_fields(seen.headers) == []


async def test_a_wrong_password_is_rejected(deployment: Deployment) -> None:
    app = await connected(deployment, "wrong")
    try:
        with pytest.raises(CredentialError):
            await app.get_artists()
    finally:
        await app.cleanup()


async def test_it_lists_the_music(app: AsyncConnection, deployment: Deployment) -> None:
    songs = deployment.stand_in.state.catalogue.songs
    artists = await app.get_artists()
    assert {a.name for index in artists.index for a in index.artist} == {s.artist for s in songs}
    albums = await app.get_album_list2("alphabeticalByName", size=50)
    assert {album.name for album in albums} == {song.album for song in songs}
    ground = await app.get_album(next(album.id for album in albums if album.name == "Ground"))
    assert {song.title for song in ground.song} == {s.title for s in songs if s.album == "Ground"}


async def test_a_track_is_received_byte_for_byte(
    player: AsyncConnection, deployment: Deployment
) -> None:
    long = max(deployment.stand_in.state.catalogue.songs, key=lambda song: song.tone.size)
    whole = long.tone.slice(0, long.tone.size)
    async with await player.stream(long.id, tformat="raw") as response:
        received = await response.read()
    assert len(received) == len(whole) == int(response.headers["Content-Length"])
    assert hashlib.sha256(received).digest() == hashlib.sha256(whole).digest()


@pytest.mark.parametrize("span", [(0, 99), (1000, 70_000), (4_000_000, None)])
async def test_a_range_of_a_track_is_that_part(
    player: AsyncConnection, deployment: Deployment, span: tuple[int, int | None]
) -> None:
    long = max(deployment.stand_in.state.catalogue.songs, key=lambda song: song.tone.size)
    first, last = span
    end = long.tone.size if last is None else last + 1
    wanted = f"bytes={first}-{'' if last is None else last}"
    async with await player.stream(long.id, tformat="raw", byte_range=wanted) as response:
        received = await response.read()
    assert response.status == 206
    assert response.headers["Content-Range"] == f"bytes {first}-{end - 1}/{long.tone.size}"
    assert received == long.tone.slice(first, end)


async def test_a_cover_is_a_picture(player: AsyncConnection, deployment: Deployment) -> None:
    song = deployment.stand_in.state.catalogue.songs[0]
    async with await player.get_cover_art(song.album_id, size=64) as response:
        picture = await response.read()
    assert picture.startswith(b"\xff\xd8")
    assert len(picture) == deployment.stand_in.options.cover_bytes
