"""An application that is built with its first request."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shim.control.on_demand import OnDemandApp, load

SCOPE = {"type": "http", "method": "GET", "path": "/"}


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await Response("hello")(scope, receive, send)


async def body_of(app: ASGIApp) -> bytes:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("the request has no body")

    await app(SCOPE, receive, send)
    return b"".join(message.get("body", b"") for message in sent)


class Build:
    """A function that counts its calls, and can be held. `faults` are raised first."""

    def __init__(self, *faults: Exception) -> None:
        self.threads: list[int] = []
        self.began, self.may_end = threading.Event(), threading.Event()
        self._faults = list(faults)

    def __call__(self) -> ASGIApp:
        self.threads.append(threading.get_ident())
        self.began.set()
        assert self.may_end.wait(10)
        if self._faults:
            raise self._faults.pop(0)
        return hello


async def test_it_is_built_once_in_another_thread() -> None:
    build = Build()
    build.may_end.set()
    app = OnDemandApp(build)
    assert not build.threads
    assert [await body_of(app), await body_of(app)] == [b"hello", b"hello"]
    (thread,) = build.threads
    assert thread != threading.get_ident()


async def test_requests_that_arrive_while_it_is_built_wait_for_it() -> None:
    build = Build()
    app = OnDemandApp(build)
    requests = [asyncio.create_task(body_of(app)) for _ in range(3)]
    await asyncio.to_thread(build.began.wait, 10)
    build.may_end.set()
    assert await asyncio.gather(*requests) == [b"hello"] * 3
    assert len(build.threads) == 1


async def test_the_end_of_the_first_request_does_not_end_the_build() -> None:
    build = Build()
    app = OnDemandApp(build)
    first = asyncio.create_task(body_of(app))
    await asyncio.to_thread(build.began.wait, 10)
    second = asyncio.create_task(body_of(app))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    build.may_end.set()
    assert await second == b"hello"
    assert len(build.threads) == 1


async def test_threads_alternate_more_often_while_code_is_loaded() -> None:
    before = sys.getswitchinterval()
    assert await load(sys.getswitchinterval) < before
    with pytest.raises(ZeroDivisionError):
        await load(lambda: 1 // 0)
    assert sys.getswitchinterval() == before


async def test_after_a_failure_the_next_request_tries_again() -> None:
    build = Build(ImportError("no such module"))
    build.may_end.set()
    app = OnDemandApp(build)
    with pytest.raises(ImportError, match="no such module"):
        await body_of(app)
    assert await body_of(app) == b"hello"
    assert len(build.threads) == 2
