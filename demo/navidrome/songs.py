"""The music of a stand-in: a fixed catalogue of seven songs, and the songs that a test adds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from demo.navidrome.media import Tone

RELEASED = "2024-05-01T00:00:00Z"
"""Every file's time."""


@dataclass(frozen=True, slots=True)
class Song:
    """A track: a tone of a length. `album_artist` is its artist too."""

    title: str
    album: str
    artist: str
    track: int
    tone: Tone
    library_id: int = 1

    @property
    def id(self) -> str:
        """The same in every stand-in, so that a demo can refer to it."""
        return _stable_id("song", self.artist, self.album, self.title)

    @property
    def album_id(self) -> str:
        """The id of its album."""
        return _stable_id("album", self.artist, self.album)

    @property
    def artist_id(self) -> str:
        """The id of its artist."""
        return _stable_id("artist", self.artist)


def _stable_id(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:22]


def _default_songs() -> list[Song]:
    return [
        Song("Long", "Ground", "Ada", 1, Tone(300, 400)),
        Song("Song 1", "Ground", "Ada", 2, Tone(20, 500)),
        Song("Song 2", "Ground", "Ada", 3, Tone(20, 800)),
        Song("Song 3", "Air", "Bela", 1, Tone(20, 250)),
        Song("Song 4", "Air", "Bela", 2, Tone(20, 320)),
        Song("Song 5", "Sea", "Carol", 1, Tone(20, 200)),
        Song("Song 6", "Sea", "Carol", 2, Tone(20, 160)),
    ]


@dataclass(slots=True)
class Catalogue:
    """All songs. Every look-up is limited to the user's libraries."""

    songs: list[Song] = field(default_factory=_default_songs)

    def within(self, libraries: Iterable[int]) -> list[Song]:
        """The songs of these libraries, by title."""
        allowed = set(libraries)
        return sorted((s for s in self.songs if s.library_id in allowed), key=lambda s: s.title)

    def by_id(self, entity_id: str) -> list[Song]:
        """The songs of a song, an album or an artist with that id, in track order."""
        found = [s for s in self.songs if entity_id in {s.id, s.album_id, s.artist_id}]
        return sorted(found, key=lambda s: (s.album, s.track))
