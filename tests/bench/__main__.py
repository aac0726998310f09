"""`python -m tests.bench`: the shim beside nginx, HAProxy, Traefik and Caddy, in one run.

Only the command line and the order of things; see README.md for how to read what it prints.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from tests.bench.interrupt import ending_on_signals
from tests.bench.load import LoadFailed
from tests.bench.origin import origin
from tests.bench.processes import MissingBinary, StartFailed, find_binary, split_cores
from tests.bench.proxies import BASELINES, FEATURES, UnknownProxy, check_name, proxy
from tests.bench.report import check_goals, render, summarize, write_json
from tests.bench.rounds import Measurement, run_rounds
from tests.bench.scenarios import SCENARIOS, Scenario


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code.

    0: measured; 1: something went wrong, or with --check a goal was missed; 2: cannot start;
    130: interrupted.
    """
    options = _parse(arguments)
    console = Console(stderr=True)
    try:
        with ending_on_signals():
            measurements = _measure(options, console)
    except (MissingBinary, UnknownProxy) as fault:
        console.print(str(fault), style="red", markup=False, soft_wrap=True)
        return 2
    except (StartFailed, LoadFailed) as fault:
        console.print(str(fault), style="red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; everything that was started has ended")
        return 130
    summaries = summarize(measurements)
    outcomes = check_goals(summaries)
    Console(width=None if sys.stdout.isatty() else 120).print(
        render(_scenarios(options), summaries, outcomes)
    )
    if options.json is not None:
        settings = {
            "rounds": options.rounds,
            "seconds": options.seconds,
            "pinned": not options.no_pin,
        }
        write_json(options.json, settings, measurements, summaries, outcomes)
    missed = any(not outcome.reached for outcome in outcomes)
    return 1 if options.check and missed else 0


def _measure(options: argparse.Namespace, console: Console) -> list[Measurement]:
    names = [_with_features(name, options) for name in options.only]
    for name in names:
        check_name(name)
    find_binary("wrk", "the Debian package wrk")
    scenarios = _scenarios(options)
    cores = split_cores(pin=not options.no_pin)
    total = options.rounds * len(names) * len(scenarios)
    measurements: list[Measurement] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shim-bench-")))
        upstream = stack.enter_context(origin(folder, cores.rest))
        proxies = [
            stack.enter_context(proxy(name, upstream, folder, cores.proxy)) for name in names
        ]
        with console.status("warming up") as status:
            for measurement in run_rounds(
                proxies, scenarios, options.rounds, options.seconds, cores, folder
            ):
                measurements.append(measurement)
                status.update(
                    f"{len(measurements)}/{total}: {measurement.proxy}, {measurement.scenario}"
                )
    return measurements


def _with_features(name: str, options: argparse.Namespace) -> str:
    return f"{name}+provisioning" if options.provisioning and name.startswith("shim") else name


def _scenarios(options: argparse.Namespace) -> list[Scenario]:
    return [SCENARIOS[name] for name in options.scenario]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    everyone = ["shim", *BASELINES]
    features = ", +".join(FEATURES)
    parser.add_argument(
        "--only",
        type=_words,
        default=everyone,
        help=f"{','.join(everyone)}; shim also as +{features}",
    )
    parser.add_argument(
        "--scenario", type=_scenario_names, default=list(SCENARIOS), help=",".join(SCENARIOS)
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--seconds", type=int, default=2, help="of load per proxy, scenario and round"
    )
    parser.add_argument(
        "--quick", action="store_true", help="two rounds of one second: a look, not a result"
    )
    parser.add_argument(
        "--provisioning", action="store_true", help="the shim with SHIM_PROVISIONING=true"
    )
    parser.add_argument(
        "--no-pin", action="store_true", help="let the scheduler place the processes"
    )
    parser.add_argument(
        "--json", type=Path, help="also write everything that was measured to this file"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 if a goal was missed")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds = 2, 1
    return options


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _scenario_names(text: str) -> list[str]:
    names = _words(text)
    for name in names:
        if name not in SCENARIOS:
            raise argparse.ArgumentTypeError(
                f"no scenario {name!r}: there are {', '.join(SCENARIOS)}"
            )
    return names


if __name__ == "__main__":
    sys.exit(main())
