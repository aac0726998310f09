"""One run of wrk against one port: requests are written as a Lua script, and results parsed.

A run with any response but complete 200s has no result.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.browsers import BROWSERS, Field, header_block
from tests.bench.processes import find_binary
from tests.bench.scenarios import Scenario


class LoadFailed(Exception):
    """wrk did not run, or some requests went wrong."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    requests: int
    body_and_head_bytes: int
    seconds: float
    p50_us: float
    p99_us: float


# wrk calls request() for each request; the blocks are strings by then, so a call joins two to five of them.
_SCRIPT = """
local blocks = {{ {blocks} }}
local head, tail = "GET {target}", " HTTP/1.1\\r\\n"
local fresh, count, run, n = {fresh}, {count}, "", 0

function init(args) run = args[1] end

function request()
  n = n + 1
  local block = blocks[n % count + 1]
  if fresh then
    local unique = run .. string.format("%010x", n)
    return head .. n .. tail .. block[1] .. unique .. block[2] .. unique .. block[3]
  end
  return head .. n .. tail .. block
end

{delay}
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n{{"requests": %d, "bytes": %d, "seconds": %f, "p50": %f, "p99": %f, "errors": %d}}\\n',
    summary.requests, summary.bytes, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def write_script(
    scenario: Scenario, extra_fields: Iterable[Field], path: Path, rest_ms: int = 0
) -> None:
    """The Lua script of a scenario. `extra_fields` are those that the edge would add; `rest_ms`
    is waited before each request."""
    extra = tuple(extra_fields)
    if scenario.fresh_blocks:
        pieces = (header_block(number, "\0", extra).split("\0") for number in range(BROWSERS))
        blocks = ",\n".join("{" + ", ".join(map(_lua, three)) + "}" for three in pieces)
    else:
        blocks = ",\n".join(_lua(header_block(number, None, extra)) for number in range(BROWSERS))
    fresh = "true" if scenario.fresh_blocks else "false"
    delay = f"function delay() return {rest_ms} end\n" if rest_ms else ""
    path.write_text(
        _SCRIPT.format(
            blocks=blocks, target=scenario.target, fresh=fresh, count=BROWSERS, delay=delay
        )
    )


def run_load(
    scenario: Scenario, script: Path, port: int, seconds: int, cores: frozenset[int]
) -> LoadResult:
    """Send requests for this many seconds. Raises MissingBinary or LoadFailed."""
    wrk = find_binary("wrk", "the Debian package wrk")
    command = [
        wrk,
        "-t1",
        f"-c{scenario.connections}",
        f"-d{seconds}s",
        "--timeout",
        "30s",
        "-s",
        str(script),
    ]
    command += [f"http://127.0.0.1:{port}/", "--", os.urandom(6).hex()]
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores)
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + 60, check=False
        )
    finally:
        os.sched_setaffinity(0, before)
    report = next(
        (line for line in reversed(done.stdout.splitlines()) if line.startswith("{")), None
    )
    if done.returncode != 0 or report is None:
        raise LoadFailed(f"wrk ended with {done.returncode}: {(done.stdout + done.stderr)[-800:]}")
    values: dict[str, float] = json.loads(report)
    if values["errors"] or not values["requests"]:
        raise LoadFailed(
            f"{values['errors']:g} of {values['requests']:g} requests went wrong: {done.stdout[-800:]}"
        )
    return LoadResult(
        requests=int(values["requests"]),
        body_and_head_bytes=int(values["bytes"]),
        seconds=values["seconds"],
        p50_us=values["p50"],
        p99_us=values["p99"],
    )


def _lua(text: str) -> str:
    return (
        '"'
        + text.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "\\r").replace("\n", "\\n")
        + '"'
    )
