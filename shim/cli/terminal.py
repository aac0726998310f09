r"""Print to the terminal without raw text from a provider, a client or Navidrome.

Control characters, escape sequences, line breaks and direction marks are printed as `\\uXXXX`. Tables fit the
terminal, and are not folded when piped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import typer
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from shim.audit.sanitize import escape

# Wide enough for every table, because piped output is for programs.
_UNLIMITED = 1_000_000
_SHORT_UID = 12


def safe(text: str) -> str:
    """Return the text for a terminal, on one line."""
    return escape(text)


def cell(text: str) -> str:
    """Return the text for a cell of a table, without markup."""
    return escape_markup(safe(text))


def console(*, stderr: bool = False) -> Console:
    """Return a console that folds lines only on a terminal."""
    new = Console(stderr=stderr, highlight=False, emoji=False)
    if not new.is_terminal:
        new.width = _UNLIMITED
    return new


def short_uid(uid: str, target: Console) -> str:
    """Return a uid for a column: its beginning on a terminal, all of it when piped."""
    if not target.is_terminal or len(uid) <= _SHORT_UID + 1:
        return uid
    return uid[:_SHORT_UID] + "…"


def print_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], target: Console | None = None
) -> None:
    """Print a table. Cells are markup: see `cell`."""
    target = target or console()
    table = Table(box=None, pad_edge=False, show_header=any(titles))
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    with target.capture() as captured:
        target.print(table)
    # A padded last column would wrap in a narrow viewer.
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


def print_json(value: object) -> None:
    """Print a value as JSON, without raw control characters or direction marks."""
    typer.echo(escape(json.dumps(value, indent=2, ensure_ascii=False), allowed="\n"))
