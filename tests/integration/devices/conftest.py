"""The whole shim in front of each kind of Navidrome, and a person with a device."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from shim.audit.events import Operator
from shim.devices.factory import build_device_service
from shim.devices.models import Device, NewDevice
from shim.devices.service import DeviceService
from shim.settings import load
from shim.store.database import Database
from tests.support import commands
from tests.support.harness import Harness
from tests.support.navidrome_servers import build_server
from tests.support.ports import free_port
from tests.support.real_navidrome import real_navidrome

ROOT = Path(__file__).parents[3]
TEST = Operator("command:test", "command")
VERSION = {"v": "1.16.1", "c": "test", "f": "json"}


def token(secret: str, salt: str) -> dict[str, str]:
    """The parameters of Subsonic's token scheme."""
    return {"t": hashlib.md5(f"{secret}{salt}".encode()).hexdigest(), "s": salt}


@dataclass
class RunningShim:
    """A shim that serves, in a process of its own, and what it logs. `client` speaks as the edge."""

    harness: Harness
    port: int
    control: int
    client: httpx.AsyncClient
    control_token: str = ""
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def sign_in(self, name: str, uid: str = "", groups: str = "music") -> httpx.Response:
        """Visit the web app with a browser."""
        headers = {
            "X-authentik-username": name,
            "X-authentik-uid": uid or f"uid-{name}",
            "X-authentik-groups": groups,
        }
        return await self.client.get("/app/", headers=headers)

    async def rest(
        self, call: str, headers: Mapping[str, str] | None = None, /, **parameters: str
    ) -> httpx.Response:
        """Send a Subsonic request with its parameters in the query."""
        return await self.client.get(
            f"/rest/{call}", params={**VERSION, **parameters}, headers=dict(headers or {})
        )

    async def post(
        self, call: str, form: Mapping[str, str], query: str = "", **headers: str
    ) -> httpx.Response:
        """Send a Subsonic request with its parameters in a form."""
        target = f"/rest/{call}{query and '?'}{query}"
        return await self.client.post(target, data={**VERSION, **form}, headers=headers)

    async def add(self, uid: str, name: str = "Phone", expires: float | None = None) -> NewDevice:
        """Add a device, in another process than the one that serves."""
        async with self.devices() as service:
            new = await service.add(uid, name, TEST, expires=expires)
        await self.until_verified(new)
        return new

    async def until_verified(self, new: NewDevice) -> None:
        """Wait until the shim knows the device."""
        async with asyncio.timeout(10):
            while (await self.rest("tokenInfo", apiKey=new.secret)).status_code != 200 or (  # noqa: ASYNC110
                error_of(await self.rest("tokenInfo", apiKey=new.secret)) is not None
            ):
                await asyncio.sleep(0.1)

    @asynccontextmanager
    async def devices(self) -> AsyncIterator[DeviceService]:
        """The devices in the same database, as a command has them."""
        database = Database(self.harness.database_url)
        service = build_device_service(load(self.harness.environment()), lambda _: None, database)
        try:
            await service.load()
            yield service
        finally:
            await asyncio.to_thread(database.close)

    async def listed(self) -> tuple[Device, ...]:
        async with self.devices() as service:
            return service.devices()

    async def ready(self) -> Any:
        response = await self.call("GET", "/readyz")
        return response.json()["checks"]

    async def call(self, method: str, path: str, content: object = None) -> httpx.Response:
        """Send a request to the control plane."""
        headers = {"Authorization": f"Bearer {self.control_token}"} if self.control_token else {}
        return await self.client.request(
            method, f"http://127.0.0.1:{self.control}{path}", headers=headers, json=content
        )

    def logged(self, **fields: object) -> list[dict[str, Any]]:
        """The lines of the log with these fields."""
        return [
            line
            for line in self.lines
            if all(line.get(key) == value for key, value in fields.items())
        ]


def envelope(response: httpx.Response) -> dict[str, Any]:
    """The content of a Subsonic response in JSON."""
    assert response.status_code == 200, (response.status_code, response.text)
    content: dict[str, Any] = response.json()["subsonic-response"]
    return content


