"""Interleaved rounds: every proxy runs every scenario once a round, in a rotating order.

The result of one run is a Measurement; nothing is averaged here.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.browsers import header_block, username
from tests.bench.load import LoadFailed, run_load, write_script
from tests.bench.origin import ECHO_PATH
from tests.bench.processes import Cores
from tests.bench.proxies import Proxy
from tests.bench.scenarios import Scenario


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one proxy did under one scenario in one round."""

    proxy: str
    scenario: str
    round: int
    cpu_us: float  # per request, or per transfer where the scenario counts transfers
    rate: float  # requests, or transfers, a second
    p50_us: float
    p99_us: float
    rss_mb: float
    busy: float  # share of one core that the proxy used


def check_job(proxy: Proxy, seconds: float = 20.0) -> None:
    """Waits until the proxy forwards requests correctly. Raises LoadFailed if it never does.

    Listening is not enough: Traefik responds 404 before it has read its routes, others 502 or 503
    at first.
    """
    deadline = time.monotonic() + seconds
    while (fault := _fault(proxy)) is not None:
        if time.monotonic() > deadline:
            raise LoadFailed(f"{proxy.name} {fault}; its log: {proxy.process.log_tail()}")
        time.sleep(0.2)


def run_rounds(
    proxies: Sequence[Proxy],
    scenarios: Sequence[Scenario],
    rounds: int,
    seconds: int,
    cores: Cores,
    folder: Path,
) -> Iterator[Measurement]:
    """Warms every proxy up under every scenario, then gives the measurements as they come."""
    for proxy in proxies:
        check_job(proxy)
        for scenario in scenarios:
            write_script(scenario, proxy.extra_fields, _script(folder, proxy, scenario))
            run_load(scenario, _script(folder, proxy, scenario), proxy.port, 1, cores.rest)
    for number in range(rounds):
        turn = number % len(proxies)
        for scenario in scenarios:
            for proxy in (*proxies[turn:], *proxies[:turn]):
                yield _measure(proxy, scenario, number, seconds, cores, folder)


def _fault(proxy: Proxy) -> str | None:
    """The faults of one request as it arrives at the origin."""
    fields = dict(
        line.split(": ", 1)
        for line in header_block(3, None, proxy.extra_fields).strip().split("\r\n")
    )
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    try:
        connection.request("GET", ECHO_PATH, headers=fields)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as fault:
        return f"does not respond: {fault!r}"
    finally:
        connection.close()
    if response.status != 200:
        return f"responds {response.status}: {body[:300]!r}"
    seen: dict[str, str] = json.loads(body)
    if "127.0.0.1" not in seen["for"] or "192.168.7." not in seen["for"]:
        return f"does not append to X-Forwarded-For: {seen['for']!r}"
    if proxy.authenticates and seen["user"] != username(3):
        return f"hands on the user {seen['user']!r}, not {username(3)!r}"
    return None


def _measure(
    proxy: Proxy, scenario: Scenario, number: int, seconds: int, cores: Cores, folder: Path
) -> Measurement:
    before = proxy.process.cpu_seconds()
    result = run_load(scenario, _script(folder, proxy, scenario), proxy.port, seconds, cores.rest)
    cpu = proxy.process.cpu_seconds() - before
    # A transfer in progress at the end has a cost too, so transfers are counted by their bytes.
    count = (
        result.body_and_head_bytes / scenario.transfer_bytes
        if scenario.transfer_bytes
        else result.requests
    )
    return Measurement(
        proxy=proxy.name,
        scenario=scenario.name,
        round=number,
        cpu_us=cpu / count * 1e6,
        rate=count / result.seconds,
        p50_us=result.p50_us,
        p99_us=result.p99_us,
        rss_mb=proxy.process.rss_bytes() / 1e6,
        busy=cpu / result.seconds,
    )


def _script(folder: Path, proxy: Proxy, scenario: Scenario) -> Path:
    return folder / f"{proxy.name}-{scenario.name}.lua"
