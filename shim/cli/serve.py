"""`navidrome-shim serve`: run the shim."""

from __future__ import annotations

import signal
from collections.abc import Callable

from shim.app.tls import CertificateError
from shim.audit.errors import SinkError
from shim.cli.configuration import EnvFile, read_settings, settings_or_exit
from shim.cli.errors import print_error
from shim.settings import Fault, Settings, SettingsError
from shim.store.errors import StoreError


def serve() -> None:
    """Run the shim: data plane and control plane."""
    # Block SIGHUP until its handler is installed; the default action kills the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    from shim.app.runtime import Runtime  # noqa: PLC0415 - slow to import

    settings = settings_or_exit()
    try:
        Runtime(settings, _reader(EnvFile.path.exists())).serve()
    except OSError as error:
        print_error(f"navidrome-shim: {error.strerror or error}")
        raise SystemExit(1) from None
    except (StoreError, CertificateError, SinkError) as error:
        print_error(f"navidrome-shim: {error}")
        raise SystemExit(1) from None


def _reader(file_was_there: bool) -> Callable[[], Settings]:
    """Return a function that loads the settings again. If the file existed at the start and is missing now,
    perhaps while an editor saves it, that is a fault: the shim must not lose its secrets."""

    def read() -> Settings:
        if file_was_there and not EnvFile.path.exists():
            expected = "expected the file that existed at the start"
            raise SettingsError([Fault(str(EnvFile.path), "file", None, expected)])
        return read_settings()

    return read
