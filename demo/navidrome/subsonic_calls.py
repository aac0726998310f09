"""The Subsonic calls of a stand-in that a music app needs to log in, browse and play.

One function per call, in a table by its name. Many change data by `GET`, as in the protocol.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from itertools import groupby
from typing import TypeAlias

from demo.navidrome.accounts import Account
from demo.navidrome.goform import Json, new_id
from demo.navidrome.media import cover
from demo.navidrome.ranges import serve_tone
from demo.navidrome.request import Params, Request
from demo.navidrome.responses import Response
from demo.navidrome.songs import RELEASED, Song
from demo.navidrome.state import Playlist, State

_COVER_EDGE = 300
_ALBUM_LISTS = frozenset(
    {"newest", "recent", "random", "alphabeticalByName", "alphabeticalByArtist", "frequent"}
    | {"starred", "highest", "byGenre", "byYear"}
)
_COPIED = 8192


class SubsonicError(Exception):
    """An error by its Subsonic code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


Payload: TypeAlias = Mapping[str, Json]
SubsonicCall = Callable[[State, Account, Request, Params], Payload | Response]


def ping(_state: State, _caller: Account, _request: Request, _params: Params) -> Payload:
    return {}


def get_license(_state: State, _caller: Account, _request: Request, _params: Params) -> Payload:
    return {"license": {"valid": True}}


def get_user(state: State, caller: Account, _request: Request, params: Params) -> Payload:
    if _required(params, "username").casefold() != caller.user_name.casefold():
        raise SubsonicError(50, "User is not authorized for the given operation")
    return {"user": _user_json(state, caller)}


def get_users(state: State, caller: Account, _request: Request, _params: Params) -> Payload:
    """For admins; lists only the requesting user, like the real one."""
    if not caller.is_admin:
        raise SubsonicError(50, "User is not authorized for the given operation")
    return {"users": {"user": [_user_json(state, caller)]}}


def get_music_folders(state: State, caller: Account, _request: Request, _params: Params) -> Payload:
    folders: list[Json] = [
        {"id": library.id, "name": library.name} for library in state.accounts.libraries_for(caller)
    ]
    return {"musicFolders": {"musicFolder": folders}}


def get_artists(state: State, caller: Account, _request: Request, _params: Params) -> Payload:
    songs = sorted(state.catalogue.within(caller.libraries), key=lambda song: song.artist)
    artists = [list(group) for _, group in groupby(songs, lambda song: song.artist)]
    index: list[Json] = [
        {"name": initial, "artist": [_artist_json(group) for group in with_initial]}
        for initial, with_initial in groupby(artists, lambda group: group[0].artist[0].upper())
    ]
    ignored = "The El La Los Las Le Les Os As O A"
    return {"artists": {"index": index, "lastModified": 1714521600000, "ignoredArticles": ignored}}


def get_artist(state: State, caller: Account, _request: Request, params: Params) -> Payload:
    songs = [s for s in _found(state, caller, params) if s.artist_id == params.first("id")]
    if not songs:
        raise SubsonicError(70, "Artist not found")
    albums: list[Json] = [_album_json(album) for album in _albums(songs)]
    return {"artist": {**_artist_json(songs), "album": albums}}


def get_album_list(state: State, caller: Account, _request: Request, params: Params) -> Payload:
    wanted = _required(params, "type")
    if wanted not in _ALBUM_LISTS:
        raise SubsonicError(0, f"type '{wanted}' not implemented")
    albums = _albums(state.catalogue.within(caller.libraries))
    start = params.number("offset")
    end = albums[start : start + (params.number("size") or 10)]
    return {"albumList2": {"album": [_album_json(album) for album in end]}}


def get_album(state: State, caller: Account, _request: Request, params: Params) -> Payload:
    songs = [s for s in _found(state, caller, params) if s.album_id == params.first("id")]
    if not songs:
        raise SubsonicError(70, "Album not found")
    tracks: list[Json] = [_song_json(song) for song in songs]
    return {"album": {**_album_json(songs), "song": tracks}}


def get_song(state: State, caller: Account, _request: Request, params: Params) -> Payload:
    return {"song": _song_json(_the_song(state, caller, params))}


