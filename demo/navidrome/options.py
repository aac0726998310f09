"""The configuration of a stand-in: Navidrome's own options with its defaults, and options for tests."""

from __future__ import annotations

from dataclasses import dataclass

from demo.navidrome.accounts import Library

SESSION_TIMEOUT = 48 * 3600.0
"""Seconds that a token lives after its last use (`SessionTimeout`)."""


@dataclass(frozen=True, slots=True)
class StandInOptions:
    """Options of a stand-in Navidrome.

    trusted_sources: `ND_EXTAUTH_TRUSTEDSOURCES`, as written there: CIDRs, commas, no blanks.
    user_header: `ND_EXTAUTH_USERHEADER`.
    base_path: `ND_BASEURL`, "" or "/music".
    login_limit, login_window: `AuthRequestLimit` (0: none) and `AuthWindowLength` in seconds.
    enable_user_editing: `EnableUserEditing`.
    show_configuration: `DevUIShowConfig`.
    jellyfin: whether `/jellyfin/` is mounted (off by default in the real one).
    events_every: seconds between two keep-alive events.
    racy_names: seconds between the check that a name is free and the write. The real server's
        delay lets `RaCe` and `rAcE` both be created; 0 never yields.
    cover_bytes: size of every cover.
    seen_limit: how many of the last requests `StandIn.seen` holds.
    libraries: the music libraries.
    """

    trusted_sources: str = "127.0.0.1/32"
    user_header: str = "Remote-User"
    base_path: str = ""
    login_limit: int = 5
    login_window: float = 20.0
    enable_user_editing: bool = True
    show_configuration: bool = True
    session_timeout: float = SESSION_TIMEOUT
    jellyfin: bool = True
    events_every: float = 15.0
    name_race_probability: float = 0.0
    cover_bytes: int = 30_000
    seen_limit: int = 1000
    libraries: tuple[Library, ...] = (Library(1, "Music Library"),)
