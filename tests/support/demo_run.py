"""The demo after its scenario, in a thread with its own event loop, for tests with a browser."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from demo.environment import Environment, start_environment
from demo.scenario import run_steps
from demo.steps import STEPS


@dataclass(frozen=True)
class FinishedDemo:
    """The demo after its scenario.

    `url` is the console's behind the edge, `local` on the control plane's own listener, both
    without a slash at the end. `cookies` are those of the admin's session at the edge.
    """

    environment: Environment
    url: str
    local: str
    cookies: list[Any]

    def cookies_of(self, user: str) -> list[Any]:
        """Return the cookies of a session at the edge."""
        return _sign_in(self.environment.edge.url, user)

    @property
    def host(self) -> str:
        return self.url.partition("//")[2].partition("/")[0]


@contextmanager
def run_demo(more: Callable[[Environment], None] = lambda _: None) -> Iterator[FinishedDemo]:
    """Run the demo's scenario and keep its environment running.

    `more` sends more requests after the scenario.
    """
    ready, ended = threading.Event(), threading.Event()
    found: list[Environment | BaseException] = []

    async def run_scenario() -> None:
        async with start_environment() as environment:
            faults = [step.faults async for step in run_steps(environment, STEPS) if step.faults]
            assert not faults
            await asyncio.to_thread(more, environment)
            found.append(environment)
            ready.set()
            await asyncio.to_thread(ended.wait)

    def run() -> None:
        try:
            asyncio.run(run_scenario())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            found.append(error)
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(120)
        environment = found[0]
        if isinstance(environment, BaseException):
            raise environment
        yield FinishedDemo(
            environment,
            f"{environment.edge.url}/_shim",
            environment.shim.control_url,
            _sign_in(environment.edge.url, "admin"),
        )
    finally:
        ended.set()
        thread.join(60)


def _sign_in(edge: str, user: str) -> list[Any]:
    with httpx.Client(trust_env=False, follow_redirects=True) as client:
        response = client.get(f"{edge}/_shim/?user={user}")
        assert response.status_code == 200, response.text
        return [
            {"name": cookie.name, "value": cookie.value, "url": edge}
            for cookie in client.cookies.jar
        ]
