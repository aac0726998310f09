"""`navidrome-shim check`: check the settings, and the parts that they name."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from shim.app.factories import build_policy, jwks_config
from shim.app.readiness import readiness_checks
from shim.app.tls import CertificateError, build_listener_tls
from shim.audit.sinks.table import check_sinks
from shim.cli.configuration import settings_or_exit
from shim.cli.edge_check import check_edge
from shim.cli.errors import print_error
from shim.cli.terminal import cell, console, print_json, print_table, safe
from shim.health import Check, State, is_ready
from shim.monitors.dns import DnsMonitor
from shim.monitors.empty_server import EmptyServerMonitor
from shim.monitors.jwks import JwksMonitor
from shim.monitors.upstream import UpstreamMonitor
from shim.monitors.user_header import UserHeaderState, UserHeaderWatch
from shim.navidrome.transport import CertificateAuthorityError, upstream_tls
from shim.settings import Settings, warnings
from shim.settings.summary import summary

if TYPE_CHECKING:
    from shim.provisioning.preview import AccountOutcome

_COLOURS = {State.OK: "green", State.WARNING: "yellow", State.FAILING: "red"}


def check(
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check the settings, edge, Navidrome, database and key set, and show what the shim trusts.

    The edge is checked if the shim runs, and its routes if SHIM_PUBLIC_URL is set.
    """
    settings = settings_or_exit()
    try:
        checks, trusted, accounts, sources_known = asyncio.run(_probe(settings))
    except CertificateAuthorityError as error:
        print_error(f"navidrome-shim: {error}")
        raise typer.Exit(1) from None
    edge = check_edge(settings)
    checks = (*checks, *edge.checks)
    not_checked = (*_not_checked(settings, sources_known=sources_known), *edge.not_checked)
    ready = is_ready(checks)
    if as_json:
        result = _as_json(settings, checks, trusted, ready)
        result["accounts"] = [asdict(account) for account in accounts]
        result["not_checked"] = list(not_checked)
        print_json(result)
    else:
        _show(settings, checks, trusted)
        for note in not_checked:
            typer.echo(safe(f"Not checked: {note}"))
        _show_accounts(accounts)
    raise typer.Exit(0 if ready else 1)


async def _probe(
    settings: Settings,
) -> tuple[tuple[Check, ...], tuple[str, ...], tuple[AccountOutcome, ...], bool]:
    """Return the checks, the trusted peers, the outcomes for accounts, and whether Navidrome's list of
    trusted sources is known."""
    tls = upstream_tls(settings)
    whitelist = build_policy(settings).whitelist
    dns = DnsMonitor(whitelist.hosts, 0)
    upstream = UpstreamMonitor(settings.upstream, tls, settings.base_path)
    source = jwks_config(settings)
    jwks = None if source is None else JwksMonitor(source)
    user_header, _ = await asyncio.gather(
        _user_header(settings, tls),
        asyncio.gather(dns.resolve(), upstream.probe(), *(() if jwks is None else (jwks.fetch(),))),
    )
    await upstream.close()
    checks = (
        *_certificate(settings),
        *check_sinks(settings),
        *readiness_checks(settings, dns.states, upstream, user_header, jwks),
        *await _accounts(settings, tls),
        *_trail(settings),
    )
    accounts: tuple[AccountOutcome, ...] = ()
    if settings.provisioning:
        from shim.provisioning.preview import outcomes  # noqa: PLC0415 - as below

        accounts = await outcomes(settings, tls)
    trusted = whitelist.with_resolved(dns.addresses()).describe()
    return checks, trusted, accounts, user_header.trusted_sources is not None


def _not_checked(settings: Settings, *, sources_known: bool) -> tuple[str, ...]:
    if sources_known:
        return ()
    reason = (
        "the shim has no access to Navidrome's configuration (yet), or ND_DEVUISHOWCONFIG is false"
    )
    if not settings.provisioning:
        reason = "SHIM_PROVISIONING is false"
    return (f"if Navidrome trusts more than the shim (ND_EXTAUTH_TRUSTEDSOURCES): {reason}",)


