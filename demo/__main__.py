"""`make demo` or `python -m demo`: run the scenario, then keep everything running to try by hand."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from demo.reporter import ConsoleReporter
from demo.runner import DemoFailed, run


def demo(
    once: Annotated[bool, typer.Option("--once", help="Exit after the last step.")] = False,
) -> None:
    """Run attackers, users and administrators against a stand-in Navidrome, on loopback only."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8
    try:
        succeeded = run(once=once, reporter=ConsoleReporter())
    except DemoFailed as error:
        sys.stderr.write(f"demo: {error}\n")
        raise typer.Exit(1) from None
    raise typer.Exit(0 if succeeded else 1)


if __name__ == "__main__":
    typer.run(demo)
