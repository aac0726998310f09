"""`navidrome-shim explain`: decide one request without sending anything."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shim.app.factories import build_policy, jwks_config
from shim.cli.configuration import settings_or_exit
from shim.cli.errors import print_error
from shim.cli.terminal import cell, print_json, print_table
from shim.monitors.dns import DnsMonitor
from shim.monitors.jwks import JwksMonitor
from shim.settings import Settings
from shim.trust.decision import Decision, decide, reject
from shim.trust.peers import parse_peer
from shim.trust.reasons import PathClass, Reason
from shim.trust.rejection import RequestRejected

if TYPE_CHECKING:
    from shim.provisioning.preview import Step


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
    try:
        speaker = parse_peer(peer)
    except ValueError:
        raise typer.BadParameter(
            f"{peer!r} is neither an IP address nor @", param_hint="--peer"
        ) from None
    headers = [*(header or []), *_proof_headers(settings, with_secret, token_file)]
    dns = DnsMonitor(build_policy(settings).whitelist.hosts, 0)
    source = jwks_config(settings)
    jwks = None if source is None else JwksMonitor(source)
    asyncio.run(_probe(dns, jwks))
    if jwks is not None and jwks.state.fault is not None:
        print_error(f"navidrome-shim: the key set: {jwks.state.fault}")
    policy = build_policy(
        settings, resolved=dns.addresses(), keys=() if jwks is None else jwks.keys
    )
    scheme = b"https" if settings.tls_cert else b"http"
    decision = decide(_head(method, path, headers), speaker, policy, scheme, time.time())
    decision, user_name, steps = _with_account(settings, decision)
    result = decision.explain()
    if user_name is not None:
        result["forwarded_headers"] = _with_user(result["forwarded_headers"], settings, user_name)
    result["steps"] = [
        {"step": name, "result": outcome, "why": why} for name, outcome, why in steps
    ]
    if as_json:
        print_json(result)
    else:
        _show(result)


async def _probe(dns: DnsMonitor, jwks: JwksMonitor | None) -> None:
    await asyncio.gather(dns.resolve(), *(() if jwks is None else (jwks.fetch(),)))


def _proof_headers(settings: Settings, with_secret: bool, token_file: Path | None) -> list[str]:
    found = []
    if with_secret:
        if not settings.proxy_secret:
            raise typer.BadParameter("SHIM_PROXY_SECRET is not set", param_hint="--with-secret")
        secret = settings.proxy_secret[0].get_secret_value()
        found.append(f"{settings.proxy_secret_header}: {secret}")
    if token_file is not None:
        try:
            text = sys.stdin.read() if str(token_file) == "-" else token_file.read_text("utf-8")
        except OSError as error:
            raise typer.BadParameter(
                f"{token_file}: {error.strerror}", param_hint="--token-file"
            ) from None
        header = f"{settings.jwt_header}: " if settings.jwt_header else "Authorization: Bearer "
        found.append(f"{header}{text.strip()}")
    return found


def _head(method: str, path: str, headers: list[str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *headers]
    if not any(line.lower().startswith("host:") for line in headers):
        lines.append("Host: music.example.com")
    text = "\r\n".join(lines) + "\r\n\r\n"
    return text.encode("utf-8", "surrogateescape")


def _with_account(
    settings: Settings, decision: Decision
) -> tuple[Decision, str | None, list[tuple[str, str, str]]]:
    """Return the decision with the account checked, the account's name, and all steps in words."""
    source, outcome = decision.source, decision.outcome
    peer = "trusted" if source.trusted else "not trusted"
    on = "is" if source.trusted else "is not"
    why = outcome.reason.text + (f": {decision.detail}" if decision.detail else "")
    steps = [
        ("peer", peer, f"{source.peer.text} {on} on SHIM_REVERSE_PROXY_WHITELIST"),
        ("path", str(outcome.path_class), _PATH_TEXTS[outcome.path_class]),
        ("identity", str(outcome.verdict), why),
    ]
    identity = decision.identity
    if identity is None or outcome.path_class is PathClass.INTERNAL:
        return decision, None, steps
    if not settings.provisioning:
        steps.append(("account", "not checked", "SHIM_PROVISIONING is off"))
        return decision, None, steps
    # Import late: the database code is large, and only this command needs it.
    from shim.provisioning.preview import preview  # noqa: PLC0415

    verified = outcome.reason is Reason.VERIFIED_JWT
    found: tuple[Step, ...] = asyncio.run(preview(settings, identity, verified=verified))
    steps += [(step.name, step.result, step.why) for step in found]
    last = found[-1]
    if last.reason is not None:
        refused = RequestRejected(last.reason, last.why)
        return reject(refused, source, decision.request_line, decision.block), None, steps
    return decision, last.user_name, steps


_PATH_TEXTS = {
    PathClass.PROTECTED: "the edge authenticates this path",
    PathClass.PUBLIC: "the edge leaves this path open (SHIM_PUBLIC_PATHS)",
    PathClass.INTERNAL: "the shim's own pages",
}


def _with_user(headers: object, settings: Settings, user_name: str) -> list[list[str]]:
    """Return the forwarded headers, with the account's name as Navidrome stores it."""
    assert isinstance(headers, list)
    wanted = settings.reverse_proxy_user_header.lower()
    return [[n, user_name if n.lower() == wanted else value] for n, value in headers]


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
