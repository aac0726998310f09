"""`navidrome-shim explain`: decide one request without sending anything."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shim.commands.configuration import settings_or_exit
from shim.compiled import key_source, policy_of
from shim.trust.addresses import parse_peer
from shim.trust.decide import Decision, decide
from shim.watch.keys import KeyWatch
from shim.watch.names import NameWatch


def explain(
    peer: Annotated[
        str, typer.Option(help="The address that speaks to the shim; @ for a Unix socket.")
    ],
    path: Annotated[str, typer.Option(help="The request's target: path and query.")],
    method: Annotated[str, typer.Option(help="The request's method.")] = "GET",
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="A header line, 'Name: value'.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the decision as JSON.")] = False,
) -> None:
    """Say what would become of a request, and why."""
    settings = settings_or_exit()
    try:
        speaker = parse_peer(peer)
    except ValueError:
        raise typer.BadParameter(
            f"{peer!r} is no IP address and not @", param_hint="--peer"
        ) from None
    names = NameWatch(policy_of(settings).whitelist.hosts, 0)
    source = key_source(settings)
    keys = None if source is None else KeyWatch(source)
    asyncio.run(_look(names, keys))
    if keys is not None and keys.state.fault is not None:
        typer.echo(f"navidrome-shim: the key set: {keys.state.fault}", err=True)
    policy = policy_of(settings, resolved=names.answers(), keys=() if keys is None else keys.keys)
    scheme = b"https" if settings.tls_cert else b"http"
    decision = decide(_head(method, path, header or []), speaker, policy, scheme, time.time())
    if as_json:
        typer.echo(json.dumps(decision.explain(), ensure_ascii=False, indent=2))
    else:
        _show(decision)


async def _look(names: NameWatch, keys: KeyWatch | None) -> None:
    await asyncio.gather(names.look_up(), *(() if keys is None else (keys.fetch(),)))


def _head(method: str, path: str, headers: list[str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *headers]
    if not any(line.lower().startswith("host:") for line in headers):
        lines.append("Host: music.example.com")
    text = "\r\n".join(lines) + "\r\n\r\n"
    return text.encode("utf-8", "surrogateescape")


def _show(decision: Decision) -> None:
    told = decision.explain()
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in told.items():
        table.add_row(f"[bold]{name}[/]", escape(_written(value)))
    Console(soft_wrap=False).print(table)


def _written(value: object) -> str:
    if isinstance(value, list):
        rows = (": ".join(map(str, row)) if isinstance(row, list) else str(row) for row in value)
        return "\n".join(rows) or "-"
    if isinstance(value, dict):
        return "\n".join(f"{name}: {one}" for name, one in value.items())
    return "-" if value is None else str(value)
