"""`python -m tests.bench.flood`: the effect of a flood of forged tokens on another client.

One client sends requests one after the other, while another peer sends a number of requests per
second, each with another forged token. Reported side by side: alone; with the same flood sent to
the origin instead, since the load shares its core with it; and with the flood at the shim.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.constant_rate import FloodResult, constant_rate_flood
from tests.bench.forged_tokens import ALGORITHMS, Forger, key_set
from tests.bench.interrupt import ending_on_signals
from tests.bench.load import LoadFailed, LoadResult, run_load, write_script
from tests.bench.origin import origin
from tests.bench.processes import Cores, MissingBinary, StartFailed, split_cores
from tests.bench.proxies import Proxy, proxy
from tests.bench.rounds import check_job
from tests.bench.scenarios import SCENARIOS

P99_LIMIT = 3.0
_MIN_RATE = 0.95  # of the requested rate
_HONEST = SCENARIOS["single"]
_REST_MS = (
    2  # an app sends a request now and then; without it the client would be a load of its own
)


@dataclass(frozen=True, slots=True)
class FloodImpact:
    """One round. Times in microseconds, rates in requests a second."""

    algorithm: str
    p50_alone: float
    p99_alone: float
    p50_beside: float
    p99_beside: float
    p50_flooded: float
    p99_flooded: float
    refused: float
    cpu_us: float  # of the shim, for each rejected request, without the client's share
    busy: float  # share of its core


def main(arguments: Sequence[str] | None = None) -> int:
    """0: within the limit. 1: not, or something failed. 2: cannot start."""
    options = _parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        with ending_on_signals():
            rounds = [one for name in options.algorithms for one in _measure(name, options)]
    except MissingBinary as fault:
        console.print(str(fault), style="red", markup=False, soft_wrap=True)
        return 2
    except (StartFailed, LoadFailed, OSError) as fault:
        console.print(f"{type(fault).__name__}: {fault}", style="red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    console.print(_table(rounds, options.rate))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in rounds], indent=1) + "\n")
    return 0 if all(_reached(rounds, name, options.rate) for name in options.algorithms) else 1


def _measure(algorithm: str, options: argparse.Namespace) -> list[FloodImpact]:
    cores = split_cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shim-bench-")))
        folder.chmod(0o755)
        upstream = stack.enter_context(origin(folder, cores.rest))
        (folder / "files" / "keys.json").write_bytes(key_set())
        keys = {"SHIM_JWKS_URL": f"http://127.0.0.1:{upstream}/keys.json"}
        through = stack.enter_context(proxy("shim+jwt", upstream, folder, cores.proxy, keys))
        check_job(through)
        script = folder / "honest.lua"
        write_script(_HONEST, through.extra_fields, script, _REST_MS)
        run_load(_HONEST, script, through.port, 1, cores.rest)
        forger = Forger(algorithm)
        return [
            _round(through, upstream, forger, script, cores, options) for _ in range(options.rounds)
        ]


def _round(
    through: Proxy,
    upstream: int,
    forger: Forger,
    script: Path,
    cores: Cores,
    options: argparse.Namespace,
) -> FloodImpact:
    def honest() -> LoadResult:
        return run_load(_HONEST, script, through.port, options.seconds, cores.rest)

    def flooded(port: int) -> tuple[LoadResult, FloodResult]:
        with constant_rate_flood(
            forger, port, options.rate, options.connections, cores.rest
        ) as flood_result:
            result = honest()
        return result, flood_result

    before = through.process.cpu_seconds()
    alone = honest()
    quiet = (through.process.cpu_seconds() - before) / alone.requests
    beside, _ = flooded(upstream)
    before = through.process.cpu_seconds()
    under, flood_result = flooded(through.port)
    cpu = through.process.cpu_seconds() - before
    if set(flood_result.statuses) != {401}:
        raise LoadFailed(
            f"the responses to the flood were {flood_result.statuses}, not with 401 alone"
        )
    refused = flood_result.statuses[401]
    return FloodImpact(
        algorithm=forger.algorithm,
        p50_alone=alone.p50_us,
        p99_alone=alone.p99_us,
        p50_beside=beside.p50_us,
        p99_beside=beside.p99_us,
        p50_flooded=under.p50_us,
        p99_flooded=under.p99_us,
        refused=refused / flood_result.seconds,
        cpu_us=(cpu - quiet * under.requests) / refused * 1e6,
        busy=cpu / flood_result.seconds,
    )


def _ratio(rounds: Sequence[FloodImpact], algorithm: str) -> float:
    """p99 of the flooded to that beside the flood, medians of the rounds."""
    own = [one for one in rounds if one.algorithm == algorithm]
    return statistics.median(one.p99_flooded for one in own) / statistics.median(
        one.p99_beside for one in own
    )


def _reached(rounds: Sequence[FloodImpact], algorithm: str, rate: int) -> bool:
    """Whether as many were rejected as were to be sent, and the client was hardly affected."""
    refused = statistics.median(one.refused for one in rounds if one.algorithm == algorithm)
    return refused > _MIN_RATE * rate and _ratio(rounds, algorithm) < P99_LIMIT


def _table(rounds: Sequence[FloodImpact], rate: int) -> Table:
    table = Table(
        title=f"{rate:,} forged tokens a second; an honest p99 stays under {P99_LIMIT:g} times what it was"
    )
    for heading in ("tokens", "refused/s", "CPU each", "core used"):
        table.add_column(heading)
    for heading in ("p50 / p99 alone", "flood elsewhere", "flooded", "p99 ratio", ""):
        table.add_column(heading)
    for name in dict.fromkeys(one.algorithm for one in rounds):
        own = [one for one in rounds if one.algorithm == name]

        def median(field: str, own: list[FloodImpact] = own) -> float:
            values: list[float] = [getattr(one, field) for one in own]
            return statistics.median(values)

        ratio = _ratio(rounds, name)
        table.add_row(
            name,
            f"{median('refused'):,.0f}",
            f"{median('cpu_us'):.0f} µs",
            f"{median('busy'):.0%}",
            *(
                f"{median(f'p50_{when}'):,.0f} / {median(f'p99_{when}'):,.0f} µs"
                for when in ("alone", "beside", "flooded")
            ),
            f"{ratio:.1f}",
            "[green]reached[/]" if _reached(rounds, name, rate) else "[red]missed[/]",
        )
    return table


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.flood", description=__doc__)
    parser.add_argument(
        "--algorithms",
        type=lambda text: text.split(","),
        default=list(ALGORITHMS),
        help=f"whose tokens are forged: {', '.join(ALGORITHMS)}",
    )
    parser.add_argument("--rate", type=int, default=10_000, help="forged tokens a second")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="for each of the three figures")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