def search3(state: State, caller: Account, _request: Request, params: Params) -> Payload:
    wanted = params.first("query").strip('"').casefold()
    songs = state.catalogue.within(caller.libraries)
    titles: list[Json] = [_song_json(s) for s in songs if wanted in s.title.casefold()]
    albums: list[Json] = [
        _album_json(album) for album in _albums(songs) if wanted in album[0].album.casefold()
    ]
    return {"searchResult3": {"album": albums, "song": titles}}


def stream(state: State, caller: Account, request: Request, params: Params) -> Response:
    tone = _the_song(state, caller, params).tone
    return serve_tone(request, tone, (("X-Content-Duration", f"{tone.seconds:g}"),))


def download(state: State, caller: Account, request: Request, params: Params) -> Response:
    song = _the_song(state, caller, params)
    name = ("Content-Disposition", f'attachment; filename="{song.title}.wav"')
    return serve_tone(request, song.tone, (name,))


def get_cover_art(state: State, _caller: Account, request: Request, params: Params) -> Response:
    """A cover for every id, in chunks, as `io.Copy` writes one."""
    if not params.first("id"):
        placeholder = (("Cache-Control", "no-store"), ("Content-Type", "image/jpeg"))
        return Response(200, placeholder, cover(state.options.cover_bytes, _COVER_EDGE, 0))
    wanted = params.first("id").partition("-")[2] or params.first("id")
    if not state.catalogue.by_id(wanted.partition("_")[0]):
        raise SubsonicError(70, "Artwork not found")
    digest = hashlib.sha256(wanted.encode()).hexdigest()
    etag = f'"{digest[:16]}.{params.number("size")}.false.q75"'
    headers = (("Cache-Control", "public, no-cache"), ("ETag", etag))
    known = request.header("If-None-Match").strip()
    asserted = {each.strip().removeprefix("W/").strip('"') for each in known.split(",")}
    if known == "*" or etag.strip('"') in asserted:
        return Response(304, headers)
    image = cover(state.options.cover_bytes, _COVER_EDGE, int(digest[:2], 16))

    async def pieces() -> AsyncGenerator[bytes, None]:
        for at in range(0, len(image), _COPIED):
            yield image[at : at + _COPIED]

    return Response(200, (*headers, ("Content-Type", "image/jpeg")), pieces())


def scrobble(state: State, caller: Account, _request: Request, params: Params) -> Payload:
    """Records known songs, and reports no unknown one."""
    _required(params, "id")
    ids, times = params.all("id"), params.all("time")
    if times and len(times) != len(ids):
        message = f"Wrong number of timestamps: {len(times)}, should be {len(ids)}"
        raise SubsonicError(0, message)
    titles = {s.id: s.title for s in state.catalogue.within(caller.libraries)}
    state.scrobbles += [f"{caller.user_name} {titles[each]}" for each in ids if each in titles]
    return {}


def create_playlist(state: State, caller: Account, _request: Request, params: Params) -> Payload:
    """A new playlist each time, by `GET` too."""
    if not params.first("name"):
        raise SubsonicError(0, "Internal Server Error: required parameter name is missing")
    created = Playlist(new_id(), params.first("name"), tuple(params.all("songId")), caller.id)
    state.playlists[created.id] = created
    return {"playlist": _playlist_json(state, created)}


def get_playlists(state: State, caller: Account, _request: Request, _params: Params) -> Payload:
    """The own ones; all of them for admins."""
    shown: list[Json] = [
        _playlist_json(state, playlist)
        for playlist in state.playlists.values()
        if caller.is_admin or playlist.owner_id == caller.id
    ]
    return {"playlists": {"playlist": shown} if shown else {}}


def get_playlist(state: State, caller: Account, _request: Request, params: Params) -> Payload:
    return {"playlist": _playlist_json(state, _the_playlist(state, caller, params, "id"))}


def update_playlist(state: State, caller: Account, _request: Request, params: Params) -> Payload:
    playlist = _the_playlist(state, caller, params, "playlistId")
    removed = {int(index) for index in params.all("songIndexToRemove") if index.isdecimal()}
    kept = [song for n, song in enumerate(playlist.song_ids) if n not in removed]
    state.playlists[playlist.id] = replace(
        playlist,
        name=params.first("name") or playlist.name,
        song_ids=(*kept, *params.all("songIdToAdd")),
    )
    return {}


def delete_playlist(state: State, caller: Account, _request: Request, params: Params) -> Payload:
    del state.playlists[_the_playlist(state, caller, params, "id").id]
    return {}


