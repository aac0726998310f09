"""`python -m tests.bench.transfers`: whether a very large body grows the shim's memory.

1 GB up and 1 GB down, each once at full speed and once with a slow reader at the far end; the
received data is compared by length and CRC-32, and resident memory is read every 20 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.body_origin import body_origin
from tests.bench.browsers import header_block
from tests.bench.interrupt import ending_on_signals
from tests.bench.load import LoadFailed
from tests.bench.pattern import BLOCK, pattern, pattern_crc32
from tests.bench.processes import MissingBinary, Running, StartFailed, split_cores
from tests.bench.proxies import Proxy, UnknownProxy, check_name, proxy
from tests.bench.read_rate import ReadRate
from tests.bench.rounds import check_job

GROWTH_LIMIT_MB = 16.0


@dataclass(frozen=True, slots=True)
class Transfer:
    """One transferred body."""

    proxy: str
    what: str
    seconds: float
    cpu_seconds: float
    rss_before_mb: float
    growth_mb: float  # of the highest reading over the one before


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all within the limit. 1: one was not, or a body was changed. 2: cannot start."""
    options = _parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        with ending_on_signals():
            transfers = [transfer for name in options.only for transfer in _measure(name, options)]
    except (MissingBinary, UnknownProxy) as fault:
        console.print(str(fault), style="red", markup=False, soft_wrap=True)
        return 2
    except (StartFailed, LoadFailed, OSError, EOFError) as fault:
        console.print(f"{type(fault).__name__}: {fault}", style="red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    console.print(_table(transfers, options.megabytes))
    if options.json is not None:
        options.json.write_text(
            json.dumps([asdict(transfer) for transfer in transfers], indent=1) + "\n"
        )
    own = [transfer for transfer in transfers if transfer.proxy.startswith("shim")]
    return 1 if any(transfer.growth_mb >= GROWTH_LIMIT_MB for transfer in own) else 0


def _measure(name: str, options: argparse.Namespace) -> list[Transfer]:
    check_name(name)
    cores = split_cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shim-bench-")))
        upstream = stack.enter_context(body_origin(folder, cores.rest))
        running_proxy = stack.enter_context(proxy(name, upstream, folder, cores.proxy))
        check_job(running_proxy)
        return asyncio.run(_transfers(running_proxy, options.megabytes * 1_000_000, options.rate))


async def _transfers(through: Proxy, size: int, slow: float) -> list[Transfer]:
    crc = pattern_crc32(size)
    # A small body each way first, so that what is loaded once is not taken for growth.
    await _download(through, BLOCK, 0, pattern_crc32(BLOCK))
    await _upload(through, BLOCK, 0, pattern_crc32(BLOCK))
    plans: tuple[tuple[str, Callable[[], Awaitable[None]]], ...] = (
        ("download", lambda: _download(through, size, 0, crc)),
        (f"download, read at {slow:g} MB/s", lambda: _download(through, size, slow, crc)),
        ("upload", lambda: _upload(through, size, 0, crc)),
        (f"upload, read at {slow:g} MB/s", lambda: _upload(through, size, slow, crc)),
    )
    return [await _watched(through, what, transfer) for what, transfer in plans]


async def _watched(through: Proxy, what: str, transfer: Callable[[], Awaitable[None]]) -> Transfer:
    before, cpu, start = (
        through.process.rss_bytes(),
        through.process.cpu_seconds(),
        time.monotonic(),
    )
    peak = _Peak(through.process)
    watching = asyncio.create_task(peak.watch())
    try:
        await transfer()
    finally:
        watching.cancel()
    return Transfer(
        proxy=through.name,
        what=what,
        seconds=time.monotonic() - start,
        cpu_seconds=through.process.cpu_seconds() - cpu,
        rss_before_mb=before / 1e6,
        growth_mb=(max(peak.rss_bytes, through.process.rss_bytes()) - before) / 1e6,
    )


class _Peak:
    """The highest resident memory seen."""

    def __init__(self, process: Running) -> None:
        self._process = process
        self.rss_bytes = 0

    async def watch(self) -> None:
        while True:
            self.rss_bytes = max(self.rss_bytes, self._process.rss_bytes())
            await asyncio.sleep(0.02)


async def _download(through: Proxy, size: int, rate: float, crc: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", through.port, limit=BLOCK)
    try:
        head = f"GET /api/track?bytes={size} HTTP/1.1\r\n" + header_block(
            1, None, through.extra_fields
        )
        writer.write(head.encode())
        response = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in response.split(b"\r\n", 1)[0]:
            raise LoadFailed(f"{through.name} responds {response[:300]!r}")
        rate_limit, seen, taken = ReadRate(rate), 0, 0
        while taken < size:
            await asyncio.sleep(rate_limit.delay(taken))
            data = await reader.read(min(BLOCK, size - taken))
            if not data:
                break
            taken += len(data)
            seen = zlib.crc32(data, seen)
    finally:
        writer.close()
    if (taken, seen) != (size, crc):
        raise LoadFailed(
            f"{through.name}: {taken} of {size} bytes arrived, CRC-32 {seen:08x} instead of {crc:08x}"
        )


async def _upload(through: Proxy, size: int, rate: float, crc: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", through.port)
    try:
        fields = (("Content-Length", str(size)), *through.extra_fields)
        writer.write(
            f"POST /api/upload?rate={rate:g} HTTP/1.1\r\n{header_block(1, None, fields)}".encode()
        )
        for block in pattern(size):
            writer.write(block)
            await writer.drain()
        response = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in response.split(b"\r\n", 1)[0]:
            raise LoadFailed(f"{through.name} responds {response[:300]!r}")
        output: dict[str, int] = json.loads(await reader.readuntil(b"}"))
    finally:
        writer.close()
    if (output["bytes"], output["crc32"]) != (size, crc):
        raise LoadFailed(f"{through.name}: {output} arrived, not {size} bytes with CRC-32 {crc}")


def _table(transfers: Sequence[Transfer], megabytes: int) -> Table:
    table = Table(
        title=f"{megabytes} MB each way; memory may grow by less than {GROWTH_LIMIT_MB:g} MB"
    )
    for heading in ("proxy", "transfer", "MB/s", "CPU s", "RSS MB before", "grown by MB", ""):
        table.add_column(heading)
    for transfer in transfers:
        small = transfer.growth_mb < GROWTH_LIMIT_MB
        verdict = "[green]reached[/]" if small else "[red]missed[/]"
        table.add_row(
            transfer.proxy,
            transfer.what,
            f"{megabytes / transfer.seconds:,.0f}",
            f"{transfer.cpu_seconds:.2f}",
            f"{transfer.rss_before_mb:.1f}",
            f"{transfer.growth_mb:.1f}",
            verdict,
        )
    return table


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.transfers", description=__doc__)
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=["shim"], help="as in tests.bench"
    )
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=100.0, help="of the slow reader, in MB/s")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
