"""Which process began something, and whether it may still be at it.

Two processes of one machine are told apart by their numbers; of one on another machine nothing can be
known, so it is given a time.
"""

from __future__ import annotations

import os
import secrets
import socket

# Longer than any one step takes between its intent and its end.
LEASE_SECONDS = 120.0


def new_owner() -> str:
    """A name for this process that no other one has or gets."""
    return f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(8)}"


def may_live(owner: str, mine: str, since: float, now: float) -> bool:
    """Whether `owner`, who began at `since`, may still be at work. `mine` is the asker's own name."""
    if owner == mine:
        return True
    if now - since > LEASE_SECONDS or since > now + LEASE_SECONDS:
        return False
    host, _, rest = owner.partition("/")
    process = rest.partition("/")[0]
    my_host, _, my_rest = mine.partition("/")
    if host != my_host or not process.isdigit():
        return True
    if process == my_rest.partition("/")[0]:
        return False  # the number is this process's now
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
