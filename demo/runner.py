"""The demo's run: the environment, the scenario, and the time after it until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

from demo.environment import (
    WELL_KNOWN,
    Environment,
    EnvironmentFailed,
    free_ports,
    start_environment,
)
from demo.reporter import ConsoleReporter
from demo.scenario import Step, StepResult, run_steps
from demo.sidecar import NotStarted
from demo.steps import STEPS

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoFailed(Exception):
    """The demo could not be completed; the message has the reason."""


def run(*, once: bool, reporter: ConsoleReporter, steps: Sequence[Step] = STEPS) -> bool:
    """Run the scenario, then wait for a signal, or end at `once`.

    Returns whether every step passed; everything that was started has ended then. A signal during
    the scenario ends it. Raises `NotPlayed`.
    """
    try:
        return asyncio.run(_run(once, reporter, steps))
    except (EnvironmentFailed, NotStarted, OSError) as error:
        raise DemoFailed(str(error)) from error
    except asyncio.CancelledError:
        raise DemoFailed("ended by a signal before the scenario ended") from None


async def _run(once: bool, reporter: ConsoleReporter, steps: Sequence[Step]) -> bool:
    _cancel_at_a_signal()
    async with AsyncExitStack() as parts:
        environment = await _start_environment(parts, once)
        reporter.opening(environment)
        results: list[StepResult] = []
        async for one in run_steps(environment, steps):
            results.append(one)
            reporter.step(len(results), one)
        reporter.summary(results)
        if not once:
            with contextlib.suppress(asyncio.CancelledError):
                await _follow_log(reporter, environment)
    return not any(one.faults for one in results)


async def _start_environment(parts: AsyncExitStack, once: bool) -> Environment:
    """The environment, at the default ports where it keeps running and they are free."""
    if not once:
        with contextlib.suppress(NotStarted, OSError):  # another demo was faster
            return await parts.enter_async_context(start_environment(free_ports(WELL_KNOWN)))
    return await parts.enter_async_context(start_environment())


def _cancel_at_a_signal() -> None:
    task = asyncio.current_task()
    assert task is not None

    def cancel() -> None:
        if not task.cancelling():  # another signal does not stop the cleanup
            task.cancel()

    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, cancel)


async def _follow_log(reporter: ConsoleReporter, environment: Environment) -> None:
    with environment.shim.log_entries() as entries:
        reporter.instructions(environment)
        while (entry := await entries.get()) is not None:
            reporter.log(entry)
    raise NotStarted("the shim ended by itself")
