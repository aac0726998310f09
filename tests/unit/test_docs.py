"""The documentation is true: its links lead somewhere, its commands parse, its examples load, and it names
every log event, metric, fault and reason."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import typer
import yaml
from prometheus_client.core import CounterMetricFamily, InfoMetricFamily
from typer import _click as click  # the parser that typer brings

from shim.audit.events.schema import kinds
from shim.cli.main import app
from shim.control.metrics import build_registry
from shim.proxy.counters import Counters
from shim.settings import ALIASES, SETTINGS, load
from shim.trust.reasons import Reason, Verdict
from tests.support.documentation import (
    PAGES,
    ROOT,
    SHELLS,
    anchors,
    block_commands,
    blocks,
    inline_code,
    inline_commands,
    links,
    shim_arguments,
)

DOCS = ROOT / "docs"
OPERATIONS = (DOCS / "operations.md").read_text()
TROUBLESHOOTING = (DOCS / "troubleshooting.md").read_text()
COMPOSE = tuple((ROOT / "deploy/compose").rglob("*.yml"))
# The reader's own file.
OWN_COMPOSE_FILE = "compose.yml"
# Hosts of examples, of the pages that the documentation cites, and of releases.
HOSTS = ("example.org", "github.com", "ghcr.io", "127.0.0.1")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def _metric_names() -> Iterator[str]:
    registry = build_registry(Counters(), version="0")
    for family in registry.collect():
        if family.name.startswith("shim_"):
            suffix = {CounterMetricFamily: "_total", InfoMetricFamily: "_info"}
            yield family.name + suffix.get(type(family), "")


def _check_names() -> set[str]:
    """The names of the checks of `/readyz` and `check` in the code."""
    return {
        node.args[0].value
        for file in (ROOT / "shim").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Check"
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    }


def _section(text: str, heading: str) -> str:
    """The text below a heading, up to the next one of its level."""
    level = heading.split(" ", 1)[0]
    begin = text.index(f"\n{heading}\n")
    end = text.find(f"\n{level} ", begin + len(heading))
    return text[begin:] if end == -1 else text[begin:end]


@pytest.mark.parametrize("kind", [kind.kind for kind in kinds()])
def test_operations_page_names_every_log_event(kind: str) -> None:
    assert f"`{kind}`" in OPERATIONS


@pytest.mark.parametrize("metric", sorted(_metric_names()))
def test_operations_page_names_every_metric(metric: str) -> None:
    assert f"`{metric}`" in OPERATIONS


@pytest.mark.parametrize("name", sorted(_check_names()))
def test_tables_of_faults_have_every_check(name: str) -> None:
    assert f"\n| `{name}` |" in _section(OPERATIONS, "## Health")


@pytest.mark.parametrize("reason", [r for r in Reason if r.verdict is Verdict.REJECTED])
def test_troubleshooting_has_every_reason_of_a_rejection_with_its_status(reason: Reason) -> None:
    table = _section(TROUBLESHOOTING, "## Every reason")
    [row] = [line for line in table.splitlines() if f"`{reason}`" in line.split(" | ")[0]]
    if reason.status != 200:
        # A row may have several statuses: the last one before the reason is its own.
        assert re.findall(r"\b\d{3}\b", row.split(f"`{reason}`")[0])[-1] == str(reason.status)


@pages
def test_pages_name_only_settings_that_exist(page: Path) -> None:
    known = {setting.name for setting in SETTINGS} | {alias.name for alias in ALIASES}
    known |= {f"{setting.name}_FILE" for setting in SETTINGS if setting.secret}
    named = set(re.findall(r"\bSHIM_[A-Z0-9_]*[A-Z0-9]\b", page.read_text()))
    assert named - {"SHIM_WHITELST"} <= known  # misspelled on purpose, as an example


@pages
def test_links_point_to_existing_files_and_headings(page: Path) -> None:
    for link in links(page):
        url = urlsplit(link)
        if url.scheme:
            assert url.scheme == "https" and url.hostname in HOSTS, link
            continue
        target = page.parent / url.path if url.path else page
        assert target.exists(), link
        if url.fragment:
            assert url.fragment in anchors(target), link


def test_every_page_of_the_documentation_is_in_its_index() -> None:
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in links(DOCS / "README.md")}
    assert set(DOCS.glob("*.md")) - linked == {DOCS / "README.md"}


@pages
def test_files_that_a_page_names_exist(page: Path) -> None:
    for code in inline_code(page):
        if re.fullmatch(r"(?:deploy|docs|demo|shim|tests|requirements|\.ci)/[\w./-]*", code):
            assert (ROOT / code).exists(), code
        elif re.fullmatch(r"[\w-]+/[\w./-]+\.(?:yml|yaml|md|py|json|service|template)", code):
            assert any(
                (top / code).exists() for top in (page.parent, ROOT, ROOT / "deploy", ROOT / "shim")
            ), code


# commands


def _parser() -> click.core.Command:
    """The commands of the shim, without the effects of their options."""
    command = typer.main.get_command(app)

    def disarm(each: click.core.Command) -> None:
        for parameter in each.params:
            parameter.callback = None
        for sub in getattr(each, "commands", {}).values():
            disarm(sub)

    disarm(command)
    return command


def _parse(arguments: list[str]) -> dict[str, object]:
    """Parse arguments down to the last command, and return its parameters. Raises `UsageError`."""
    command, context, rest = _parser(), None, arguments
    while True:
        context = command.make_context(command.name or "navidrome-shim", list(rest), parent=context)
        if not hasattr(command, "resolve_command"):
            return dict(context.params)
        rest = [*context._protected_args, *context.args]
        if not rest:
            return dict(context.params)
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None, name
        command = found


GROUPS = ("users", "audit", "devices", "database", "notify")


def _named_commands(page: Path) -> list[list[str]]:
    """The commands in the prose of a page that leave out the program's name, such as `users list`."""
    return [
        code.split()
        for code in inline_code(page)
        if code.split()[0] in GROUPS and re.fullmatch(r"\w+ [a-z][\w -]*", code)
    ]


