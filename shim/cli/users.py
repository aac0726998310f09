"""`navidrome-shim users`: who has which Navidrome account, and what an operator does about it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from shim.audit.line_writer import LineWriter
from shim.audit.sanitize import timestamp
from shim.audit.sinks.log import LogSink, configure_log
from shim.audit.trail import Trail
from shim.cli.configuration import settings_or_exit
from shim.cli.errors import print_error
from shim.cli.terminal import cell, console, print_json, print_table, safe, short_uid
from shim.trust.names import normalize_name

if TYPE_CHECKING:
    from shim.provisioning.operations import AccountRow, Change, Hold, Operations

T = TypeVar("T")
_STATES = {"active", "denied", "unlinked", "unbound", "reserved", "gone"}

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
def list_users(
    state: Annotated[
        list[str] | None,
        typer.Option(
            help="Only accounts in this state: active, denied, unlinked, unbound, reserved or gone; "
            "may be repeated."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Only accounts whose name contains this text.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List Navidrome's accounts: whose they are, when they were seen, and in which state."""
    unknown = set(state or ()) - _STATES
    if unknown:
        raise typer.BadParameter(
            f"expected one of {', '.join(sorted(_STATES))}", param_hint="--state"
        )

    async def work(operations: Operations) -> tuple[list[AccountRow], str]:
        return await operations.rows(), operations.unavailable_reason

    rows, unavailable_reason = _run(work)
    part = normalize_name(name or "")
    rows = [
        row
        for row in rows
        if (not state or row.state in state) and part in normalize_name(row.account)
    ]
    if as_json:
        print_json([_row_as_json(row) for row in rows])
    else:
        _show_rows(rows)
    if unavailable_reason.strip(". "):
        print_error(f"Navidrome could not be asked: {unavailable_reason}")
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

    def confirmed(changes: list[Change]) -> bool:
        if dry_run or not changes:
            return False
        if yes or as_json or not sys.stdin.isatty():
            return yes
        return typer.confirm("Change this?")

    async def work(operations: Operations) -> tuple[list[Change], bool]:
        changes = await operations.plan(name)
        if not as_json:
            _show_changes(changes)
        applied = confirmed(changes)
        if applied:
            await operations.sync(name)
        return changes, applied

    changes, applied = _run(work)
    if as_json:
        result = {"changes": [asdict(change) for change in changes], "applied": applied}
        print_json(result)
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
        print_json({"account": name, "unlinked": True, "locked": closed})
    else:
        typer.echo(safe(f"{name} is linked to nobody any more.{later}"))


@users.command()
def lock(name: Name, yes: Yes = False, as_json: AsJson = False) -> None:
    """Replace an account's password by one that nobody knows, and end all of its tokens."""

    async def work(operations: Operations) -> None:
        _confirm(operations.lock_plan(name), yes=yes, as_json=as_json)
        await operations.lock(name)

    _run(work)
    if as_json:
        print_json({"account": name, "locked": True})
    else:
        typer.echo(safe(f"{name} is locked."))


@users.command()
def unlock(name: Name, as_json: AsJson = False) -> None:
    """End the lock of an account that nobody is linked to; then set it a password in Navidrome."""

    async def work(operations: Operations) -> None:
        await operations.unlock(name)

    _run(work)
    if as_json:
        print_json({"account": name, "locked": False})
    else:
        typer.echo(safe(f"{name} is not locked any more. Set it a password in Navidrome."))


@holds.command("list")
def list_holds(as_json: AsJson = False) -> None:
    """List the user names that are held: until when, and who may have them nevertheless."""

    async def work(operations: Operations) -> list[Hold]:
        return operations.holds()

    found = _run(work)
    if as_json:
        rows = [{**asdict(hold), "until": timestamp(hold.until)} for hold in found]
        print_json(rows)
        return
    rows_shown = (
        (cell(hold.name), cell(hold.uid or ""), timestamp(hold.until)[:16].replace("T", " "))
        for hold in found
    )
    print_table(("name", "held for uid", "until"), rows_shown)


@holds.command("end")
def end_hold(name: Name, as_json: AsJson = False) -> None:
    """Hold a user name no longer: whoever comes with it next may have it."""

    async def work(operations: Operations) -> None:
        await operations.end_hold(name)

    _run(work)
    if as_json:
        print_json({"name": name, "held": False})
    else:
        typer.echo(safe(f"{name} is not held any more."))


def _confirm(plan: list[str], *, yes: bool, as_json: bool) -> None:
    """Say what will be done and ask, unless `yes`. Leaves with 1 where nobody agrees."""
    if yes:
        return
    for sentence in plan:
        print_error(sentence)
    asks = sys.stdin.isatty() and not as_json
    if not asks or not typer.confirm("Do this?"):
        print_error("Nothing was changed; --yes does it.")
        raise typer.Exit(1)


def _run(work: Callable[[Operations], Awaitable[T]]) -> T:
    """What `work` gives; what it does is told on stderr, as in the log. Where it can't be done, says why
    there and leaves with 1."""
    # The database's code is large, and no other command needs it.
    from shim.provisioning.operations import OperationError, operations  # noqa: PLC0415
    from shim.store.errors import StoreError  # noqa: PLC0415

    settings = settings_or_exit()

    writer = LineWriter(sys.stderr.fileno())
    configure_log(writer, log_format=settings.log_format, level=settings.log_level)

    async def within() -> T:
        trail = Trail((LogSink(writer),))
        trail.start()
        try:
            async with operations(settings, trail.record) as opened:
                return await work(opened)
        finally:
            await trail.close()

    try:
        return asyncio.run(within())
    except (OperationError, StoreError) as error:
        print_error(str(error))
        raise typer.Exit(1) from None
    finally:
        writer.close(2.0)


def _row_as_json(row: AccountRow) -> dict[str, Any]:
    last_seen = None if row.last_seen is None else timestamp(row.last_seen)
    return {**asdict(row), "last_seen": last_seen}


def _show_rows(lines: list[AccountRow]) -> None:
    target = console()
    rows = []
    for row in lines:
        admin = {None: "?", True: "yes", False: ""}[row.admin]
        state = f"{row.state}, [red]empty password[/]" if row.empty_password else row.state
        seen = "" if row.last_seen is None else timestamp(row.last_seen)[:16].replace("T", " ")
        uid = cell(short_uid(row.uid or "", target))
        rows.append((cell(row.account), uid, seen, admin, state))
    print_table(("account", "uid", "last seen", "admin", "state"), rows, target)


def _show_changes(changes: list[Change]) -> None:
    if not changes:
        typer.echo("Everything is as it should be.")
        return
    rows = [
        tuple(map(cell, (change.account, change.field, change.old, change.new)))
        for change in changes
    ]
    print_table(("account", "field", "is", "would be"), rows)
