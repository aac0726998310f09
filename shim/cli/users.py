"""`navidrome-shim users`: list and change the Navidrome accounts of identities."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from shim.audit.admin_actions import AdminActions
from shim.audit.events import Operator
from shim.audit.sanitize import timestamp
from shim.audit.trail import Trail
from shim.cli.configuration import settings_or_exit
from shim.cli.errors import print_error
from shim.cli.operator import command_operator, report
from shim.cli.recorded import run_recorded
from shim.cli.terminal import cell, console, print_json, print_table, safe, short_uid
from shim.trust.names import normalize_name

if TYPE_CHECKING:
    from shim.provisioning.administration import AccountAdministration, AccountList
    from shim.provisioning.operations import AccountRow, Change, Hold, Rebinding

T = TypeVar("T")
_STATES = {"active", "denied", "unlinked", "unbound", "reserved", "gone", "waiting"}

users = typer.Typer(
    help="List, update, unlink and lock Navidrome accounts.",
    no_args_is_help=True,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Name = Annotated[str, typer.Argument(help="The account's name.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]

holds = typer.Typer(
    help="List and end holds. A hold reserves a user name that became free.", no_args_is_help=True
)
users.add_typer(holds, name="holds")


@users.command("list")
def list_users(
    state: Annotated[
        list[str] | None,
        typer.Option(
            help="Only accounts in this state: active, denied, unlinked, waiting, unbound, reserved or gone. "
            "Can be repeated."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Only accounts whose name contains this text.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List Navidrome's accounts with their uid, last visit and state."""
    unknown = set(state or ()) - _STATES
    if unknown:
        raise typer.BadParameter(
            f"expected one of {', '.join(sorted(_STATES))}", param_hint="--state"
        )

    async def work(accounts: AccountAdministration, by: Operator) -> AccountList:
        return await accounts.accounts(by)

    found = _run(work)
    unavailable_reason = found.problem
    part = normalize_name(name or "")
    rows = [
        row
        for row in found.rows
        if (not state or row.state in state) and part in normalize_name(row.account)
    ]
    if as_json:
        print_json([_row_as_json(row) for row in rows])
    else:
        _show_rows(rows)
    if unavailable_reason.strip(". "):
        print_error(f"The list is incomplete, because Navidrome failed: {unavailable_reason}")
        raise typer.Exit(1)