VALUES = {
    "reason": {str(reason) for reason in Reason},
    "verdict": {str(verdict) for verdict in Verdict},
    "kind": {kind.kind for kind in kinds()},
}


@pages
def test_commands_of_the_shim_in_blocks_have_arguments_that_it_accepts(page: Path) -> None:
    for arguments in filter(None, map(shim_arguments, block_commands(page))):
        _assert_accepted(arguments)


@pages
def test_commands_of_the_shim_in_the_text_have_arguments_that_it_accepts(page: Path) -> None:
    named = filter(None, map(shim_arguments, inline_commands(page)))
    for arguments in [*named, *_named_commands(page)]:
        # The text may name a command without its arguments.
        with suppress(click.exceptions.MissingParameter):
            _assert_accepted(arguments)


def _assert_accepted(arguments: list[str]) -> None:
    try:
        parameters = _parse(arguments)
    except typer.Exit:
        return  # --version, --help
    for option, known in VALUES.items():
        values = parameters.get(option) or []
        assert isinstance(values, (list, tuple)), arguments
        assert set(values) <= known, (arguments, option)


def test_a_command_with_an_unknown_option_is_found() -> None:
    with pytest.raises(click.exceptions.UsageError):
        _parse(["users", "list", "--verbose"])
    assert shim_arguments(
        ["docker", "compose", "exec", "navidrome-shim", "navidrome-shim", "check"]
    ) == ["check"]


@pages
def test_compose_commands_name_files_and_services_that_exist(page: Path) -> None:
    services = {name for file in COMPOSE for name in _services(file)}
    files = {file.name for file in COMPOSE} | {OWN_COMPOSE_FILE}
    for words in [*block_commands(page), *inline_commands(page)]:
        if words[:2] != ["docker", "compose"]:
            continue
        named = [words[at + 1] for at, word in enumerate(words) if word == "--file"]
        assert {Path(name).name for name in named} <= files, words
        for verb in ("exec", "logs"):
            if verb in words:
                assert words[words.index(verb) + 1] in services, words


def _services(file: Path) -> list[str]:
    return re.findall(
        r"^  ([a-z-]+):", file.read_text().partition("\nservices:\n")[2], re.MULTILINE
    )


@pages
def test_make_targets_and_python_modules_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in [*block_commands(page), *inline_commands(page)]:
        if words[:1] == ["make"] and len(words) > 1 and "=" not in words[1]:
            assert words[1] in targets, words
        if words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), words


@pages
def test_copied_files_exist(page: Path) -> None:
    for words in [*block_commands(page), *inline_commands(page)]:
        for word in words[1:]:
            if words[0] in {"cp", "install", "docker"} and word.startswith("deploy/"):
                assert (ROOT / word).exists(), words


# examples

SHELL_BLOCKS = [
    pytest.param(b.text, id=f"{page.relative_to(ROOT)}:{b.line}")
    for page in PAGES
    for b in blocks(page)
    if b.language in SHELLS
]
YAML_BLOCKS = [
    pytest.param(b.text, id=f"{page.relative_to(ROOT)}:{b.line}")
    for page in PAGES
    for b in blocks(page)
    if b.language == "yaml"
]
# A line of a settings file, also in a here-document, or an option of `docker run`.
_ASSIGNMENT = re.compile(r"^ *(?:--env )?(SHIM_[A-Z0-9_]+=.*?) *\\?$", re.MULTILINE)
SETTINGS_BLOCKS = [
    pytest.param(_ASSIGNMENT.findall(b.text), id=f"{page.relative_to(ROOT)}:{b.line}")
    for page in PAGES
    for b in blocks(page)
    if b.language in SHELLS and _ASSIGNMENT.search(b.text)
]


