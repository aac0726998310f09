"""Load the settings for a command, or exit with their faults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from shim.cli.errors import print_error
from shim.settings import Fault, Settings, SettingsError, load
from shim.settings.model import PREFIX

_DEFAULT = Path(".env")
_SQLITE = "sqlite:///"


class EnvFile:
    """The settings file: `.env` in the working directory, or the file in `--env-file`."""

    path = _DEFAULT

    @classmethod
    def choose(cls, path: Path) -> None:
        """Use this file, which must exist."""
        cls.path = path

    @classmethod
    def is_chosen(cls) -> bool:
        """Return whether `--env-file` is in use."""
        return cls.path is not _DEFAULT


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of the environment and the file. Raises `SettingsError`."""
    path = EnvFile.path
    if EnvFile.is_chosen() and not path.is_file():
        raise SettingsError([Fault(str(path), "--env-file", None, "expected a readable file")])
    settings = load(environ, path)
    url = settings.database_url.get_secret_value()
    if EnvFile.is_chosen() and url.startswith(_SQLITE):
        # A relative path is relative to the file's folder, not to the working directory.
        name, _, query = url.removeprefix(_SQLITE).partition("?")
        if name and name != ":memory:" and not name.startswith(("/", "file:")):
            folder = path.absolute().parent
            whole = f"{_SQLITE}{folder / name}" + (f"?{query}" if query else "")
            settings = settings.model_copy(update={"database_url": SecretStr(whole)})
    return settings


def settings_or_exit() -> Settings:
    """Return the settings of this process and its file. If they are invalid, print each fault on a line of
    stderr and exit with 1."""
    if not EnvFile.path.exists() and not any(name.startswith(PREFIX) for name in os.environ):
        print_error(
            f"navidrome-shim: no {EnvFile.path} in {Path.cwd()}, and no {PREFIX} variable is set. Using the "
            "default of every setting. Use --env-file for a file in another folder."
        )
    try:
        return read_settings()
    except SettingsError as error:
        for fault in error.faults:
            print_error(str(fault))
        raise SystemExit(1) from None
