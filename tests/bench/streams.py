"""`python -m tests.bench.streams`: the cost of a thousand open event streams, and their effect on
other clients.

Opens them through a proxy, waits for the first event of each, and reports memory per stream and how
fast requests on new connections are served before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.body_origin import body_origin
from tests.bench.browsers import header_block
from tests.bench.interrupt import ending_on_signals
from tests.bench.load import LoadFailed
from tests.bench.processes import MissingBinary, StartFailed, split_cores
from tests.bench.proxies import Proxy, UnknownProxy, check_name, proxy
from tests.bench.rounds import check_job

STREAM_LIMIT_KB = 40.0
_PROBES = 300
_AT_ONCE = 50

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Cost:
    """Streams open at once, and what they did to the proxy."""

    proxy: str
    streams: int
    rss_before_mb: float
    kb_per_stream: float
    p50_before_us: float
    p50_after_us: float
    p99_before_us: float
    p99_after_us: float


def main(arguments: Sequence[str] | None = None) -> int:
    """0: within the limit. 1: not, or something went wrong. 2: cannot start."""
    options = _parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    _raise_descriptor_limit()
    try:
        with ending_on_signals():
            costs = [_measure(name, options.streams) for name in options.only]
    except (MissingBinary, UnknownProxy) as fault:
        console.print(str(fault), style="red", markup=False, soft_wrap=True)
        return 2
    except (StartFailed, LoadFailed, OSError, EOFError) as fault:
        console.print(f"{type(fault).__name__}: {fault}", style="red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    console.print(_table(costs))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=1) + "\n")
    own = [cost for cost in costs if cost.proxy.startswith("shim")]
    return 1 if any(cost.kb_per_stream >= STREAM_LIMIT_KB for cost in own) else 0


def _measure(name: str, streams: int) -> Cost:
    check_name(name)
    cores = split_cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shim-bench-")))
        upstream = stack.enter_context(body_origin(folder, cores.rest))
        running_proxy = stack.enter_context(proxy(name, upstream, folder, cores.proxy))
        check_job(running_proxy)
        return asyncio.run(_open_and_probe(running_proxy, streams))


async def _open_and_probe(through: Proxy, count: int) -> Cost:
    await _probe(through)  # the first round warms up
    before = await _probe(through)
    memory = through.process.rss_bytes()
    opened: list[Stream] = []
    try:
        for start in range(0, count, _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, count))
            opened += await asyncio.gather(*(_open(through, number) for number in numbers))
        grown = through.process.rss_bytes() - memory
        after = await _probe(through)
    finally:
        for _, writer in opened:
            writer.close()
    return Cost(
        proxy=through.name,
        streams=count,
        rss_before_mb=memory / 1e6,
        kb_per_stream=grown / count / 1000,
        p50_before_us=statistics.median(before),
        p50_after_us=statistics.median(after),
        p99_before_us=statistics.quantiles(before, n=100)[98],
        p99_after_us=statistics.quantiles(after, n=100)[98],
    )


async def _open(through: Proxy, number: int) -> Stream:
    """A stream whose first event has arrived."""
    reader, writer = await asyncio.open_connection("127.0.0.1", through.port)
    block = header_block(number, f"{number:024x}", through.extra_fields)
    writer.write(f"GET /api/events?n={number} HTTP/1.1\r\n{block}".encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise LoadFailed(f"{through.name} responds {head[:300]!r} to stream {number}")
    await asyncio.wait_for(reader.readuntil(b"\n\n"), 30)
    return reader, writer


async def _probe(through: Proxy) -> list[float]:
    """Microseconds from connecting to the complete response, for one request after the other."""
    return [await _probe_once(through, number) for number in range(_PROBES)]


async def _probe_once(through: Proxy, number: int) -> float:
    head = f"GET /api/song?n={number} HTTP/1.1\r\n{header_block(number, None, through.extra_fields)}".encode()
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", through.port)
    writer.write(head)
    response = await asyncio.wait_for(reader.readuntil(b"}"), 30)
    taken = time.perf_counter() - start
    writer.close()
    if not response.startswith(b"HTTP/1.1 200 "):
        raise LoadFailed(f"{through.name} responds {response[:300]!r}")
    return taken * 1e6


def _table(costs: Sequence[Cost]) -> Table:
    table = Table(title=f"open event streams; each may take less than {STREAM_LIMIT_KB:g} kB")
    headings = (
        "proxy",
        "streams",
        "RSS MB before",
        "kB/stream",
        "p50 before → after",
        "p99 before → after",
        "",
    )
    for heading in headings:
        table.add_column(heading)
    for cost in costs:
        small = cost.kb_per_stream < STREAM_LIMIT_KB
        table.add_row(
            cost.proxy,
            str(cost.streams),
            f"{cost.rss_before_mb:.1f}",
            f"{cost.kb_per_stream:.1f}",
            f"{cost.p50_before_us:,.0f} → {cost.p50_after_us:,.0f} µs",
            f"{cost.p99_before_us:,.0f} → {cost.p99_after_us:,.0f} µs",
            "[green]reached[/]" if small else "[red]missed[/]",
        )
    return table


def _raise_descriptor_limit() -> None:
    """A thousand streams are two thousand sockets at the proxy, which inherits this."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.streams", description=__doc__)
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=["shim"], help="as in tests.bench"
    )
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
