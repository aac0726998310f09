"""The shim as a process, with a Navidrome whose responses the test writes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.event_schema import faults_of_line
from tests.support.http_client import Client, Response
from tests.support.raw_connection import SocketTransport
from tests.support.running_proxy import EDGE
from tests.support.scripted_navidrome import OK, Navidrome, Served

_ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
# It accepts the user header, and has no accounts.
_PING = b'{"subsonic-response":{"status":"failed","error":{"code":40}}}'
_UNKNOWN_USER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(_PING), _PING)


@dataclass
class Program:
    """A running shim. `listen` and `control` are the addresses from its log."""

    process: asyncio.subprocess.Process
    events: list[dict[str, Any]] = field(default_factory=list)
    listen: str = ""
    control: str = ""
    clients: list[Client] = field(default_factory=list)

    async def event(self, name: str, number: int = 1) -> dict[str, Any]:
        """Wait for the first event of this name, or a later one, in the log."""
        while True:
            found = [event for event in self.events if event["kind"] == name]
            if len(found) >= number:
                return found[number - 1]
            await self._read()

    async def client(self, source: str = "127.0.0.1") -> Client:
        if self.listen.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            address: Any = self.listen.removeprefix("unix:")
        else:
            sock = socket.socket()
            sock.bind((source, 0))
            host, port = self.listen.rsplit(":", 1)
            address = (host, int(port))
        sock.setblocking(False)
        client = Client(SocketTransport(sock))
        self.clients.append(client)
        await asyncio.get_running_loop().sock_connect(sock, address)
        return client

    async def request(self, head: str, source: str = "127.0.0.1") -> Response:
        client = await self.client(source)
        try:
            return await client.request(head)
        finally:
            client.close()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal. Raise `ProcessLookupError` if the process has ended and was waited for."""
        # Not `send_signal`, which polls the process first: it may take the exit status, and asyncio then
        # reports 255.
        if self.process.returncode is not None:
            raise ProcessLookupError(self.process.pid)
        os.kill(self.process.pid, number)

    async def ended(self) -> int:
        """Return its exit status. All of its log is in `events` then."""
        with contextlib.suppress(EOFError):
            while True:
                await self._read()
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            line = await self.process.stdout.readline()
        if not line:
            raise EOFError("the log has no more lines")
        if line.startswith(
            b"navidrome-shim: "
        ):  # the shim's own errors, which may be missing from the log
            self.events.append({"kind": "stderr", "text": line.decode()})
            return
        event = json.loads(line)
        assert not (found := faults_of_line(event)), found
        self.events.append(event)


@asynccontextmanager
async def program(
    folder: Path, preexec: Callable[[], None] | None, /, **settings: str
) -> AsyncIterator[Program]:
    """Start the shim with these settings, beside those that every test needs."""
    env = {
        "PATH": os.defpath,
        "PYTHONPATH": str(_ROOT),
        "SHIM_LISTEN": "127.0.0.1:0",
        "SHIM_CONTROL_LISTEN": "127.0.0.1:0",
        "SHIM_PROVISIONING": "false",
        "SHIM_LOG_FORMAT": "json",
        "SHIM_REVERSE_PROXY_WHITELIST": EDGE,
        **{f"SHIM_{name.upper()}": value for name, value in settings.items()},
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "shim", "serve",
        cwd=folder, env=env, preexec_fn=preexec,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    shim = Program(process)
    try:
        yield shim
    finally:
        for client in shim.clients:
            client.close()
        if process.returncode is None:
            process.kill()
            await process.wait()


class ScriptedNavidrome:
    """The clients' requests through the shim.

    The shim's own requests get a fixed response: there is nothing but the web app, below `location`.
    """

    def __init__(self, navidrome: Navidrome, location: str = "/app/") -> None:
        self._navidrome = navidrome
        self._redirect = (
            f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
        )
        self._client_requests: asyncio.Queue[tuple[Served, bytes]] = asyncio.Queue()
        self._tasks = {asyncio.create_task(self._accept())}

    async def next(self) -> tuple[Served, bytes]:
        """The next connection that carries a client's request, and the request's head."""
        async with asyncio.timeout(PATIENCE):
            return await self._client_requests.get()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            served = await self._navidrome.next_connection()
            self._tasks.add(asyncio.create_task(self._serve(served)))

    async def _serve(self, served: Served) -> None:
        while _is_the_shims(head := await served.first_head()):
            if b"/rest/ping?" in head:
                await served.send(_UNKNOWN_USER)
            else:
                await served.send(OK if b" /app/ " in head else self._redirect)
        self._client_requests.put_nowait((served, head))


def _is_the_shims(head: bytes) -> bool:
    return b"python-httpx" in head or b"/ping HTTP/1.1" in head.partition(b"\r\n")[0]


@asynccontextmanager
async def started(
    folder: Path,
    navidrome: Navidrome,
    location: str = "/app/",
    preexec: Callable[[], None] | None = None,
    /,
    **settings: str,
) -> AsyncIterator[tuple[Program, ScriptedNavidrome]]:
    """A shim that has found this Navidrome, which redirects to its web app at `location`."""
    upstream = f"http://127.0.0.1:{navidrome.address.port}"
    async with program(folder, preexec, upstream=upstream, **settings) as shim:
        navidrome_end = ScriptedNavidrome(navidrome, location)
        try:
            event = await shim.event("started")
            shim.listen, shim.control = event["listen"], event["control_listen"]
            yield shim, navidrome_end
        finally:
            await navidrome_end.stop()
