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


def may_be_alive(owner: str, mine: str, started_at: float, now: float) -> bool:
    """Whether `owner`, who began at `since`, may still be at work. `mine` is the asker's own name."""
    if owner == mine:
        return True
    if now - started_at > LEASE_SECONDS or started_at > now + LEASE_SECONDS:
        return False
    host, _, remainder = owner.partition("/")
    process = remainder.partition("/")[0]
    my_host, _, my_remainder = mine.partition("/")
    if host != my_host or not process.isdigit():
        return True
    if process == my_remainder.partition("/")[0]:
        return False  # the number is this process's now
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