CALLS: dict[str, SubsonicCall] = {
    "ping": ping,
    "getLicense": get_license,
    "getUser": get_user,
    "getUsers": get_users,
    "getMusicFolders": get_music_folders,
    "getArtists": get_artists,
    "getArtist": get_artist,
    "getAlbumList2": get_album_list,
    "getAlbum": get_album,
    "getSong": get_song,
    "search3": search3,
    "stream": stream,
    "download": download,
    "getCoverArt": get_cover_art,
    "scrobble": scrobble,
    "createPlaylist": create_playlist,
    "getPlaylists": get_playlists,
    "getPlaylist": get_playlist,
    "updatePlaylist": update_playlist,
    "deletePlaylist": delete_playlist,
}

PLAYERLESS = frozenset({"getCoverArt"})
"""Calls that register no player and set no cookie."""


def _required(params: Params, name: str) -> str:
    value = params.first(name)
    if not value:
        raise SubsonicError(10, f"missing parameter: '{name}'")
    return value


def _found(state: State, caller: Account, params: Params) -> list[Song]:
    songs = state.catalogue.by_id(_required(params, "id"))
    return [song for song in songs if song.library_id in caller.libraries]


def _the_song(state: State, caller: Account, params: Params) -> Song:
    songs = [s for s in _found(state, caller, params) if s.id == params.first("id")]
    if not songs:
        raise SubsonicError(70, "data not found")
    return songs[0]


def _the_playlist(state: State, caller: Account, params: Params, name: str) -> Playlist:
    playlist = state.playlists.get(_required(params, name))
    if playlist is None or not (caller.is_admin or playlist.owner_id == caller.id):
        raise SubsonicError(70, "data not found")
    return playlist


def _albums(songs: list[Song]) -> list[list[Song]]:
    ordered = sorted(songs, key=lambda song: (song.album, song.artist, song.track))
    return [list(group) for _, group in groupby(ordered, lambda song: song.album_id)]


def _user_json(state: State, account: Account) -> dict[str, Json]:
    email: dict[str, Json] = {"email": account.email} if account.email else {}
    return {
        "username": account.user_name,
        **email,
        "scrobblingEnabled": True,
        "adminRole": account.is_admin,
        "settingsRole": False,
        "downloadRole": True,
        "uploadRole": False,
        "playlistRole": False,
        "coverArtRole": True,
        "commentRole": False,
        "podcastRole": False,
        "streamRole": True,
        "jukeboxRole": False,
        "shareRole": True,
        "videoConversionRole": False,
        "folder": [library.id for library in state.accounts.libraries_for(account)],
    }


def _artist_json(songs: list[Song]) -> dict[str, Json]:
    albums = len({song.album_id for song in songs})
    one = songs[0]
    return {
        "id": one.artist_id,
        "name": one.artist,
        "coverArt": f"ar-{one.artist_id}_0",
        "albumCount": albums,
    }


def _album_json(songs: list[Song]) -> dict[str, Json]:
    one = songs[0]
    return {
        "id": one.album_id,
        "name": one.album,
        "artist": one.artist,
        "artistId": one.artist_id,
        "coverArt": f"al-{one.album_id}_0",
        "songCount": len(songs),
        "duration": sum(song.tone.seconds for song in songs),
        "created": RELEASED,
    }


def _song_json(song: Song) -> dict[str, Json]:
    return {
        "id": song.id,
        "parent": song.album_id,
        "isDir": False,
        "title": song.title,
        "album": song.album,
        "artist": song.artist,
        "track": song.track,
        "coverArt": f"mf-{song.id}_0",
        "size": song.tone.size,
        "contentType": "audio/x-wav",
        "suffix": "wav",
        "duration": song.tone.seconds,
        "bitRate": 128,
        "path": f"{song.artist}/{song.album}/{song.track:02d} - {song.title}.wav",
        "created": RELEASED,
        "albumId": song.album_id,
        "artistId": song.artist_id,
        "type": "music",
    }


def _playlist_json(state: State, playlist: Playlist) -> dict[str, Json]:
    seconds = {song.id: song.tone.seconds for song in state.catalogue.songs}
    return {
        "id": playlist.id,
        "name": playlist.name,
        "songCount": len(playlist.song_ids),
        "duration": sum(seconds.get(each, 0) for each in playlist.song_ids),
        "public": False,
        "owner": state.accounts.by_id[playlist.owner_id].user_name,
        "created": RELEASED,
        "changed": RELEASED,
    }
