"""Replace a monitor's sleeps by a record of their lengths."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest


def record_sleeps(monkeypatch: pytest.MonkeyPatch, module: str, max_sleeps: int) -> list[float]:
    """The sleeps of this module from now on; the one after `max_sleeps` cancels it. Only this module's:
    servers of other tests sleep as well.
    """
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) > max_sleeps:
            raise asyncio.CancelledError

    monkeypatch.setattr(f"{module}.asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    return pauses
