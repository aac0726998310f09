"""`navidrome-shim check`: are the settings right, and are the parts reached."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shim.commands.configuration import settings_or_exit
from shim.compiled import policy_of
from shim.control.health import Check, State, is_ready
from shim.health import health_checks
from shim.settings import Settings, warnings
from shim.watch.names import NameWatch
from shim.watch.upstream import UpstreamWatch

_COLOURS = {State.OK: "green", State.WARNING: "yellow", State.FAILING: "red"}


def check(
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check the settings, resolve the whitelist, reach Navidrome, and say what would be trusted."""
    settings = settings_or_exit()
    checks, trusted = asyncio.run(_look(settings))
    ready = is_ready(checks)
    if as_json:
        typer.echo(json.dumps(_as_json(settings, checks, trusted, ready), indent=2))
    else:
        _show(settings, checks, trusted)
    raise typer.Exit(0 if ready else 1)


async def _look(settings: Settings) -> tuple[tuple[Check, ...], tuple[str, ...]]:
    whitelist = policy_of(settings).whitelist
    names = NameWatch(whitelist.hosts, 0)
    ca = settings.upstream_ca
    upstream = UpstreamWatch(settings.upstream, None if ca is None else str(ca), settings.base_path)
    await asyncio.gather(names.look_up(), upstream.ask())
    await upstream.close()
    checks = health_checks(settings, names.states, upstream)
    return checks, whitelist.with_resolved(names.answers()).described()


def _as_json(
    settings: Settings, checks: tuple[Check, ...], trusted: tuple[str, ...], ready: bool
) -> dict[str, object]:
    return {
        "ready": ready,
        "checks": {
            one.name: {"state": one.state, "detail": one.detail, "remedy": one.remedy}
            for one in checks
        },
        "trusted_peers": list(trusted),
        "warnings": list(warnings(settings)),
        "settings": settings.public(),
    }


def _show(settings: Settings, checks: tuple[Check, ...], trusted: tuple[str, ...]) -> None:
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    for one in checks:
        colour = _COLOURS[one.state]
        table.add_row(f"[{colour}]{one.state}[/]", one.name, escape(one.detail))
        if one.remedy is not None:
            table.add_row("", "", f"→ {escape(one.remedy)}")
    console.print(table)
    console.print(f"\nIdentity headers count from: {escape(', '.join(trusted) or 'nobody')}")
    console.print(f"They count on every path but: {escape(', '.join(settings.public_paths))}")
    for warning in warnings(settings):
        console.print(f"[yellow]warning[/] {escape(warning)}")
