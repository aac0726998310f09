"""`python -m demo`, as a user starts it: its output, its end, and what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from demo.steps import STEPS

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "demo"]
_SECONDS = 90
# Variables that a user of the shim may have in the environment, which would stop a shim that read
# them.
HOSTILE = {
    "SHIM_LISTEN": "nowhere",
    "SHIM_REVERSE_PROXY_WHITELIST": "0.0.0.0/0",
    "SHIM_NO_SUCH_NAME": "1",
    "ND_EXTAUTH_USERHEADER": "X-Other",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
    "COLUMNS": "80",
}

# The demo with another scenario.
_WITH_STEP = """
import sys
from dataclasses import replace
import typer
from demo import runner, steps
from demo.__main__ import demo
alice = steps.STEPS[2]
step = replace(alice, {change})
runner.run.__kwdefaults__["steps"] = (step,)
sys.argv[1:] = {options}
typer.run(demo)
"""


def environment(folder: Path) -> dict[str, str]:
    """An environment that must have no effect; what is stored goes below the folder."""
    (folder / ".env").write_text("SHIM_UPSTREAM=nonsense\nSHIM_UNTRUSTED_PEERS=reject\n")
    store_folder = (folder / "kept").resolve()
    store_folder.mkdir()
    path = os.environ.get("PATH", os.defpath)
    return {**HOSTILE, "PATH": path, "PYTHONPATH": str(ROOT), "TMPDIR": str(store_folder)}


def stored(folder: Path) -> list[Path]:
    """The stored files that remain."""
    return list((folder / "kept").iterdir())


@pytest.fixture(scope="module")
def completed(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[subprocess.CompletedProcess[str], Path]:
    folder = tmp_path_factory.mktemp("once")
    ended = subprocess.run(
        [*COMMAND, "--once"],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    return ended, folder


CompletedDemo = tuple["subprocess.CompletedProcess[str]", Path]


def test_every_step_passes(completed: CompletedDemo) -> None:
    ended, _ = completed
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.rstrip().endswith(f"All {len(STEPS)} steps passed.")


def test_each_step_shows_the_decision_and_the_forwarded_headers(completed: CompletedDemo) -> None:
    text = _outputs_by_title(completed)
    assert len(text) == len(STEPS)
    takeover = text["Without the shim: an attacker is the admin"]
    assert "X-authentik-username: admin shim none" in takeover
    assert "Navidrome got X-authentik-username: admin response 200 Subsonic: ok" in takeover
    closed = text["With the shim: the same request has no identity"]
    assert "stripped, public_path, on a public path removed X-authentik-username" in closed
    assert "Navidrome got no user header response 200 Subsonic: error" in closed
    alice = text["Alice opens the web app"]
    assert (
        "authenticated, verified_jwt, on a protected path linked the existing account alice"
        in alice
    )
    assert "gave alice a password" not in alice
    assert "Navidrome got Remote-User: alice" in alice
    alias = text["A signed-in user tries to become the admin"]
    assert "rejected, header_alias, on a protected path" in alias
    assert "Navidrome got no request response 400" in alias


def test_the_steps_about_accounts_show_each_result(completed: CompletedDemo) -> None:
    text = _outputs_by_title(completed)
    first = text["Carla visits for the first time"]
    assert "created the account carla.berg Navidrome got Remote-User: carla.berg" in first
    assert "carla.berg: regular user, Carla Berg <carla.berg@example.org>" in first
    assert "logged in as carla.berg (Carla Berg), a regular user" in first
    refused = text["Dirk is in no allowed group"]
    assert "rejected, group_not_allowed, on a protected path" in refused
    assert "Navidrome got no request account dirk: none response 403" in refused
    assert "Contact: alice@example.org" in refused
    promoted = text["The provider makes Carla an admin"]
    assert "changed isAdmin: False → True" in promoted
    assert "logged in as carla.berg (Carla Berg), an admin" in promoted
    renamed = text["The provider renames Carla"]
    assert "changed userName: carla.berg → carla.novak; name: Carla Berg → Carla" in renamed
    assert "account carla.berg: none account carla.novak: admin, Carla Novak" in renamed


def test_a_new_account_gets_a_chosen_password_and_a_linked_one_keeps_its_own(
    completed: CompletedDemo,
) -> None:
    text = _outputs_by_title(completed)
    chosen = text["She sets a password for her apps"]
    assert "PUT /api/user/{id} password = correct horse battery staple" in chosen
    assert "response 200" in chosen
    assert "response 200 Subsonic: ok" in text["Alice's phone signs in with her Subsonic password"]


def test_without_a_terminal_it_is_plain_text_of_80_columns(completed: CompletedDemo) -> None:
    assert "\x1b" not in completed[0].stdout
    assert max(map(len, completed[0].stdout.splitlines())) <= 80


def test_no_files_or_processes_remain_after_the_scenario(completed: CompletedDemo) -> None:
    assert stored(completed[1]) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_keeps_running_until_a_signal(tmp_path: Path, number: int) -> None:
    with _staying(tmp_path) as (process, lines):
        text = _read_until(lines, "Everything runs until Ctrl-C")
        command = re.search(
            r"'(http://127\.0\.0\.1:\d+/rest/getUsers.*)'", text.partition("and with the shim")[2]
        )
        control = re.search(r"(http://127\.0\.0\.1:\d+)/readyz", text)
        assert command and control
        claim = {"X-authentik-username": "admin"}
        with httpx.Client(trust_env=False) as client:
            response = client.get(command.group(1), headers=claim)
            assert client.get(f"{control.group(1)}/readyz").status_code == 200
        assert response.json()["subsonic-response"]["status"] == "failed"
        assert "stripped, public_path" in _read_until(lines, "127.0.0.2 GET /rest/getUsers")
        process.send_signal(number)
        assert process.wait(_SECONDS) == 0
    assert stored(tmp_path) == []
    for url in (command.group(1), control.group(1)):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", httpx.URL(url).port or 0)) != 0


def test_a_signal_during_the_scenario_ends_everything_with_a_message(tmp_path: Path) -> None:
    change = 'request=replace(alice.request, target="/api/events")'  # its response has no end
    with _staying(tmp_path, _with_step(change)) as (process, lines):
        _read_until(lines, "for contrast")
        process.terminate()
        assert "ended by a signal before the scenario ended" in _read_until(lines, "signal")
        assert process.wait(_SECONDS) == 1
    assert stored(tmp_path) == []


def test_a_failed_step_is_named_and_fails_the_demo(tmp_path: Path) -> None:
    change = 'expected=replace(alice.expected, navidrome=(("Remote-User", "bert"),))'
    with _staying(tmp_path, _with_step(change, "--once")) as (process, lines):
        text = _read_until(lines, "FAILED: 1 of 1 steps are wrong: 1.")
        assert process.wait(_SECONDS) == 1
    assert "Navidrome saw Remote-User: alice, not Remote-User: bert" in _flat(text)


def test_serve_does_not_import_the_demo() -> None:
    code = (
        "import sys, shim.cli.main, shim.app.runtime; print([m for m in sys.modules if "
        "m.split('.')[0] == 'demo'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"


def _with_step(change: str, *options: str) -> list[str]:
    code = _WITH_STEP.format(change=change, options=list(options))
    return [sys.executable, "-c", code]


@contextmanager
def _staying(
    folder: Path, command: Sequence[str] = COMMAND
) -> Iterator[tuple[subprocess.Popen[str], Iterator[str]]]:
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**environment(folder), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    watchdog = threading.Timer(_SECONDS, process.kill)
    watchdog.start()
    try:
        yield process, iter(process.stdout)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def _read_until(lines: Iterator[str], wanted: str) -> str:
    read: list[str] = []
    for line in lines:
        read.append(line)
        if wanted in line:
            return "".join(read)
    raise AssertionError(f"{wanted!r} did not appear: {''.join(read)}")


def _outputs_by_title(completed: CompletedDemo) -> dict[str, str]:
    """The output of each step, by its title."""
    steps = re.split(r"^\d+\. ", completed[0].stdout, flags=re.MULTILINE)[1:]
    return {text.partition(" ─")[0]: _flat(text) for text in steps}


def _flat(text: str) -> str:
    return " ".join(text.split())
