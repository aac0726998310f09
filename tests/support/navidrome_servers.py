"""The Navidromes that accounts are provisioned in: each can stop, restart, and restart empty.

The real one runs where `NAVIDROME_BIN` names a binary. Both listen on TCP or on a Unix socket.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import httpx

from demo.navidrome import Fault, Library, StandIn, StandInOptions
from shim.settings import Upstream, load
from tests.support.ports import free_port

ADMIN = "navidrome-shim"
_START_SECONDS = 20.0


class Server(Protocol):
    """A Navidrome. `upstream` is the value for `SHIM_UPSTREAM`."""

    upstream: str

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def empty(self) -> None:
        """Delete all data; for a server that is stopped."""


class StandInServer:
    """The stand-in, with what only it can do: inject faults, and count the requests it received."""

    def __init__(self, listen: str, options: StandInOptions) -> None:
        self._listen = listen
        self._options = options
        self.stand_in = StandIn(options)
        self.upstream = ""

    async def start(self) -> None:
        await self.stand_in.start(self._listen)
        self._listen = self.stand_in.listen
        self.upstream = upstream_of(self._listen)

    async def stop(self) -> None:
        await self.stand_in.stop()

    async def empty(self) -> None:
        self.stand_in = StandIn(self._options)

    def breaks(self, fault: Fault | None) -> None:
        """Inject a fault from now on, or none."""
        self.stand_in.fault = fault

    def requests(self, method: str, target: str) -> int:
        """Return how many requests it received whose target begins with this prefix."""
        seen = self.stand_in.seen
        return sum(each.method == method and each.target.startswith(target) for each in seen)


class RealServer:
    """A real Navidrome in a folder of its own, without music."""

    def __init__(self, binary: str, folder: Path, listen: str, settings: Mapping[str, str]) -> None:
        self._binary = binary
        self._folder = folder
        self._listen = listen
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self.upstream = upstream_of(listen)

    async def start(self) -> None:
        (self._folder / "music").mkdir(parents=True, exist_ok=True)
        host, _, port = self._listen.rpartition(":")
        unix = self._listen.startswith("unix:")
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self._folder),
            "ND_ADDRESS": self._listen if unix else host,
            "ND_DATAFOLDER": str(self._folder / "data"),
            "ND_CACHEFOLDER": str(self._folder / "cache"),
            "ND_MUSICFOLDER": str(self._folder / "music"),
            "ND_EXTAUTH_TRUSTEDSOURCES": "@" if unix else "127.0.0.1/32",
            "ND_ENABLEINSIGHTSCOLLECTOR": "false",
            "ND_ENABLEEXTERNALSERVICES": "false",
            **({} if unix else {"ND_PORT": port}),
            **self._settings,
        }
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - it is ended by `stop`
                [self._binary], env=environment, stdout=log, stderr=log
            )
        try:
            await self._responds()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await asyncio.to_thread(process.wait)
        if self._listen.startswith("unix:"):
            _remove(Path(self._listen.removeprefix("unix:")))

    async def empty(self) -> None:
        shutil.rmtree(self._folder / "data", ignore_errors=True)

    async def _responds(self) -> None:
        async with build_client(self.upstream) as client:
            async with asyncio.timeout(_START_SECONDS):
                while True:
                    try:
                        if (await client.get("/ping")).status_code == 200:
                            return
                    except httpx.TransportError:
                        pass
                    assert self._process is not None and self._process.poll() is None, self.output
                    await asyncio.sleep(0.02)

    @property
    def output(self) -> str:
        """The end of its log."""
        return (self._folder / "log").read_text("utf-8", "replace")[-2000:]


def build_server(
    kind: str,
    folder: Path,
    *,
    libraries: tuple[str, ...] = (),
    settings: Mapping[str, str] | None = None,
) -> Server:
    """A server that is not started yet. `kind`: `stand-in` or `real`, then `tcp` or `unix`. `settings`
    are further environment variables of a real one."""
    which, how = kind.split()
    path = folder / "nd.sock"
    if which == "stand-in":
        listen = "127.0.0.1:0" if how == "tcp" else f"unix:{path}"
        others = (Library(n, name, default_new_users=False) for n, name in enumerate(libraries, 2))
        options = StandInOptions(
            trusted_sources="127.0.0.1/32,@",
            libraries=(Library(1, "Music Library"), *others),
            name_race_probability=0.01,
            seen_limit=20_000,
        )
        return StandInServer(listen, options)
    listen = f"127.0.0.1:{free_port()}" if how == "tcp" else f"unix:{path}"
    return RealServer(os.environ["NAVIDROME_BIN"], folder / "navidrome", listen, settings or {})


def upstream_of(listen: str) -> str:
    """The server's address as a setting."""
    return listen if listen.startswith("unix:") else f"http://{listen}"


def build_client(upstream: str) -> httpx.AsyncClient:
    """A client of the server at this address."""
    where: Upstream = load({"SHIM_UPSTREAM": upstream}).upstream
    transport = httpx.AsyncHTTPTransport(uds=where.path)
    return httpx.AsyncClient(
        transport=transport, base_url=f"http://{where.authority}", timeout=10, trust_env=False
    )


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
