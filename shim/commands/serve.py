"""`navidrome-shim serve`: both planes."""

from __future__ import annotations

import os
import sys

import typer

from shim.commands.configuration import ENV_FILE, settings_or_exit
from shim.settings import load


def serve() -> None:
    """Run the shim: the data plane before Navidrome, and the control plane beside it."""
    from shim.runtime import Runtime  # noqa: PLC0415 - what serves is dear to import

    settings = settings_or_exit()
    try:
        Runtime(settings, lambda: load(os.environ, ENV_FILE)).serve()
    except OSError as error:
        sys.stderr.write(f"navidrome-shim: {error.strerror or error}\n")
        raise typer.Exit(1) from None
