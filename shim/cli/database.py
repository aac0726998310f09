"""`navidrome-shim database`: what an operator tells the shim about its database."""

from __future__ import annotations

import asyncio

import typer

from shim.cli.configuration import settings_or_exit
from shim.cli.errors import print_error

database = typer.Typer(help="Look after the shim's own database.", no_args_is_help=True)


@database.command("confirm-new")
def confirm_new() -> None:
    """Confirm that this database is a new one and that no other is to be restored.

    Until then the shim accepts no identity where Navidrome has the account navidrome-shim and the database
    knows nothing of it. A running shim takes the confirmation within 15 seconds.
    """
    # The database's code is large, and few commands need it.
    from shim.provisioning.own_account import OwnAccountRecords  # noqa: PLC0415
    from shim.store.database import Database  # noqa: PLC0415
    from shim.store.errors import StoreError  # noqa: PLC0415

    settings = settings_or_exit()

    async def confirm() -> tuple[str, bool]:
        store = Database(settings.database_url.get_secret_value())
        try:
            await store.open_async()
            records = OwnAccountRecords(store)
            if await records.is_in_use():
                return store.display_url, False
            await records.confirm()
            return store.display_url, True
        finally:
            await asyncio.to_thread(store.close)

    try:
        place, confirmed = asyncio.run(confirm())
    except StoreError as error:
        print_error(f"navidrome-shim: {error}")
        raise typer.Exit(1) from None
    if confirmed:
        typer.echo(
            f"{place} is confirmed as new. The account navidrome-shim gets a new password; people are linked "
            "to existing accounts as SHIM_LINK_EXISTING says."
        )
    else:
        typer.echo(f"{place} is in use already: nothing to confirm.")
