"""`python -m tests.bench.guesses`: what honest apps notice of many guesses at one account.

A shim in front of the stand-in serves two apps, one request after the other: one with a device password,
one with a password that is set in Navidrome. wrk guesses at the same account meanwhile, each guess with other
credentials, and from another client address or from one. Reported: the times of the honest apps alone and
beside the guesses, how many guesses were answered, and the memory of the shim. While `shim_busy`, its share
of a core, is well below 1, something else limits the rate: wrk, the stand-in, or other load on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx

from demo.navidrome import StandIn, StandInOptions
from shim.audit.events import Operator
from shim.devices.factory import build_device_service
from shim.settings import load
from shim.store.database import Database
from tests.support.ports import free_port

P99_LIMIT = 3.0
ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if the p99 of the honest apps stays below `P99_LIMIT` times that without guesses, and no
    honest request is refused; else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--one-client", action="store_true", help="guess from one client address")
    options = parser.parse_args(arguments)
    result = asyncio.run(_measure(options))
    print(json.dumps(result, indent=2))
    honest = result["device_refused"] == result["native_refused"] == 0
    return 0 if honest and float(result["p99_ratio"]) < P99_LIMIT else 1


async def _measure(options: argparse.Namespace) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        stand_in = StandIn(StandInOptions())
        await stand_in.start("127.0.0.1:0")
        port, control = free_port(), free_port()
        environment = {
            "SHIM_UPSTREAM": f"http://{stand_in.listen}",
            "SHIM_DATABASE_URL": f"sqlite:///{folder}/shim.db",
            "SHIM_REVERSE_PROXY_WHITELIST": "127.0.0.1",
            "SHIM_LISTEN": f"127.0.0.1:{port}",
            "SHIM_CONTROL_LISTEN": f"127.0.0.1:{control}",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "shim",
            "serve",
            env={**environment, "PATH": os.environ.get("PATH", "")},
            cwd=ROOT,
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False
            ) as client:
                await _wait_for(f"http://127.0.0.1:{control}/readyz", client)
                return await _rounds(options, client, port, environment, stand_in, process.pid)
        finally:
            process.terminate()
            await process.wait()
            await stand_in.stop()


async def _rounds(
    options: argparse.Namespace,
    client: httpx.AsyncClient,
    port: int,
    environment: dict[str, str],
    stand_in: StandIn,
    pid: int,
) -> dict[str, float]:
    headers = {"X-authentik-username": "alice", "X-authentik-uid": "uid-alice"}
    (await client.get("/app/", headers=headers)).raise_for_status()
    secret = await _add_device(environment)
    account = stand_in.state.accounts.find("alice")
    assert account is not None
    device, native = _credentials(secret), _credentials(account.password)
    for each in (device, native):  # each client has succeeded once
        await _until_accepted(client, each)
    before = _resident_bytes(pid)
    alone = await _send_requests(client, (device, native), options.seconds / 2)
    cpu, start = _cpu_seconds(pid), time.perf_counter()
    async with _guessing(options, port) as report:
        beside = await _send_requests(client, (device, native), options.seconds)
    cpu, elapsed = _cpu_seconds(pid) - cpu, time.perf_counter() - start
    guesses = int(report[0].partition(" requests in")[0].split()[-1])
    rate = float(report[0].partition("Requests/sec:")[2].split()[0])
    p99_alone, p99_beside = (_quantile(times, 0.99) for times in (alone[0], beside[0]))
    return {
        "guesses_a_second": round(rate),
        "shim_cpu_us_per_guess": round(cpu / guesses * 1e6, 1),
        "shim_busy": round(cpu / elapsed, 2),
        "p50_alone_ms": round(_quantile(alone[0], 0.5) * 1e3, 2),
        "p99_alone_ms": round(p99_alone * 1e3, 2),
        "p50_beside_ms": round(_quantile(beside[0], 0.5) * 1e3, 2),
        "p99_beside_ms": round(p99_beside * 1e3, 2),
        "p99_ratio": round(p99_beside / p99_alone, 2),
        "honest_requests": len(beside[0]),
        "device_refused": beside[1],
        "native_refused": beside[2],
        "memory_before_mb": round(before / 1e6, 1),
        "memory_after_mb": round(_resident_bytes(pid) / 1e6, 1),
    }


async def _add_device(environment: dict[str, str]) -> str:
    database = Database(environment["SHIM_DATABASE_URL"])
    try:
        service = build_device_service(load(environment), lambda _: None, database)
        new = await service.add("uid-alice", "Phone", Operator("command:bench", "command"))
        return new.secret
    finally:
        await asyncio.to_thread(database.close)


def _credentials(password: str) -> dict[str, str]:
    token = hashlib.md5(f"{password}salt".encode()).hexdigest()
    return {"u": "alice", "t": token, "s": "salt", "v": "1.16.1", "c": "bench", "f": "json"}


async def _until_accepted(client: httpx.AsyncClient, credentials: dict[str, str]) -> None:
    async with asyncio.timeout(20):
        while await _is_refused(client, credentials):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def _is_refused(client: httpx.AsyncClient, credentials: dict[str, str]) -> bool:
    response = await client.get(
        "/rest/ping", params=credentials, headers={"X-Forwarded-For": "192.0.2.1"}
    )
    return response.status_code != 200 or b'"status":"ok"' not in response.content


async def _send_requests(
    client: httpx.AsyncClient, apps: Sequence[dict[str, str]], seconds: float
) -> tuple[list[float], int, int]:
    """Return the times of the requests in seconds, and how many of each app were refused."""
    times: list[float] = []
    refused = [0, 0]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for number, credentials in enumerate(apps):
            start = time.perf_counter()
            refused[number] += await _is_refused(client, credentials)
            times.append(time.perf_counter() - start)
            await asyncio.sleep(0.002)
    return times, refused[0], refused[1]


_SCRIPT = """
local number = 0
request = function()
  number = number + 1
  local client = "198.51.100.1"
  if not ONE then
    client = string.format("10.%d.%d.%d", number / 65536 % 256, number / 256 % 256, number % 256)
  end
  local path = string.format("/rest/ping?u=alice&t=%032x&s=%d&v=1.16.1&c=x&f=json", number, number)
  return wrk.format("GET", path, {["X-Forwarded-For"] = client})
end
"""


@asynccontextmanager
async def _guessing(options: argparse.Namespace, port: int) -> AsyncIterator[list[str]]:
    """Send guesses with wrk in its own process, as many as get a response. The list has its report at
    the end."""
    report: list[str] = []
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"local ONE = {str(options.one_client).lower()}\n{_SCRIPT}")
        script.flush()
        process = await asyncio.create_subprocess_exec(
            "wrk",
            "-t1",
            f"-c{options.connections}",
            f"-d{options.seconds + 2:.0f}s",
            "-s",
            script.name,
            f"http://127.0.0.1:{port}",
            stdout=asyncio.subprocess.PIPE,
        )
        await asyncio.sleep(1)
        yield report
        out, _ = await process.communicate()
        report.append(out.decode())


async def _wait_for(url: str, client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while True:
            with suppress(httpx.TransportError):
                if (await client.get(url)).status_code == 200:
                    return
            await asyncio.sleep(0.1)


def _quantile(times: list[float], share: float) -> float:
    return statistics.quantiles(times, n=100)[round(share * 100) - 1]


def _cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    raise SystemExit(main())
