"""The driver of the slow path: resumed at once, cancelled at once."""

from __future__ import annotations

import asyncio

import pytest

from shim.proxy.slow_path import SlowPath, suspend
from tests.support.http_client import get
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_navidrome import OK, Navidrome


class Steps:
    """A slow path with two waits, which records what happens."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.path = SlowPath(self._run(), lambda: self.log.append("resumed end"))

    async def _run(self) -> None:
        try:
            self.log.append(await suspend())
            self.log.append(await suspend())
        except ValueError as error:
            self.log.append(str(error))
        finally:
            self.log.append("given back")


def test_the_slow_path_continues_exactly_when_it_is_resumed() -> None:
    steps = Steps()
    steps.path.start()
    assert steps.log == []
    steps.path.resume(1)
    assert steps.log == [1]
    steps.path.run()
    assert steps.log == [1, None, "given back", "resumed end"]
    steps.path.resume(3)
    steps.path.throw(ValueError("late"))
    steps.path.cancel()
    assert len(steps.log) == 4, "nothing continues after the end"


def test_cancelling_releases_resources_at_once() -> None:
    steps = Steps()
    steps.path.start()
    steps.path.cancel()
    assert steps.log == ["given back"]
    steps.path.resume(1)
    assert steps.log == ["given back"]


def test_an_error_is_raised_at_the_wait() -> None:
    steps = Steps()
    steps.path.start()
    steps.path.throw(ValueError("no connection"))
    assert steps.log == ["no connection", "given back", "resumed end"]


def test_a_slow_path_that_never_waits_is_not_reported_as_resumed() -> None:
    async def run() -> None:
        pass

    SlowPath(run(), lambda: pytest.fail("it was not resumed")).start()


def test_a_slow_path_that_cancels_itself_runs_to_its_end() -> None:
    log: list[str] = []

    async def run() -> None:
        await suspend()
        path.cancel()
        log.append("end")

    path = SlowPath(run(), lambda: log.append("resumed end"))
    path.start()
    path.resume()
    assert log == ["end", "resumed end"]


def test_a_slow_path_that_cancels_itself_and_waits_is_ended_there() -> None:
    log: list[str] = []

    async def run() -> None:
        path.cancel()
        try:
            await suspend()
        finally:
            log.append("given back")

    path = SlowPath(run(), lambda: log.append("resumed end"))
    path.start()
    assert log == ["given back"]


def test_an_exception_reaches_the_caller_and_ends_the_slow_path() -> None:
    async def run() -> None:
        await suspend()
        raise RuntimeError("a defect")

    path = SlowPath(run(), lambda: pytest.fail("it did not end well"))
    path.start()
    with pytest.raises(RuntimeError, match="a defect"):
        path.resume()
    path.resume()


@pytest.mark.parametrize("done", [True, False])
async def test_a_future_is_awaited_or_cancelled(done: bool) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    log: list[str] = []

    async def run() -> None:
        await path.wait_for(future)
        log.append("done")

    path = SlowPath(run(), lambda: log.append("resumed end"))
    path.start()
    if done:
        future.set_result(None)
    else:
        path.cancel()
    await asyncio.sleep(0)
    assert log == (["done", "resumed end"] if done else [])
    assert future.cancelled() is not done


async def test_a_request_without_a_wait_has_no_slow_path(
    proxy: RunningProxy, navidrome: Navidrome
) -> None:
    client = await proxy.client()
    await client.send(get("/1").encode())
    served, _ = await navidrome.requests()
    handler = proxy.connection_of(client).handler
    assert handler is not None and handler._waiting is not None, "it waited for a connection"
    await served.send(OK)
    await client.read_response()
    await client.send(get("/2").encode())
    assert (await served.head()).startswith(b"GET /2 ")
    handler = proxy.connection_of(client).handler
    assert handler is not None and handler._waiting is None
    await served.send(OK)
    assert (await client.read_response()).status == 200