async def _user_header(settings: Settings, tls: ssl.SSLContext | None) -> UserHeaderState:
    api = None
    if settings.provisioning:
        from shim.provisioning.factory import build_api  # noqa: PLC0415

        api = build_api(settings, tls)
    monitor = UserHeaderWatch(
        settings,
        None if api is None else api.external_authentication,
        lambda: None,
        tls,
    )
    await monitor.start()
    await monitor.close()
    if api is not None:
        await api.close()
    return monitor.state


def _certificate(settings: Settings) -> tuple[Check, ...]:
    try:
        if build_listener_tls(settings) is None:
            return ()
    except CertificateError as error:
        return (
            Check(
                "certificate",
                State.FAILING,
                str(error),
                "Set SHIM_TLS_CERT and SHIM_TLS_KEY to a certificate and its key.",
            ),
        )
    return (Check("certificate", State.OK, str(settings.tls_cert)),)


async def _accounts(settings: Settings, tls: ssl.SSLContext | None) -> tuple[Check, ...]:
    if not settings.provisioning:
        empty = EmptyServerMonitor(settings, tls)
        await empty.probe()
        await empty.close()
        return (empty.check(),)
    # Import late: the database code is large, and only this command needs it.
    from shim.devices.factory import check_devices  # noqa: PLC0415
    from shim.provisioning.preview import check_accounts  # noqa: PLC0415

    return (*await check_accounts(settings, tls), await check_devices(settings))


def _trail(settings: Settings) -> tuple[Check, ...]:
    # Import late, as above.
    from shim.audit.store.factory import check_trail  # noqa: PLC0415

    return (check_trail(settings),)


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
        "summary": list(summary(settings)),
        "warnings": list(warnings(settings)),
        "settings": settings.public(),
    }


def _public(settings: Settings) -> str:
    """Return which paths are exceptions, as the end of a sentence."""
    if settings.public_path_proof == "none":
        public = ", ".join(dict.fromkeys((*settings.public_paths, "/share/")))
        return f" except: {public}, and the web app's manifest and icons"
    proof = {"secret": "the shared secret", "jwt": "a verified token"}[settings.public_path_proof]
    public = ", ".join(path for path in settings.public_paths if path.strip("/") != "share")
    return f", on {public} only with {proof}, and never on /share/ and the web app's manifest and icons"


def _without(settings: Settings) -> str:
    """Return what happens to a request without an identity on a protected path, in words."""
    if not settings.require_identity:
        return "Navidrome's own login"
    pages = f"; browsers are redirected to {settings.sign_in_url}" if settings.sign_in_url else ""
    login = "enabled" if settings.local_login else "disabled"
    return f"401{pages}; Navidrome's own login is {login}"


def _show(settings: Settings, checks: tuple[Check, ...], trusted: tuple[str, ...]) -> None:
    rows = []
    for one in checks:
        colour = _COLOURS[one.state]
        rows.append((f"[{colour}]{one.state}[/]", one.name, cell(one.detail)))
        if one.remedy is not None:
            rows.append(("", "", f"→ {cell(one.remedy)}"))
    print_table(("", "", ""), rows)
    sentences = (
        f"Trusted peers: {', '.join(trusted) or 'none'}",
        f"Identities count on every path{_public(settings)}",
        *summary(settings),
        f"Without an identity: {_without(settings)}",
    )
    typer.echo()
    for sentence in sentences:
        typer.echo(safe(sentence))
    for warning in warnings(settings):
        console().print(f"[yellow]warning[/] {cell(warning)}")


def _show_accounts(accounts: tuple[AccountOutcome, ...]) -> None:
    if not accounts:
        return
    typer.echo("\nWhat happens when an identity has the name of an existing account:")
    with_groups = any(account.with_admin_group is not None for account in accounts)
    titles = ["account", "admin", "without an admin group", "with one"]
    rows = [
        [
            cell(account.account),
            "yes" if account.admin else "",
            cell(account.outcome),
            cell(account.with_admin_group or ""),
        ]
        for account in accounts
    ]
    if not with_groups:
        titles = [*titles[:2], "on the first visit"]
        rows = [row[:3] for row in rows]
    print_table(titles, rows)
