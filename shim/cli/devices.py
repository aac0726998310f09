"""`navidrome-shim devices`: list, add and revoke the device passwords of people, and replace the key."""

from __future__ import annotations

import sys
import time
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
from shim.cli.terminal import cell, print_json, print_table, safe
from shim.devices.models import MAX_DAYS

if TYPE_CHECKING:
    from shim.devices.administration import DeviceAdministration, ListedDevice
    from shim.devices.models import Device

T = TypeVar("T")

devices = typer.Typer(
    help="List, add and revoke the passwords of Subsonic apps.", no_args_is_help=True
)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]


@devices.command("list")
def list_devices(
    account: Annotated[
        str | None, typer.Argument(help="Only the devices of this account's user.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Include revoked and expired devices.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the devices with their last use."""

    async def work(devices: DeviceAdministration, _: Operator) -> list[ListedDevice]:
        return devices.devices(account)

    now = time.time()
    found = [
        (each.account, each.device)
        for each in _run(work)
        if everything or each.device.is_active(now)
    ]
    if as_json:
        print_json([_as_json(name, device, now) for name, device in found])
        return
    rows = (
        (
            device.id,
            cell(name),
            cell(device.name),
            _date(device.created),
            _date(device.last_used),
            cell(" ".join(filter(None, (device.last_app, device.last_client)))),
            cell(_state(device, now)),
        )
        for name, device in found
    )
    print_table(("id", "account", "device", "added", "last used", "by", "state"), rows)


@devices.command()
def add(
    account: Annotated[str, typer.Argument(help="The account's name.")],
    name: Annotated[str, typer.Argument(help="A name for the device, for example Phone.")],
    days: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_DAYS, help="The password expires after this many days."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add a device for the user of an account, and print its password, once."""

    async def work(devices: DeviceAdministration, by: Operator) -> tuple[Device, str]:
        expires = None if days is None else time.time() + days * 86400.0
        new = report(await devices.add_for(by, account, name, expires))
        return new.device, new.secret

    device, secret = _run(work)
    if as_json:
        print_json({**_as_json(account, device, time.time()), "password": secret})
        return
    typer.echo(safe(f"{device.name} was added for {account}. Its password is shown only once:"))
    typer.echo(f"\n    {secret}\n")
    typer.echo(safe(f"User name in the app: {account}"))


@devices.command()
def revoke(
    device_id: Annotated[str, typer.Argument(metavar="ID", help="The id that `list` prints.")],
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Revoke a device. Its next request is refused, and its streams end within 5 seconds."""

    async def work(devices: DeviceAdministration, by: Operator) -> Device:
        found = devices.find(device_id)
        if not yes:
            print_error(f"{found.device.name} of {found.account} will need a new password.")
            if as_json or not sys.stdin.isatty() or not typer.confirm("Continue?"):
                print_error("Nothing was changed. Use --yes to continue without a question.")
                raise typer.Exit(1)
        return report(await devices.revoke(by, device_id))

    device = _run(work)
    if as_json:
        print_json({"id": device.id, "revoked": True})
    else:
        typer.echo(safe(f"{device.name} is revoked."))


@devices.command("rotate-key")
def rotate_key(as_json: AsJson = False) -> None:
    """Encrypt all device passwords with another key. The passwords stay as they are.

    The key file gets a new key, and loses the old one at the end. If the key is SHIM_DEVICE_KEY, first set it
    to NEW,OLD and restart the shim, then run this, then set it to NEW.
    """

    async def work(devices: DeviceAdministration, by: Operator) -> int:
        return report(await devices.rotate_key(by))

    count = _run(work)
    if as_json:
        print_json({"devices": count})
    else:
        typer.echo(f"{count} device passwords are encrypted with the new key.")


def _run(work: Callable[[DeviceAdministration, Operator], Awaitable[T]]) -> T:
    """Run `work` on the devices, as `run_recorded` does."""
    # Import late: the database code is large, and few commands need it.
    from shim.devices.models import DeviceError  # noqa: PLC0415
    from shim.devices.operations import device_operations  # noqa: PLC0415

    settings = settings_or_exit()

    async def run_with_trail(trail: Trail, actions: AdminActions) -> T:
        async with device_operations(settings, trail.record, actions) as opened:
            return await work(opened, command_operator())

    return run_recorded(settings, run_with_trail, DeviceError)


def _as_json(account: str, device: Device, now: float) -> dict[str, Any]:
    values = asdict(device)
    for name in ("created", "expires", "revoked", "last_used"):
        values[name] = None if values[name] is None else timestamp(values[name])
    return {"account": account, **values, "active": device.is_active(now)}


def _state(device: Device, now: float) -> str:
    if device.revoked is not None:
        return f"revoked ({device.revoked_by})"
    if device.expires is None:
        return ""
    return f"expires {_date(device.expires)}" if device.is_active(now) else "expired"


def _date(seconds: float | None) -> str:
    return "" if seconds is None else timestamp(seconds)[:16].replace("T", " ")
