"""`navidrome-shim reload`: have the shim that runs take its settings anew."""

from __future__ import annotations

import httpx
import typer

from shim.commands.configuration import settings_or_exit
from shim.commands.terminal import print_error, safe
from shim.settings import Settings

# Both are taken at the start alone.
_STARTED_BY = (
    "\nWhere SHIM_CONTROL_LISTEN or SHIM_CONTROL_TOKEN has changed since the shim was started, it goes by "
    "those from before: send it SIGHUP instead."
)


def reload() -> None:
    """Take the whitelist, secrets, key set and groups anew, without ending a stream.

    Reads the settings first, and asks nobody where they can't be used.
    """
    settings = settings_or_exit()
    try:
        answer = _ask(settings)
    except httpx.HTTPError as error:
        print_error(
            f"navidrome-shim: nobody answers at {settings.control_listen}: "
            f"{str(error) or type(error).__name__}{_STARTED_BY}"
        )
        raise typer.Exit(1) from None
    if answer.status_code != 200:
        for fault in _faults(answer):
            print_error(fault)
        raise typer.Exit(1)
    told = answer.json()
    typer.echo(safe("taken: " + (", ".join(told["changed"]) or "nothing had changed")))
    if told["waiting"]:
        typer.echo(safe("only after a restart: " + ", ".join(told["waiting"])))


def _ask(settings: Settings) -> httpx.Response:
    where, token = settings.control_listen, settings.control_token
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(where.host, where.host) or "localhost"
    authority = f"[{host}]:{where.port}" if ":" in host else f"{host}:{where.port}"
    headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
    transport = httpx.HTTPTransport(uds=where.path)
    # As long as name servers and the provider may take, and a little more.
    timeout = settings.jwks_timeout + 10.0
    with httpx.Client(transport=transport, timeout=timeout, headers=headers) as client:
        url = "http://localhost/api/reload" if where.path else f"http://{authority}/api/reload"
        return client.post(url)


def _faults(answer: httpx.Response) -> list[str]:
    try:
        told = answer.json()
    except ValueError:
        told = {}
    faults = told.get("faults") if isinstance(told, dict) else None
    if isinstance(faults, list) and faults:
        return ["The settings from before stay in force:", *map(str, faults)]
    detail = told.get("detail") if isinstance(told, dict) else None
    hint = _STARTED_BY if answer.status_code == 401 else ""
    return [f"navidrome-shim: the control plane answers with {answer.status_code}: {detail}{hint}"]