@pytest.mark.parametrize("text", SHELL_BLOCKS)
def test_shell_block_is_valid_bash(text: str) -> None:
    done = subprocess.run(
        ["bash", "-n"], input=text, capture_output=True, text=True, timeout=10, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("text", YAML_BLOCKS)
def test_yaml_block_is_valid(text: str) -> None:
    assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("lines", SETTINGS_BLOCKS)
def test_settings_block_is_accepted_by_the_shim(lines: list[str], tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("".join(f"{_filled_in(line)}\n" for line in lines))
    load({}, file)  # raises SettingsError for a fault


def _filled_in(line: str) -> str:
    """Replace what a person fills in."""
    return line.replace("$(openssl rand -hex 32)", "0" * 64).replace(
        "…", "a-value-of-the-test-0123456789"
    )


def test_sign_out_urls_are_absolute_as_navidrome_requires() -> None:
    text = "\n".join(file.read_text() for file in (*PAGES, *COMPOSE))
    in_files = re.findall(r"ND_EXTAUTH_LOGOUTURL[=:] ?(\S+)", text)
    in_text = re.findall(
        r"ND_EXTAUTH_LOGOUTURL`\s+and\s+`SHIM_SIGN_OUT_URL`\s+are\s+`([^`]+)`", text
    )
    assert in_files and in_text
    assert not [url for url in in_files + in_text if not url.startswith("https://")]


def _block_with(page: Path, text: str) -> str:
    [found] = [b.text for b in blocks(page) if text in b.text]
    return found


def test_backup_command_makes_complete_copies_and_the_restore_works(tmp_path: Path) -> None:
    for name in ("shim", "audit"):
        with closing(sqlite3.connect(tmp_path / f"{name}.db")) as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE rows (value)")
            database.execute("INSERT INTO rows VALUES (1)")
            database.commit()
    writing = sqlite3.connect(tmp_path / "shim.db")
    writing.execute("INSERT INTO rows VALUES (2)")
    writing.commit()  # in shim.db-wal, while the connection is open
    assert _run(_block_with(DOCS / "operations.md", "source.backup"), tmp_path) == ""
    copy = tmp_path / "shim.backup.db"
    assert copy.stat().st_mode & 0o077 == 0
    assert (tmp_path / "audit.backup.db").exists()
    writing.execute("DELETE FROM rows")
    writing.commit()
    writing.close()
    assert _run(_block_with(DOCS / "operations.md", "cp shim.backup.db"), tmp_path) == ""
    with closing(sqlite3.connect(tmp_path / "shim.db")) as restored:
        assert restored.execute("SELECT value FROM rows").fetchall() == [(1,), (2,)]


def test_systemd_function_runs_a_command_with_the_settings_of_the_running_unit(
    tmp_path: Path,
) -> None:
    program = tmp_path / "navidrome-shim"
    program.write_text('#!/bin/sh\necho "$1 $SHIM_EXAMPLE in $PWD"\n')
    control = tmp_path / "systemctl"
    text = _block_with(ROOT / "deploy/systemd/README.md", "mapfile")
    text = text.replace("/opt/navidrome-shim/bin", str(tmp_path))
    text = text.replace("/var/lib/navidrome-shim", str(tmp_path))
    running = subprocess.Popen(["sleep", "60"], env={"SHIM_EXAMPLE": "a b", "PATH": os.defpath})
    try:
        control.write_text(f"#!/bin/sh\necho {running.pid}\n")
        for file in (program, control):
            file.chmod(0o755)
        assert _run(text, tmp_path) == f"check a b in {tmp_path}\n"
    finally:
        running.kill()
        running.wait()


def _run(text: str, folder: Path) -> str:
    """Run a block in a folder, with the programs of this Python and those of the folder first."""
    path = os.pathsep.join((str(folder), str(Path(sys.executable).parent), os.defpath))
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-euc", text],
        cwd=folder,
        env={"PATH": path},
        capture_output=True,
        timeout=60,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_each_step_of_the_switch_says_how_to_undo_it() -> None:
    page = (DOCS / "traefik-authentik.md").read_text()
    steps = re.findall(r"^## Step (\d): .*\n((?:(?!^## ).*\n)*)", page, re.MULTILINE)
    assert [number for number, _ in steps] == ["0", "1", "2", "3", "4", "5"]
    # Step 4 only looks.
    assert [number for number, text in steps if "**Undo**" not in text] == ["4"]
