"""`navidrome-shim explain`: decide one request without sending anything."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from shim.app.factories import build_policy, jwks_config
from shim.cli.configuration import settings_or_exit
from shim.cli.errors import print_error
from shim.cli.terminal import cell, print_json, print_table
from shim.control.explain import ExplainedRequest, InvalidRequest
from shim.control.explain import explain as explain_request
from shim.monitors.dns import DnsMonitor
from shim.monitors.jwks import JwksMonitor
from shim.settings import Settings


def explain(
    peer: Annotated[
        str,
        typer.Option(help="Address that connects to the shim (the edge's); @ for a Unix socket."),
    ],
    path: Annotated[str, typer.Option(help="Path and query of the request.")],
    method: Annotated[str, typer.Option(help="Method of the request.")] = "GET",
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", help="A header, 'Name: value'. Can be repeated."),
    ] = None,
    with_secret: Annotated[
        bool, typer.Option("--with-secret", help="Add the secret in SHIM_PROXY_SECRET.")
    ] = False,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Add the provider's token from this file; - for stdin.", allow_dash=True),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the decision as JSON.")] = False,
) -> None:
    """Decide one request without sending it, and show each step with its reason."""
    settings = settings_or_exit()
    lines = [*(header or []), *_token_header(settings, token_file)]
    request = ExplainedRequest(peer, path, method, lines, with_secret)
    dns = DnsMonitor(build_policy(settings).whitelist.hosts, 0)
    source = jwks_config(settings)
    jwks = None if source is None else JwksMonitor(source)
    try:
        result = asyncio.run(_explain(request, settings, dns, jwks))
    except InvalidRequest as error:
        option = {"secret": "--with-secret"}.get(error.part, f"--{error.part}")
        raise typer.BadParameter(str(error), param_hint=option) from None
    if jwks is not None and jwks.state.fault is not None:
        print_error(f"navidrome-shim: the key set: {jwks.state.fault}")
    if as_json:
        print_json(result)
    else:
        _show(result)


async def _explain(
    request: ExplainedRequest, settings: Settings, dns: DnsMonitor, jwks: JwksMonitor | None
) -> dict[str, object]:
    await asyncio.gather(dns.resolve(), *(() if jwks is None else (jwks.fetch(),)))
    keys = () if jwks is None else jwks.keys
    policy = build_policy(settings, resolved=dns.addresses(), keys=keys)
    return await explain_request(request, settings, policy)


def _token_header(settings: Settings, token_file: Path | None) -> list[str]:
    if token_file is None:
        return []
    try:
        text = sys.stdin.read() if str(token_file) == "-" else token_file.read_text("utf-8")
    except OSError as error:
        raise typer.BadParameter(
            f"{token_file}: {error.strerror}", param_hint="--token-file"
        ) from None
    header = f"{settings.jwt_header}: " if settings.jwt_header else "Authorization: Bearer "
    return [f"{header}{text.strip()}"]


def _show(result: dict[str, object]) -> None:
    rows = []
    steps = result.pop("steps")
    for name, value in result.items():
        if value in (None, [], ()):
            continue
        lines = _lines(value)
        rows.append((f"[bold]{name.replace('_', ' ')}[/]", cell(lines[0])))
        rows += [("", cell(line)) for line in lines[1:]]
    print_table(("", ""), rows)
    typer.echo()
    assert isinstance(steps, list)
    print_table(
        ("step", "result", "why"),
        [tuple(cell(step[key]) for key in ("step", "result", "why")) for step in steps],
    )


def _lines(value: object) -> list[str]:
    """Return a value in words, with a line for each part."""
    match value:
        case bool():
            return ["yes" if value else "no"]
        case dict():
            return [
                f"{name}: {_lines(part)[0]}" for name, part in value.items() if part is not None
            ] or ["-"]
        case list() | tuple():
            if all(isinstance(part, list) for part in value):
                return [": ".join(map(str, part)) for part in value]
            return [", ".join(map(str, value)) or "none"]
    return [str(value)]
