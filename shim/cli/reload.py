"""`navidrome-shim reload`: make the running shim reload its settings."""

from __future__ import annotations

import httpx
import typer

from shim.cli.configuration import settings_or_exit
from shim.cli.control_client import control_client
from shim.cli.errors import print_error
from shim.cli.terminal import safe
from shim.settings import Settings

# Both are read only at the start.
_RESTART_HINT = (
    "\nIf SHIM_CONTROL_LISTEN or SHIM_CONTROL_TOKEN has changed since the start, send the shim "
    "SIGHUP instead: it still uses the old values."
)


def reload() -> None:
    """Reload whitelist, secrets, certificate, key set and groups, without ending a stream.

    Checks the settings first. If they are invalid, the running shim is not changed.
    """
    settings = settings_or_exit()
    try:
        response = _post_reload(settings)
    except httpx.HTTPError as error:
        print_error(
            f"navidrome-shim: no response from {settings.control_listen}: "
            f"{str(error) or type(error).__name__}{_RESTART_HINT}"
        )
        raise typer.Exit(1) from None
    if response.status_code != 200:
        for fault in _faults(response):
            print_error(fault)
        raise typer.Exit(1)
    payload = response.json()
    typer.echo(safe("reloaded: " + (", ".join(payload["changed"]) or "nothing has changed")))
    if payload.get("note"):
        print_error(payload["note"])
    if payload["pending_restart"]:
        typer.echo(safe("needs a restart: " + ", ".join(payload["pending_restart"])))


def _post_reload(settings: Settings) -> httpx.Response:
    # Longer than the timeouts for name servers and the provider.
    with control_client(settings, timeout=15.0) as client:
        return client.post("/api/reload")


def _faults(response: httpx.Response) -> list[str]:
    try:
        payload = response.json()
    except ValueError:
        payload = {}
    faults = payload.get("faults") if isinstance(payload, dict) else None
    if isinstance(faults, list) and faults:
        return ["The old settings stay in force:", *map(str, faults)]
    detail = payload.get("detail") if isinstance(payload, dict) else None
    hint = _RESTART_HINT if response.status_code == 401 else ""
    return [f"navidrome-shim: the control plane returned {response.status_code}: {detail}{hint}"]
