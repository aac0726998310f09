"""The command line: `navidrome-shim COMMAND`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import shim
from shim.cli.audit import audit
from shim.cli.check import check
from shim.cli.configuration import EnvFile
from shim.cli.database import database
from shim.cli.devices import devices
from shim.cli.explain import explain
from shim.cli.health import health as ask_health
from shim.cli.notify import notify
from shim.cli.reload import reload
from shim.cli.serve import serve
from shim.cli.users import users

app = typer.Typer(
    name="navidrome-shim",
    help="A sidecar that decides which identities Navidrome can trust.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
)
app.add_typer(users, name="users")
app.add_typer(audit, name="audit")
app.add_typer(devices, name="devices")
app.add_typer(database, name="database")
app.add_typer(notify, name="notify")
app.command()(serve)
app.command()(check)
app.command()(explain)
app.command()(reload)


@app.command()
def health(
    ready: Annotated[
        bool, typer.Option("--ready", help="Request /readyz instead of /healthz.")
    ] = False,
) -> None:
    """Check that the shim on this machine is up, for a container's health check. Exits with 0 or 1."""
    env_file = EnvFile.path if EnvFile.is_chosen() else None
    raise typer.Exit(ask_health(["--ready"] if ready else [], env_file))


def _version(requested: bool) -> None:
    if requested:
        typer.echo(shim.__version__)
        raise typer.Exit


def _env_file(path: Path | None) -> None:
    if path is not None:
        EnvFile.choose(path)


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    env_file: Annotated[
        Path | None,
        typer.Option(
            "--env-file", callback=_env_file, help="Read settings from this file instead of .env."
        ),
    ] = None,
) -> None:
    """A sidecar that decides which identities Navidrome can trust."""


def main() -> None:
    """Run the command."""
    app()
