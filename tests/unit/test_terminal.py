"""Output of commands: external text is escaped on a terminal, and lines are complete in a pipe."""

from __future__ import annotations

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from shim.cli.errors import print_error
from shim.cli.main import app
from shim.cli.terminal import cell, print_json, print_table, short_uid

HOSTILE = "\x1b[31mred\x07\nnext\u202egnp\x9b2J[bold]"


def test_external_text_is_escaped_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("account",), [(cell(HOSTILE),)])
    print_json({"account": HOSTILE})
    print_error(HOSTILE)
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert text
        assert all(c.isprintable() or c == "\n" for c in text)
    assert "[bold]" in captured.out
    assert json.loads(captured.out[captured.out.index("{") :]) == {"account": HOSTILE}
    assert len(captured.out.splitlines()) == 5


def test_a_piped_table_is_never_folded(capsys: pytest.CaptureFixture[str]) -> None:
    wide = "x" * 5000
    print_table(("account", "uid"), [(wide, wide)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1] == f"{wide} {wide}" or lines[1].split() == [wide, wide]


def test_a_long_uid_is_shortened_on_a_terminal_only() -> None:
    uid = "f" * 64
    assert short_uid(uid, Console(force_terminal=False)) == uid
    assert short_uid(uid, Console(force_terminal=True)) == "f" * 12 + "…"
    assert short_uid("short", Console(force_terminal=True)) == "short"


@pytest.mark.parametrize("arguments", [["-h"], ["users", "-h"], ["users", "list", "-h"]])
def test_every_command_has_the_short_help_option(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "Usage" in done.output


def test_shell_completion_can_be_installed() -> None:
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output
