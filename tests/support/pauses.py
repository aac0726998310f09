"""A watch that does not really pause: what it would have slept is written down."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest


def note_pauses(monkeypatch: pytest.MonkeyPatch, module: str, most: int) -> list[float]:
    """The pauses of this module from now on, which is cancelled in the one after `most`. Only its own:
    servers of other tests sleep as well."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) > most:
            raise asyncio.CancelledError

    monkeypatch.setattr(f"{module}.asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    return pauses
