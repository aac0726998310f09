"""The `audit` commands as processes, while a shim serves and after it has stopped."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import shim as package
from tests.integration.control.conftest import Deployment, start_deployment
from tests.support.shim_settings import command, eventually

FORMULA = "=1+1"
ESCAPE = "caf\u00e9 \u202e"
KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def stopped_shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A running shim, with a provisioned user, rejections with an attacker's texts, and a lock."""
    with start_deployment(tmp_path_factory.mktemp("shim"), AUDIT_KEY=KEY) as deployment:
        deployment.visit("ada", "users")
        with deployment.edge("mallory") as mallory:
            mallory.headers.encoding = "utf-8"
            del mallory.headers["X-Shim-Proxy-Secret"]
            mallory.headers["User-Agent"] = ESCAPE
            for name in (FORMULA, ESCAPE, "[red]markup[/red]", "<script>"):
                mallory.headers["X-authentik-username"] = name
                mallory.get("/app/")
        with deployment.operator() as operator:
            operator.post("/api/accounts/lock", json={"account": "ada"})
        eventually(lambda: len(lines(deployment, "list", "--reason", "secret_missing")), 3)
        yield deployment


def run(deployment: Deployment, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command(deployment.folder, "audit", *arguments, settings=deployment.settings)


def lines(deployment: Deployment, *arguments: str) -> list[dict[str, Any]]:
    ran = run(deployment, *arguments, "--json")
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_the_list_has_filters_and_is_newest_first(stopped_shim: Deployment) -> None:
    kinds = [event["kind"] for event in lines(stopped_shim, "list")]
    assert {"started", "account_created", "request_decision", "admin_action"} <= set(kinds)
    assert kinds.index("admin_action") < kinds.index("account_created") < kinds.index("started")
    oldest = lines(stopped_shim, "list", "--oldest-first")
    assert oldest[0]["time"] <= oldest[-1]["time"]
    (locked,) = lines(stopped_shim, "list", "--kind", "account_locked", "--since", "2h")
    assert locked["account"] == "ada"
    assert lines(stopped_shim, "list", "--until", "yesterday") == []
    assert lines(stopped_shim, "list", "--client", "127.0.0.0/8", "--verdict", "rejected")
    assert lines(stopped_shim, "list", "--text", "MALLORY@example") == []
    assert lines(stopped_shim, "list", "--user", "ADA", "--kind", "identity_seen")


def test_the_table_has_no_raw_text_of_an_attacker(stopped_shim: Deployment) -> None:
    for arguments in (("list",), ("report",), ("list", "--json"), ("export",)):
        ran = run(stopped_shim, *arguments)
        assert ran.returncode == 0, ran.stderr
        assert not [c for c in ran.stdout if not c.isprintable() and c != "\n"]
    assert "\\u202e" in run(stopped_shim, "export").stdout
    assert "[red]markup[/red]" in run(stopped_shim, "list").stdout


def test_csv_cells_are_not_formulas(stopped_shim: Deployment) -> None:
    for arguments in (("list", "--csv"), ("export", "--csv")):
        ran = run(stopped_shim, *arguments)
        rows = list(csv.DictReader(io.StringIO(ran.stdout)))
        assert f"'{FORMULA}" in {row["claimed_user"] for row in rows}
        for row in rows:
            assert not [cell for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--since", "nonsense", "since: 'nonsense' is not a time: use for example 2h, yesterday,"),
        ("--kind", "nonsense", "kind: 'nonsense' is not one of account_binding_removed,"),
        (
            "--verdict",
            "x",
            "verdict: 'x' is not one of anonymous, authenticated, rejected, stripped",
        ),
        ("--peer", "1.2.3.4/99", "peer: expected an address or a network such as 192.0.2.0/24,"),
        ("--stream", "both", "stream: 'both' is not one of changes, requests"),
        ("--text", "x" * 300, "text: expected 1 to 200 characters"),
    ],
)
def test_an_invalid_filter_is_reported_with_the_valid_values(
    stopped_shim: Deployment, option: str, value: str, message: str
) -> None:
    ran = run(stopped_shim, "list", option, value)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    # The message is in a frame, folded.
    assert f"Invalid value: {message}" in " ".join(ran.stderr.replace("│", " ").split())


def test_show_has_reason_and_remedy(stopped_shim: Deployment) -> None:
    event = lines(stopped_shim, "list", "--reason", "secret_missing")[0]
    ran = run(stopped_shim, "show", event["id"])
    assert "SHIM_PROXY_SECRET" in ran.stdout
    assert "→" in ran.stdout
    assert event["request_id"] in ran.stdout
    shown = json.loads(run(stopped_shim, "show", event["request_id"], "--json").stdout)
    assert shown["event"]["id"] == event["id"]
    assert shown["words"]["remedy"]
    assert len(shown["integrity"]["hash"]) == 64
    unknown = run(stopped_shim, "show", "nonsense")
    assert (unknown.returncode, unknown.stdout) == (1, "")


