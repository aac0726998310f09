"""`navidrome-shim notify`: try the notifications."""

from __future__ import annotations

import time

import typer

from shim.audit.digest import Message
from shim.audit.errors import SinkError
from shim.audit.events import Severity
from shim.audit.sanitize import timestamp
from shim.cli.configuration import settings_or_exit
from shim.cli.errors import print_error
from shim.cli.terminal import safe

notify = typer.Typer(
    help="Notifications: messages to chat, mail or push services.", no_args_is_help=True
)


@notify.callback()
def _options() -> None:
    """Notifications: messages to chat, mail or push services."""


@notify.command()
def test() -> None:
    """Send a test message to each service in SHIM_NOTIFY_URLS. Exits with 1 if one of them fails."""
    from shim.audit.sinks.notify import configured_targets  # noqa: PLC0415 - slow to import

    settings = settings_or_exit()
    if not settings.notify_urls:
        print_error("navidrome-shim: SHIM_NOTIFY_URLS is not set, so nobody is notified.")
        raise typer.Exit(1)
    try:
        targets = configured_targets(settings)
    except SinkError as error:
        print_error(f"navidrome-shim: {error}")
        raise typer.Exit(1) from None
    text = f"{timestamp(time.time())} This is a test. Notifications of the shim arrive here."
    failed = False
    for target in targets:
        fault = target.send(Message("test", Severity.INFO, 1, (text,)))
        failed = failed or fault is not None
        typer.echo(safe(f"{target.label}: {'sent' if fault is None else f'failed: {fault}'}"))
    raise typer.Exit(1 if failed else 0)
