"""`navidrome-shim users`: who has which Navidrome account, and what an operator does about it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shim.audit.lines import Lines
from shim.audit.log import LogSink, configure_log
from shim.audit.plain import timestamp
from shim.audit.trail import Trail
from shim.commands.configuration import settings_or_exit

if TYPE_CHECKING:
    from shim.provisioning.operations import Change, Hold, Line, Operations

T = TypeVar("T")

users = typer.Typer(
    help="Show and look after the Navidrome accounts of the identity provider's people.",
    no_args_is_help=True,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Name = Annotated[str, typer.Argument(help="The account's name.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it without asking.")]

holds = typer.Typer(
    help="User names that became free and are held for whoever had them.", no_args_is_help=True
)
users.add_typer(holds, name="holds")


@users.command("list")
def list_users(as_json: AsJson = False) -> None:
    """List Navidrome's accounts: whose they are, when they were seen, and how they stand."""

    async def work(operations: Operations) -> tuple[list[Line], str]:
        return await operations.lines(), operations.why_not

    lines, why_not = _run(work)
    if as_json:
        typer.echo(
            json.dumps([_line_as_json(line) for line in lines], indent=2, ensure_ascii=False)
        )
    else:
        _show_lines(lines)
    if why_not.strip(". "):
        _say(f"Navidrome could not be asked: {why_not}")
        raise typer.Exit(1)


@users.command()
def sync(
    name: Annotated[str | None, typer.Argument(help="The account's name.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="Every linked account.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Make accounts what the identity provider said last; shows first what would change."""
    if (name is None) is not everyone:
        raise typer.BadParameter("name one account, or say --all")

    def agreed(changes: list[Change]) -> bool:
        if dry_run or not changes:
            return False
        if yes or as_json or not sys.stdin.isatty():
            return yes
        return typer.confirm("Change this?")

    async def work(operations: Operations) -> tuple[list[Change], bool]:
        changes = await operations.plan(name)
        if not as_json:
            _show_changes(changes)
        applied = agreed(changes)
        if applied:
            await operations.sync(name)
        return changes, applied

    changes, applied = _run(work)
    if as_json:
        result = {"changes": [asdict(change) for change in changes], "applied": applied}
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
    elif changes:
        typer.echo("Done." if applied else "Nothing was changed; --yes does it.")


@users.command()
def unlink(name: Name, yes: Yes = False, as_json: AsJson = False) -> None:
    """Free an account of its person and lock it; the next one who comes with its name may claim it."""

    async def work(operations: Operations) -> bool:
        _confirm(operations.unlink_plan(name), yes=yes, as_json=as_json)
        return await operations.unlink(name)

    closed = _run(work)
    later = "" if closed else " The running shim replaces its password once Navidrome answers."
    if as_json:
        typer.echo(json.dumps({"account": name, "unlinked": True, "locked": closed}))
    else:
        typer.echo(f"{name} is linked to nobody any more.{later}")


@users.command()
def lock(name: Name, yes: Yes = False, as_json: AsJson = False) -> None:
    """Replace an account's password by one that nobody knows, and end all of its tokens."""

    async def work(operations: Operations) -> None:
        _confirm(operations.lock_plan(name), yes=yes, as_json=as_json)
        await operations.lock(name)

    _run(work)
    if as_json:
        typer.echo(json.dumps({"account": name, "locked": True}))
    else:
        typer.echo(f"{name} is locked.")


@users.command()
def unlock(name: Name, as_json: AsJson = False) -> None:
    """End the lock of an account that nobody is linked to; then set it a password in Navidrome."""

    async def work(operations: Operations) -> None:
        await operations.unlock(name)

    _run(work)
    if as_json:
        typer.echo(json.dumps({"account": name, "locked": False}))
    else:
        typer.echo(f"{name} is not locked any more. Set it a password in Navidrome.")


@holds.command("list")
def list_holds(as_json: AsJson = False) -> None:
    """List the user names that are held: until when, and who may have them nevertheless."""

    async def work(operations: Operations) -> list[Hold]:
        return operations.holds()

    found = _run(work)
    if as_json:
        rows = [{**asdict(hold), "until": timestamp(hold.until)} for hold in found]
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("name", "held for uid", "until"):
        table.add_column(title, overflow="fold")
    for hold in found:
        until = timestamp(hold.until)[:16].replace("T", " ")
        table.add_row(escape(hold.name), escape(hold.uid or ""), until)
    Console(highlight=False).print(table)


@holds.command("end")
def end_hold(name: Name, as_json: AsJson = False) -> None:
    """Hold a user name no longer: whoever comes with it next may have it."""

    async def work(operations: Operations) -> None:
        await operations.end_hold(name)

    _run(work)
    if as_json:
        typer.echo(json.dumps({"name": name, "held": False}))
    else:
        typer.echo(f"{name} is not held any more.")


def _confirm(plan: list[str], *, yes: bool, as_json: bool) -> None:
    """Say what will be done and ask, unless `yes`. Leaves with 1 where nobody agrees."""
    if yes:
        return
    for sentence in plan:
        _say(sentence)
    asks = sys.stdin.isatty() and not as_json
    if not asks or not typer.confirm("Do this?"):
        _say("Nothing was changed; --yes does it.")
        raise typer.Exit(1)


def _run(work: Callable[[Operations], Awaitable[T]]) -> T:
    """What `work` gives; what it does is told on stderr, as in the log. Where it can't be done, says why
    there and leaves with 1."""
    # The database's code is large, and no other command needs it.
    from shim.provisioning.operations import NotDone, operations  # noqa: PLC0415
    from shim.store.errors import StoreError  # noqa: PLC0415

    settings = settings_or_exit()

    lines = Lines(sys.stderr.fileno())
    configure_log(lines, log_format=settings.log_format, level=settings.log_level)

    async def within() -> T:
        trail = Trail((LogSink(lines),))
        trail.start()
        try:
            async with operations(settings, trail.record) as opened:
                return await work(opened)
        finally:
            await trail.close()

    try:
        return asyncio.run(within())
    except (NotDone, StoreError) as error:
        _say(str(error))
        raise typer.Exit(1) from None
    finally:
        lines.close(2.0)


def _say(sentence: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(sentence)


def _line_as_json(line: Line) -> dict[str, Any]:
    last_seen = None if line.last_seen is None else timestamp(line.last_seen)
    return {**asdict(line), "last_seen": last_seen}


def _show_lines(lines: list[Line]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("account", "uid", "last seen", "admin", "state"):
        table.add_column(title, overflow="fold")
    for line in lines:
        admin = {None: "?", True: "yes", False: ""}[line.admin]
        state = f"{line.state}, [red]empty password[/]" if line.empty_password else line.state
        seen = "" if line.last_seen is None else timestamp(line.last_seen)[:16].replace("T", " ")
        table.add_row(escape(line.account), escape(line.uid or ""), seen, admin, state)
    Console(highlight=False).print(table)


def _show_changes(changes: list[Change]) -> None:
    if not changes:
        typer.echo("Everything is as it should be.")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("account", "field", "is", "would be"):
        table.add_column(title)
    for change in changes:
        cells = (change.account, change.field, change.old, change.new)
        table.add_row(*(escape(cell) for cell in cells))
    Console(highlight=False).print(table)
