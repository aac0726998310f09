"""The demo from curtain to curtain: the stage, the play, and the time after it until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

from shim.demo.play import Played, Scene, play
from shim.demo.play_scenes import SCENES
from shim.demo.play_told import Teller
from shim.demo.sidecar import NotStarted
from shim.demo.stage import WELL_KNOWN, NotStaged, Stage, free_of, stage

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class NotPlayed(Exception):
    """The demo could not be played to its end; says why."""


def perform(*, once: bool, teller: Teller, scenes: Sequence[Scene] = SCENES) -> bool:
    """Play the demo, then stay until a signal comes, or leave at `once`.

    Whether every scene went as it must; everything that was started has ended then. A signal during the
    play ends it. Raises `NotPlayed`.
    """
    try:
        return asyncio.run(_perform(once, teller, scenes))
    except (NotStaged, NotStarted, OSError) as error:
        raise NotPlayed(str(error)) from error
    except asyncio.CancelledError:
        raise NotPlayed("ended by a signal before the play was over") from None


async def _perform(once: bool, teller: Teller, scenes: Sequence[Scene]) -> bool:
    _cancel_at_a_signal()
    async with AsyncExitStack() as parts:
        standing = await _set(parts, once)
        teller.opening(standing)
        played: list[Played] = []
        async for one in play(standing, scenes):
            played.append(one)
            teller.scene(len(played), one)
        teller.summary(played)
        if not once:
            with contextlib.suppress(asyncio.CancelledError):
                await _stay(teller, standing)
    return not any(one.faults for one in played)


async def _set(parts: AsyncExitStack, once: bool) -> Stage:
    """The stage, at addresses that are the same each time where it stays and they are free."""
    if not once:
        with contextlib.suppress(NotStarted, OSError):  # another demo was quicker
            return await parts.enter_async_context(stage(free_of(WELL_KNOWN)))
    return await parts.enter_async_context(stage())


def _cancel_at_a_signal() -> None:
    task = asyncio.current_task()
    assert task is not None

    def cancel() -> None:
        if not task.cancelling():  # another signal does not keep the first from cleaning up
            task.cancel()

    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, cancel)


async def _stay(teller: Teller, standing: Stage) -> None:
    with standing.shim.heard() as heard:
        teller.invitation(standing)
        while (entry := await heard.get()) is not None:
            teller.log(entry)
    raise NotStarted("the shim ended by itself")
