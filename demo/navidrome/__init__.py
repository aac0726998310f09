"""A stand-in Navidrome: its responses, routes and quirks, in memory, without music files.

`tests/contract` compares it with a recording of the real server and tests single behaviours; where a
binary is available, the same tests run on the real server. A behaviour belongs here only if the real one has
it; features for tests only (`seen`, `Fault`, the WebSocket's echo) are marked as such.
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
