"""The demo's output: on a terminal in colours, elsewhere as plain text, in 80 columns.

Data of clients and servers is escaped, and never interpreted as markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from demo.environment import (
    ADMIN,
    ALICE,
    BERT,
    CLAIM,
    DIRK,
    EDGE_ADDRESS,
    LOCAL_CLIENT,
    EntryPoint,
    Environment,
)
from demo.scenario import AccountState, Fields, RequestSpec, StepResult
from demo.sidecar import LogEntry, ShimDecision
from demo.steps import TAKEOVER, app_call
from shim.audit.sanitize import escape
from shim.trust.reasons import Verdict

_WIDTH: Final = 80
_BODY_SHOWN: Final = 200
_COLOURS: Final = {
    Verdict.AUTHENTICATED: "bold green",
    Verdict.ANONYMOUS: "bold cyan",
    Verdict.STRIPPED: "bold yellow",
    Verdict.REJECTED: "bold red",
}
# Proofs that are of no use to a reader.
_PROOF: Final = re.compile(r"(?<=[?&][ts]=)[^&]+")


class ConsoleReporter:
    """Prints to a console. console: None for standard output."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.console.width = min(self.console.width, _WIDTH)

    def opening(self, environment: Environment) -> None:
        """The participants and their addresses."""
        table = _grid()
        table.add_row(
            "the edge",
            f"{environment.edge.url}, speaks from {EDGE_ADDRESS}: plays Traefik and authentik",
        )
        table.add_row(
            "the shim",
            f"{environment.shim.url}, whitelist {EDGE_ADDRESS}, requires authentik's token",
        )
        table.add_row(
            "Navidrome", f"{environment.navidrome.url}, a stand-in that trusts only the shim"
        )
        table.add_row(
            "for contrast", f"{environment.edge_without_shim.url}, the same edge without the shim"
        )
        self.console.print(table)

    def step(self, number: int, result: StepResult) -> None:
        """Print one step: the request, the decision, the headers at Navidrome, the response."""
        step, response = result.step, result.response
        self.console.print()
        self.console.print(Rule(Text(f"{number}. {step.title}", "bold"), align="left", style="dim"))
        self.console.print(Padding(Text(step.explanation, "italic"), (0, 0, 1, 2)))
        table = _grid()
        table.add_row("request", _request_text(step.request))
        if result.decision is None:
            table.add_row("shim", Text("none", "dim"))
        else:
            table.add_row("shim", _decision_text(result.decision))
        table.add_row("Navidrome", _seen_text(result.seen_identity))
        for name, account in result.accounts:
            table.add_row("account", _account_text(name, account))
        table.add_row("response", Text(_clipped(f"{response.status} {escape(response.summary)}")))
        if result.faults:
            table.add_row(Text("WRONG", "bold red"), Text(escape("; ".join(result.faults))))
        self.console.print(table)

    def summary(self, results: Sequence[StepResult]) -> None:
        """Print whether every step passed."""
        wrong = [number for number, one in enumerate(results, 1) if one.faults]
        self.console.print()
        if wrong:
            named = ", ".join(map(str, wrong))
            self.console.print(
                Text(
                    f"FAILED: {len(wrong)} of {len(results)} steps are wrong: {named}.",
                    "bold red",
                )
            )
        else:
            self.console.print(Text(f"All {len(results)} steps passed.", "bold green"))

    def instructions(self, environment: Environment) -> None:
        """Print commands to try while everything runs."""
        edge, without_shim, shim = (
            environment.edge.url,
            environment.edge_without_shim.url,
            environment.shim.url,
        )
        names = ", ".join(f"?user={user.username}" for user in (BERT, ADMIN, DIRK))
        self.console.print()
        self.console.print(Rule(Text("Try it yourself", "bold"), align="left", style="dim"))
        table = _grid()
        table.add_row("browser", f"{edge}/?user={ALICE.username} (or {names})")
        table.add_row("control", f"{environment.shim.control_url}/readyz, /metrics, /admin/")
        self.console.print(table)
        for caption, command in (
            (
                "become the admin, without the shim",
                f"curl -H '{CLAIM}: admin' \\\n  '{without_shim}{TAKEOVER}'",
            ),
            ("and with the shim", f"curl -H '{CLAIM}: admin' \\\n  '{edge}{TAKEOVER}'"),
            (
                "bypass the edge, from an address that is not on the whitelist",
                f"curl --interface {LOCAL_CLIENT} -H '{CLAIM}: admin' \\\n  {shim}/api/user",
            ),
            (
                "use the edge's address, without the provider's token",
                f"curl --interface {EDGE_ADDRESS} -H '{CLAIM}: alice' \\\n  {shim}/api/song",
            ),
            ("call the API as Alice's app", f"curl '{edge}{app_call('ping')}'"),
        ):
            # soft_wrap, so that a copied command is one line.
            self.console.print(Text(f"\n# {caption}", "dim"), soft_wrap=True)
            self.console.print(Text(command), soft_wrap=True)
        self.console.print(Text("\nEverything runs until Ctrl-C.", "bold"))
        console = f"{edge}/_shim/?user={ADMIN.username}"
        self.console.print(Text(f"\nThe console: {console}", "bold"), soft_wrap=True)
        self.console.print(
            Text(
                "Open this address in a browser on this machine: it signs you in as the admin, and shows "
                "these requests.\n\nThe shim's log:"
            )
        )

    def log(self, entry: LogEntry) -> None:
        """Print one line for each decision and each completed request."""
        match entry.get("kind"):
            case "request_decision":
                outcome = f"{entry.get('verdict')}, {entry.get('reason')}"
            case "access":
                outcome = f"{entry.get('verdict')}, status {entry.get('status')}"
            case _:
                return
        request = f"{entry.get('peer')} {entry.get('method')} {entry.get('path')}"
        self.console.print(Text(escape(f"{request} → {outcome}")), soft_wrap=True)


