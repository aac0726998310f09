"""`navidrome-shim demo`: the play, and everything that is in it left up to be tried by hand."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer


def demo(
    once: Annotated[bool, typer.Option("--once", help="Leave after the play.")] = False,
) -> None:
    """Play an edge, intruders and honest users before a stand-in Navidrome, on loopback alone."""
    # `serve` is not to pay for the import of what only plays.
    from shim.demo.performance import NotPlayed, perform  # noqa: PLC0415
    from shim.demo.play_told import Teller  # noqa: PLC0415

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8
    try:
        went_well = perform(once=once, teller=Teller())
    except NotPlayed as error:
        sys.stderr.write(f"navidrome-shim: {error}\n")
        raise typer.Exit(1) from None
    raise typer.Exit(0 if went_well else 1)
