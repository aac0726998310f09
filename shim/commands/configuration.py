"""How every command gets its settings, and leaves where they can't be used."""

from __future__ import annotations

import os
from pathlib import Path

import typer
from rich.console import Console

from shim.settings import Settings, SettingsError, load

ENV_FILE = Path(".env")


def settings_or_exit() -> Settings:
    """The settings of this process and its `.env`. Where they can't be used, says every fault in a line
    of its own on stderr and leaves with 1."""
    try:
        return load(os.environ, ENV_FILE)
    except SettingsError as error:
        console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        for fault in error.faults:
            console.print(str(fault))
        raise typer.Exit(1) from None