def error_of(response: httpx.Response) -> int | None:
    """The code of a Subsonic error, None for a response without one."""
    content = envelope(response)
    if content["status"] == "ok":
        return None
    code: int = content["error"]["code"]
    return code


@asynccontextmanager
async def run_shim(
    harness: Harness, env_file: Path | None = None, /, **settings: str
) -> AsyncIterator[RunningShim]:
    """Start the shim with the server of a harness, and stop it. `env_file` has settings to reload."""
    port, control = free_port(), free_port()
    harness.use(
        LISTEN=f"127.0.0.1:{port}",
        CONTROL_LISTEN=f"127.0.0.1:{control}",
        LOG_FORMAT="json",
        ACCESS_LOG="true",
        **settings,
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "shim",
        *(() if env_file is None else ("--env-file", str(env_file))),
        "serve",
        env={**harness.environment(), "PATH": os.environ.get("PATH", "")},
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    reading: asyncio.Task[None] | None = None
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False
        ) as client:
            shim = RunningShim(harness, port, control, client, settings.get("CONTROL_TOKEN", ""))
            reading = asyncio.create_task(_read_log(process, shim.lines))
            async with asyncio.timeout(120):
                while not await _listens(shim):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            yield shim
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if reading is not None:
            await reading


async def run_command(shim: RunningShim, *arguments: str) -> tuple[int, str, str]:
    """Run a command beside the shim that serves. Return its exit code, stdout and stderr."""
    environment = {
        **shim.harness.environment(),
        "PATH": os.environ.get("PATH", ""),
        "NO_COLOR": "1",
    }
    return await commands.run_command(environment, *arguments)


async def _read_log(process: asyncio.subprocess.Process, lines: list[dict[str, Any]]) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        lines += [json.loads(line)] if line.startswith(b"{") else []


async def _listens(shim: RunningShim) -> bool:
    try:
        response = await shim.call("GET", "/readyz")
    except httpx.TransportError:
        return False
    return response.status_code == 200


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stand_in_harness(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Harness]:
    """An empty stand-in."""
    async for harness in _harness("stand-in tcp", tmp_path_factory.mktemp("harness")):
        yield harness


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["stand-in tcp", "real tcp"])
async def any_harness(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Harness]:
    """An empty server of each kind."""
    if request.param.startswith("real") and "NAVIDROME_BIN" not in os.environ:
        pytest.skip("NAVIDROME_BIN names no binary")
    async for harness in _harness(request.param, tmp_path_factory.mktemp("harness")):
        yield harness


async def _harness(kind: str, folder: Path) -> AsyncIterator[Harness]:
    server = build_server(kind, folder, libraries=("Family", "Kids"))
    await server.start()
    harness = Harness(server, folder)
    try:
        yield harness
    finally:
        await harness.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shim(stand_in_harness: Harness) -> AsyncIterator[RunningShim]:
    """A shim in front of the stand-in, and alice, who has signed in once."""
    async with run_shim(stand_in_harness) as started:
        assert (await started.sign_in("alice")).status_code == 200
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def any_shim(any_harness: Harness) -> AsyncIterator[RunningShim]:
    """A shim in front of each kind of server, and alice, who has signed in once."""
    async with run_shim(any_harness) as started:
        assert (await started.sign_in("alice")).status_code == 200
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["stand-in tcp", "real tcp"])
async def songs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningShim]:
    """A shim in front of a server of each kind that has music, and alice, who has signed in once."""
    tmp_path = tmp_path_factory.mktemp("songs")
    if request.param == "stand-in tcp":
        async for harness in _harness(request.param, tmp_path):
            async with run_shim(harness) as started:
                await started.sign_in("alice")
                yield started
        return
    if "NAVIDROME_BIN" not in os.environ:
        pytest.skip("NAVIDROME_BIN names no binary")
    with real_navidrome(os.environ["NAVIDROME_BIN"], tmp_path / "nd", "127.0.0.0/8") as port:
        harness = Harness(_Running(f"http://127.0.0.1:{port}"), tmp_path)
        try:
            async with run_shim(harness) as started:
                await started.sign_in("alice")
                yield started
        finally:
            await harness.close()


class _Running:
    """A server that somebody else starts and stops."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def empty(self) -> None:
        raise NotImplementedError
