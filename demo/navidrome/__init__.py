"""A stand-in Navidrome: its answers, its routes and its traps, in memory, with no music.

`tests/contract` holds it to a recording of the real server and, where a binary is named, holds
the real server to the same recording. A behaviour belongs here only if the real one shows it;
what is for tests alone (`seen`, `Fault`, the WebSocket's echo) says so where it is.
"""

from demo.navidrome.accounts import Account, Accounts, Library
from demo.navidrome.faults import Fault, FaultKind
from demo.navidrome.media import Tone
from demo.navidrome.options import StandInOptions
from demo.navidrome.request import SeenRequest
from demo.navidrome.songs import Song
from demo.navidrome.standin import StandIn, StandInThread

__all__ = [
    "Account",
    "Accounts",
    "Fault",
    "FaultKind",
    "Library",
    "SeenRequest",
    "Song",
    "StandIn",
    "StandInOptions",
    "StandInThread",
    "Tone",
]