def _grid() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", width=12)
    table.add_column(overflow="fold")
    return table


def _request_text(request: RequestSpec) -> Text:
    route = (
        request.entry_point.value
        if request.entry_point is EntryPoint.SHIM
        else f"{request.entry_point.value} ({EDGE_ADDRESS})"
    )
    session = f", signed in as {request.signed_in.username}" if request.signed_in else ""
    text = Text(f"{request.actor} at {request.address}{session}, calls {route}\n")
    text.append(f"{request.method} {_PROOF.sub('…', request.target)}", "bold")
    for name, value in request.headers:
        text.append(f"\n{name}: {value}", "bold")
    for name, value in request.form:
        text.append(f"\n{name} = {value}", "bold")
    return text


def _decision_text(decision: ShimDecision) -> Text:
    text = Text(str(decision.verdict), _COLOURS[decision.verdict])
    text.append(f", {decision.reason}, on a {decision.path_class} path", "default")
    removed = [name for name in decision.removed if name.lower() not in _EVERY_HOP]
    if removed and decision.verdict is Verdict.STRIPPED:
        text.append(f"\nremoved {escape(', '.join(removed))}", "default")
    for line in (*decision.notes, *decision.account_changes):
        text.append(f"\n{escape(line)}", "default")
    return text


# Removed from every request, as RFC 9110 §7.6.1 requires, or because they are the edge's own.
_EVERY_HOP: Final = frozenset({"connection", "upgrade", "keep-alive"})


def _seen_text(seen_identity: Fields | None) -> Text:
    if seen_identity is None:
        return Text("got no request")
    if not seen_identity:
        return Text("got no user header")
    return Text("got " + escape(", ".join(f"{name}: {value}" for name, value in seen_identity)))


def _account_text(name: str, account: AccountState | None) -> Text:
    if account is None:
        return Text(f"{name}: none")
    kind = "admin" if account.is_admin else "regular user"
    return Text(escape(f"{name}: {kind}, {account.name} <{account.email}>"))


def _clipped(text: str) -> str:
    return text if len(text) <= _BODY_SHOWN else f"{text[:_BODY_SHOWN]}…"
