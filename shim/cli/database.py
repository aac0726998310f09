"""`navidrome-shim database`: confirm a new database."""

from __future__ import annotations

import asyncio

import typer

from shim.audit.admin_actions import AdminActions, NotStored
from shim.audit.performing import perform
from shim.cli.configuration import settings_or_exit
from shim.cli.errors import print_error
from shim.cli.operator import command_operator

database = typer.Typer(help="Manage the shim's database.", no_args_is_help=True)


@database.command("confirm-new")
def confirm_new() -> None:
    """Confirm that this database is new and that there is no other one to restore.

    If Navidrome has the account navidrome-shim and the database does not know it, the shim accepts no
    identity until you run this command. A running shim continues within 15 seconds.
    """
    # Import late: the database code is large, and few commands need it.
    from shim.audit.store.factory import build_store  # noqa: PLC0415
    from shim.provisioning.admin import OwnAccountRecords  # noqa: PLC0415
    from shim.store.database import Database  # noqa: PLC0415
    from shim.store.errors import StoreError  # noqa: PLC0415

    settings = settings_or_exit()

    async def confirm() -> tuple[str, bool]:
        store = Database(settings.database_url.get_secret_value())
        trail = build_store(settings)
        try:
            await store.open_async()
            records = OwnAccountRecords(store)
            if await records.is_in_use():
                return store.display_url, False
            done = await perform(
                AdminActions(trail, lambda _: None),
                command_operator(),
                "database.confirm_new",
                records.confirm,
                target=store.display_url,
                grants_access=True,
            )
            if done.note is not None:
                print_error(f"navidrome-shim: {done.note}")
            return store.display_url, True
        finally:
            await asyncio.to_thread(store.close)
            if trail is not None:
                await trail.close()

    try:
        display_url, confirmed = asyncio.run(confirm())
    except (StoreError, NotStored) as error:
        print_error(f"navidrome-shim: {error}")
        raise typer.Exit(1) from None
    if confirmed:
        typer.echo(
            f"{display_url} is confirmed as new. The account navidrome-shim gets a new password. "
            "Identities are linked to existing accounts as SHIM_LINK_EXISTING allows."
        )
    else:
        typer.echo(f"{display_url} is already in use. There is nothing to confirm.")