@users.command()
def sync(
    name: Annotated[str | None, typer.Argument(help="The account's name.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="Every linked account.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Update accounts to the last known state of their identities. Shows the changes first."""
    if (name is None) is not everyone:
        raise typer.BadParameter("expected one account name, or --all")

    def confirmed(changes: list[Change]) -> bool:
        if dry_run or not changes:
            return False
        if yes or as_json or not sys.stdin.isatty():
            return yes
        return typer.confirm("Apply these changes?")

    async def work(accounts: AccountAdministration, by: Operator) -> tuple[list[Change], bool]:
        changes = await accounts.sync_plan(by, name)
        if not as_json:
            _show_changes(changes)
        applied = confirmed(changes)
        if applied:
            report(await accounts.sync(by, name))
        return changes, applied

    changes, applied = _run(work)
    if as_json:
        result = {"changes": [asdict(change) for change in changes], "applied": applied}
        print_json(result)
    elif changes:
        typer.echo("Done." if applied else "Nothing was changed. Use --yes to apply the changes.")


@users.command()
def unlink(name: Name, yes: Yes = False, as_json: AsJson = False) -> None:
    """Unlink an account from its user and lock it. The next user with its name may be linked to it."""

    async def work(accounts: AccountAdministration, by: Operator) -> bool:
        _confirm(accounts.unlink_plan(by, name), yes=yes, as_json=as_json)
        return report(await accounts.unlink(by, name))

    closed = _run(work)
    later = (
        "" if closed else " The running shim replaces its password when Navidrome responds again."
    )
    if as_json:
        print_json({"account": name, "unlinked": True, "locked": closed})
    else:
        typer.echo(safe(f"{name} is unlinked.{later}"))


@users.command()
def rebind(
    name: Annotated[str | None, typer.Argument(help="The account's name.")] = None,
    everyone: Annotated[
        bool,
        typer.Option(
            "--all", help="Every account whose uid has another source than SHIM_UID_SOURCE."
        ),
    ] = False,
    same_source: Annotated[
        bool,
        typer.Option(
            "--same-source",
            help="With --all: every linked account. Use it if uids changed, but not their source.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Bind accounts to uids of the source in SHIM_UID_SOURCE, after a change of the provider."""
    if (name is None) is not everyone:
        raise typer.BadParameter("expected one account name, or --all")

    async def work(accounts: AccountAdministration, by: Operator) -> tuple[list[Rebinding], bool]:
        plans = accounts.rebind_plan(by, name, same_source=same_source)
        if not as_json:
            _show_rebindings(plans)
        possible = [plan for plan in plans if not plan.problem]
        if dry_run or not possible:
            return plans, False
        can_ask = not yes and not as_json and sys.stdin.isatty()
        if not (yes or (can_ask and typer.confirm("Bind these accounts again?"))):
            return plans, False
        report(await accounts.rebind(by, possible, target=name))
        return plans, True

    plans, applied = _run(work)
    if as_json:
        print_json({"accounts": [asdict(plan) for plan in plans], "applied": applied})
    elif plans:
        typer.echo("Done." if applied else "Nothing was changed. Use --yes to apply the changes.")
    if any(plan.problem for plan in plans):
        raise typer.Exit(1)


@users.command()
def lock(name: Name, yes: Yes = False, as_json: AsJson = False) -> None:
    """Lock an account: replace its password with a random one, and make its tokens void."""

    async def work(accounts: AccountAdministration, by: Operator) -> None:
        _confirm(accounts.lock_plan(by, name), yes=yes, as_json=as_json)
        report(await accounts.lock(by, name))

    _run(work)
    if as_json:
        print_json({"account": name, "locked": True})
    else:
        typer.echo(safe(f"{name} is locked."))


@users.command()
def unlock(name: Name, as_json: AsJson = False) -> None:
    """End the lock of an account that was never linked. Then set a password for it in Navidrome."""

    async def work(accounts: AccountAdministration, by: Operator) -> None:
        report(await accounts.unlock(by, name))

    _run(work)
    if as_json:
        print_json({"account": name, "locked": False})
    else:
        typer.echo(safe(f"{name} is unlocked. Set a password for it in Navidrome."))


@holds.command("list")
def list_holds(as_json: AsJson = False) -> None:
    """List the held user names: until when, and for which uid."""

    async def work(accounts: AccountAdministration, by: Operator) -> list[Hold]:
        return accounts.holds(by)

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
    """End the hold of a user name. The next user with this name may have it."""

    async def work(accounts: AccountAdministration, by: Operator) -> None:
        report(await accounts.end_hold(by, name))

    _run(work)
    if as_json:
        print_json({"name": name, "held": False})
    else:
        typer.echo(safe(f"{name} is no longer held."))


def _confirm(plan: list[str], *, yes: bool, as_json: bool) -> None:
    """Print what will be done and ask, unless `yes`. Exits with 1 if the answer is no."""
    if yes:
        return
    for sentence in plan:
        print_error(sentence)
    can_ask = sys.stdin.isatty() and not as_json
    if not can_ask or not typer.confirm("Continue?"):
        print_error("Nothing was changed. Use --yes to continue without a question.")
        raise typer.Exit(1)


def _run(work: Callable[[AccountAdministration, Operator], Awaitable[T]]) -> T:
    """Run `work` on the accounts, as `run_recorded` does."""
    # Import late: the database code is large, and few commands need it.
    from shim.provisioning.administration import AccountAdministration  # noqa: PLC0415
    from shim.provisioning.operations import OperationError, operations  # noqa: PLC0415

    settings = settings_or_exit()
    operator = command_operator()

    async def run_with_trail(trail: Trail, actions: AdminActions) -> T:
        async with operations(settings, trail.record, operator) as opened:
            return await work(AccountAdministration(lambda _: opened, actions), operator)

    return run_recorded(settings, run_with_trail, OperationError)


def _row_as_json(row: AccountRow) -> dict[str, Any]:
    times = {
        name: None if (seconds := getattr(row, name)) is None else timestamp(seconds)
        for name in ("first_seen", "last_seen")
    }
    return {**asdict(row), **times}


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


def _show_rebindings(plans: list[Rebinding]) -> None:
    if not plans:
        typer.echo("Nothing to change: every account is bound as the settings ask for.")
        return
    rows = []
    for plan in plans:
        new = f"{plan.uid} ({plan.uid_source})"
        if plan.waits:
            new = "the uid of the next sign-in with this name"
        rows.append(tuple(map(cell, (plan.account, plan.user_name, plan.problem or new))))
    print_table(("account", "user name at the provider", "bound to"), rows)
    if not all(plan.problem for plan in plans):
        typer.echo("Device passwords end where the uid changes. Their users add them again.")


def _show_changes(changes: list[Change]) -> None:
    if not changes:
        typer.echo("Nothing to change.")
        return
    rows = [
        tuple(map(cell, (change.account, change.field, change.old, change.new)))
        for change in changes
    ]
    print_table(("account", "field", "now", "new"), rows)
