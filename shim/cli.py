"""The command line: `navidrome-shim COMMAND`."""

from __future__ import annotations

from typing import Annotated

import typer

import shim
from shim.commands.check import check
from shim.commands.database import database
from shim.commands.demo import demo
from shim.commands.explain import explain
from shim.commands.reload import reload
from shim.commands.serve import serve
from shim.commands.users import users

app = typer.Typer(
    name="navidrome-shim",
    help="The sidecar that decides whom Navidrome may believe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(users, name="users")
app.add_typer(database, name="database")
app.command()(serve)
app.command()(check)
app.command()(explain)
app.command()(reload)
app.command()(demo)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(shim.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The sidecar that decides whom Navidrome may believe."""


def main() -> None:
    """Entry point of the command."""
    app()
