r"""How commands write to a terminal: nothing that a provider, a client or Navidrome named gets there raw.

Controls, escape sequences, line breaks and direction marks are written as `\\uXXXX`. Tables fit a terminal,
and are never folded where the output is piped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import typer
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from shim.audit.sanitize import escape

# Wide enough for every table: what is piped is for programs.
_UNLIMITED = 1_000_000
_SHORT_UID = 12


def safe(text: str) -> str:
    """The text as it may be written to a terminal, on one line."""
    return escape(text)


def cell(text: str) -> str:
    """The text as a cell of a table, without markup."""
    return escape_markup(safe(text))


def console(*, stderr: bool = False) -> Console:
    """A console that folds nothing unless a person looks at it."""
    made = Console(stderr=stderr, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = _UNLIMITED
    return made


def short_uid(uid: str, target: Console) -> str:
    """A uid as a column shows it: its beginning on a terminal, all of it where the output is piped."""
    if not target.is_terminal or len(uid) <= _SHORT_UID + 1:
        return uid
    return uid[:_SHORT_UID] + "…"


def print_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], target: Console | None = None
) -> None:
    """A table. Cells are markup already: see `cell`."""
    target = target or console()
    table = Table(box=None, pad_edge=False, show_header=any(titles))
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    with target.capture() as captured:
        target.print(table)
    # A padded last column would wrap in narrow viewers.
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


def print_json(value: object) -> None:
    """A value as JSON, without a raw control or direction mark in it."""
    typer.echo(escape(json.dumps(value, indent=2, ensure_ascii=False), allowed="\n"))
