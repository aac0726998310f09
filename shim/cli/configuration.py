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
    if not EnvFile.is_chosen():
        return settings
    folder = path.absolute().parent
    urls = {
        field: _from_folder(url, folder)
        for field in ("database_url", "audit_database_url")
        if (url := getattr(settings, field)) is not None
    }
    return settings.model_copy(update=urls)


def _from_folder(url: SecretStr, folder: Path) -> SecretStr:
    """Return the URL with a relative path of an SQLite file relative to the folder of the settings, not to
    the working directory."""
    text = url.get_secret_value()
    name, _, query = text.removeprefix(_SQLITE).partition("?")
    local = not name or name == ":memory:" or name.startswith(("/", "file:"))
    if local or not text.startswith(_SQLITE):
        return url
    return SecretStr(f"{_SQLITE}{folder / name}" + (f"?{query}" if query else ""))


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
