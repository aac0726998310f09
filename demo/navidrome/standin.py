"""Starting and stopping a stand-in Navidrome: on the running event loop, or in its own thread.

The sockets are bound here, so that port 0 is replaced by a number before it is read.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from uvicorn import Config
from uvicorn.server import ServerState

from demo.navidrome.accounts import Accounts
from demo.navidrome.faults import Fault
from demo.navidrome.goform import Json
from demo.navidrome.native_api import event
from demo.navidrome.options import StandInOptions
from demo.navidrome.request import SeenRequest
from demo.navidrome.serving import Serving
from demo.navidrome.state import State
from demo.navidrome.wire import wire_below

_START_SECONDS = 10.0
_STOP_SECONDS = 5.0


class StandIn:
    """A stand-in Navidrome that can be started, stopped and restarted with its data.

    options: see `StandInOptions`.
    clock: Unix seconds; tests pass their own to let tokens expire.

    Usable as an async context manager. Everything but `start` and `stop` may be called from any
    thread.
    """

    def __init__(
        self, options: StandInOptions | None = None, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.options = options or StandInOptions()
        self.state = State.empty(self.options, clock)
        self._serving = Serving(self.state)
        self._uvicorn = ServerState()
        self._server: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listen = ""

    async def start(self, listen: str = "127.0.0.1:0") -> None:
        """Listen on `host:port`, `[v6]:port` or `unix:/path`; port 0 is any free one.

        Raises `OSError` if the address is not available.
        """
        config = Config(
            self._serving,
            http=wire_below(self.options.base_path),
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=120,
        )
        config.load()
        self.state.closing = asyncio.Event()
        self._uvicorn = ServerState()
        self._loop = asyncio.get_running_loop()
        listener = _bind(listen)

        def connection() -> asyncio.Protocol:
            created: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self._uvicorn, app_state={}
            )
            return created

        self._server = await self._loop.create_server(connection, sock=listener)
        name = listener.getsockname()
        if isinstance(name, str):
            self._listen = f"unix:{name}"
        else:
            host = f"[{name[0]}]" if ":" in name[0] else name[0]
            self._listen = f"{host}:{name[1]}"

    async def stop(self) -> None:
        """Close the socket and every connection at once; the data remains."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        self.state.closing.set()
        for connection in list(self._uvicorn.connections):
            connection.transport.abort()
        # Responses end by themselves once their client has disconnected.
        if self._uvicorn.tasks:
            await asyncio.wait(list(self._uvicorn.tasks), timeout=_STOP_SECONDS)
        if self._listen.startswith("unix:"):
            _remove(Path(self._listen.removeprefix("unix:")))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def listen(self) -> str:
        """Its address, in the form that `start` accepts, with the real port."""
        return self._listen

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        return int(self._listen.rpartition(":")[2])

    @property
    def url(self) -> str:
        """`http://host:port` and the base path; for a Unix socket `http://navidrome` and it."""
        where = "navidrome" if self._listen.startswith("unix:") else self._listen
        return f"http://{where}{self.options.base_path}"

    @property
    def accounts(self) -> Accounts:
        """The accounts, to read and to prepare."""
        return self.state.accounts

    @property
    def seen(self) -> deque[SeenRequest]:
        """The last received requests, oldest first; `clear()` removes them."""
        return self._serving.seen

    @property
    def fault(self) -> Fault | None:
        """The injected fault, None for none."""
        return self._serving.fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        self._serving.fault = fault

    @property
    def event_streams(self) -> int:
        """How many `/api/events` are open."""
        return len(self.state.listeners)

    def send_event(self, name: str, data: Json) -> None:
        """Send an event to every open event stream."""
        loop = self._loop
        if loop is None:
            return

        def put() -> None:
            for listener in self.state.listeners:
                listener.put_nowait(event(1, name, data))

        loop.call_soon_threadsafe(put)


class StandInThread:
    """A stand-in running in a thread with a loop of its own, for tests that have none.

    `with StandInThread(StandInOptions(...)) as stand_in:` gives the started `StandIn`.
    """

    def __init__(
        self,
        options: StandInOptions | None = None,
        *,
        listen: str = "127.0.0.1:0",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.stand_in = StandIn(options, clock=clock)
        self._where = listen
        self._started = threading.Event()
        self._stop: Callable[[], None] | None = None
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="stand-in", daemon=True)

    def start(self) -> StandIn:
        """Start, and return once it listens. Raises `OSError` if the address is not available."""
        self._thread.start()
        if not self._started.wait(_START_SECONDS):
            raise TimeoutError(f"the stand-in did not start within {_START_SECONDS} s")
        if self._error is not None:
            raise self._error
        return self.stand_in

    def stop(self) -> None:
        """Stop, and return once its thread has ended."""
        if self._stop is not None:
            self._stop()
        self._thread.join(_START_SECONDS)

    def __enter__(self) -> StandIn:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        try:
            await self.stand_in.start(self._where)
        except OSError as error:
            self._error = error
            self._started.set()
            return

        def stop() -> None:
            loop.call_soon_threadsafe(stopping.set)

        self._stop = stop
        self._started.set()
        await stopping.wait()
        await self.stand_in.stop()


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    address: str | tuple[str, int]
    if listen.startswith("unix:"):
        family, address = socket.AF_UNIX, listen.removeprefix("unix:")
    elif host.startswith("["):
        family, address = socket.AF_INET6, (host.strip("[]"), int(port))
    else:
        family, address = socket.AF_INET, (host, int(port))
    # asyncio disables Nagle's algorithm only where the protocol is named.
    protocol = 0 if family == socket.AF_UNIX else socket.IPPROTO_TCP
    listener = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        if family != socket.AF_UNIX:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