def test_the_report_has_one_page(stopped_shim: Deployment) -> None:
    out = run(stopped_shim, "report", "--since", "2h").stdout
    assert "secret_missing" in out
    assert "The account ada was created" in out
    assert "users.lock" in out
    found = json.loads(run(stopped_shim, "report", "--json").stdout)
    assert {each["value"]: each["count"] for each in found["refusals"]}["secret_missing"] >= 3
    assert [event["account"] for event in found["locks"]] == ["ada"]


def test_follow_prints_new_events(stopped_shim: Deployment) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "shim", "audit", "follow", "--json", "--kind", "admin_action"],
        cwd=stopped_shim.folder,
        env={
            "PYTHONPATH": str(Path(package.__file__).parents[1]),
            **{f"SHIM_{name}": value for name, value in stopped_shim.settings.items()},
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        # It follows from the moment at which it has started, which is not announced.
        found: list[str] = []
        with stopped_shim.operator() as operator:
            import threading

            reader = threading.Thread(target=lambda: found.append(process.stdout.readline()))  # type: ignore[union-attr]
            reader.start()

            def reloaded() -> bool:
                operator.post("/api/reload")
                reader.join(0.5)
                return bool(found)

            eventually_long(reloaded)
        assert json.loads(found[0])["action"] == "reload"
        process.send_signal(2)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


def eventually_long(holds: Any) -> None:
    for _ in range(60):
        if holds():
            return
    raise AssertionError("nothing was printed")


def test_an_export_writes_every_event_to_a_new_file(stopped_shim: Deployment) -> None:
    file = stopped_shim.folder / "events.ndjson"
    ran = run(stopped_shim, "export", "--kind", "started", "--output", str(file))
    assert ran.returncode == 0, ran.stderr
    assert [json.loads(line)["kind"] for line in file.read_text().splitlines()] == ["started"]
    assert file.stat().st_mode & 0o077 == 0
    again = run(stopped_shim, "export", "--output", str(file))
    assert again.returncode == 1
    assert "exists" in again.stderr


def test_an_unaltered_trail_is_verified(stopped_shim: Deployment) -> None:
    ran = run(stopped_shim, "verify")
    assert ran.returncode == 0, ran.stderr
    assert "rows verified" in ran.stdout
    assert "accidental" not in ran.stderr
    log = stopped_shim.folder / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in stopped_shim.shim.lines))
    compared = run(stopped_shim, "verify", "--checkpoints", str(log), "--json")
    assert compared.returncode == 0, compared.stderr
    streams = json.loads(compared.stdout)["streams"]
    assert sum(stream["checkpoints"] for stream in streams) > 0
    missing = run(stopped_shim, "verify", "--checkpoints", str(stopped_shim.folder / "none"))
    assert missing.returncode == 1


def test_without_a_stored_trail_the_commands_report_it(tmp_path: Path) -> None:
    none = {"AUDIT_DATABASE_URL": "none"}
    ran = command(tmp_path, "audit", "list", settings=none)
    assert ran.returncode == 1
    assert "SHIM_AUDIT_DATABASE_URL" in ran.stderr
    missing = command(tmp_path, "audit", "list", settings={"PROVISIONING": "false"})
    assert missing.returncode == 1
    assert "there is no trail yet" in missing.stderr
    assert not list(tmp_path.iterdir())


def test_the_commands_work_after_the_shim_has_stopped_and_find_an_altered_row(
    tmp_path: Path,
) -> None:
    with start_deployment(tmp_path, AUDIT_KEY=KEY) as deployment:
        deployment.visit("ada")
        with httpx.Client(base_url=deployment.control) as client:
            client.get("/healthz")
    assert "stopped" in {event["kind"] for event in lines(deployment, "list")}
    assert run(deployment, "verify").returncode == 0
    # The `users` commands are recorded too.
    settings = {**deployment.settings, "NAVIDROME_TIMEOUT": "1"}
    unlinked = command(deployment.folder, "users", "unlink", "ada", "--yes", settings=settings)
    assert unlinked.returncode == 0, unlinked.stderr
    (action,) = lines(deployment, "list", "--kind", "admin_action")
    assert (action["action"], action["result"], action["origin"]) == (
        "users.unlink",
        "done",
        "command",
    )
    assert action["actor"].startswith("command:")
    pruned = run(deployment, "prune", "--before", "now")
    assert (pruned.returncode, pruned.stdout) == (1, "")
    done = run(deployment, "prune", "--before", "now", "--yes")
    assert done.returncode == 0, done.stderr
    found = lines(deployment, "list")
    assert {event["kind"] for event in found} >= {"admin_action"}
    assert "account_created" not in {event["kind"] for event in found}
    assert run(deployment, "verify").returncode == 0
    database = sqlite3.connect(deployment.folder / "audit.db")
    with database:
        database.execute("UPDATE audit_changes SET data = replace(data, 'prune', 'print')")
    database.close()
    altered = run(deployment, "verify")
    assert altered.returncode == 1
    assert "altered" in altered.stderr
