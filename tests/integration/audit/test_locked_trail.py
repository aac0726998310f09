"""Every administrative action is answered while another process holds the lock of the trail's writers."""

from __future__ import annotations

import re
import sqlite3
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import httpx
import pytest

from shim.audit import admin_actions, performing
from shim.audit.store.tables import TRAIL_TABLES
from shim.cli import recorded
from tests.integration.control.conftest import Deployment, start_deployment
from tests.support.postgresql import PostgreSQL
from tests.support.shim_settings import command

# Seconds in which each action is to be answered.
LIMIT = 10.0
# More than that, since other processes may take the processor.
PATIENCE = 60.0
# The shim with a short limit for the wait for the trail, and none for any other wait.
IMPATIENT = (
    sys.executable,
    "-c",
    """
import sys
from shim.audit import admin_actions
from shim.audit.store import writer
from shim.cli import recorded
from shim.cli.main import main
from shim.store import engine
admin_actions.STORE_SECONDS = 0.2
recorded._CLOSE_SECONDS = writer._CLOSE_SECONDS = engine.BUSY_SECONDS = 1000.0
main()
""",
)
PEOPLE = ("ada", "bob", "cy", "dan", "eve", "fay")
HTML = {"Accept": "text/html"}
_FIELD = re.compile(r'name="(csrf_token|form_key)" value="([^"]+)"')
_DEVICE = re.compile(r'href="devices/([0-9a-f]+)/revoke"')


@dataclass(frozen=True, slots=True)
class Prepared:
    """A running shim, the ids of ada's devices by their names, and the lock of its trail."""

    deployment: Deployment
    devices: dict[str, str]
    url: str
    server: PostgreSQL | None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock that each writer of the trail takes."""
        if self.server is not None:
            name = self.url.rpartition("/")[2]
            with self.server.session(name) as session:
                session.execute(f"SELECT pg_advisory_lock({TRAIL_TABLES.lock})".encode())
                yield
            return
        file = self.url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(file, timeout=10, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield


@pytest.fixture
def prepared(store_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Prepared]:
    is_server = store_url.startswith("postgresql")
    server = request.getfixturevalue("postgresql") if is_server else None
    url = store_url if is_server else f"sqlite:///{tmp_path / 'audit.db'}"
    with start_deployment(tmp_path, AUDIT_DATABASE_URL=url) as deployment:
        for person in PEOPLE:
            deployment.visit(person, "users")
        found = {}
        with deployment.edge("ada") as ada:
            for name in ("Phone", "Tablet", "Car", "Radio"):
                form = {**hidden_fields(ada, "/_shim/"), "name": name}
                assert ada.post("/_shim/devices/add", data=form).status_code == 200
                # The newest is the first.
                found[name] = _DEVICE.findall(ada.get("/_shim/", headers=HTML).text)[0]
        yield Prepared(deployment, found, url, server)


def hidden_fields(client: httpx.Client, path: str) -> dict[str, str]:
    return dict(_FIELD.findall(client.get(path, headers=HTML).text))


def test_the_api_and_the_console_answer_in_time_while_the_trail_is_locked(
    prepared: Prepared,
) -> None:
    deployment, devices = prepared.deployment, prepared.devices
    with deployment.operator() as operator, deployment.edge("ada", "admins") as ada:
        operator.timeout = ada.timeout = httpx.Timeout(PATIENCE)
        csrf = {"X-CSRF-Token": ada.get("/_shim/api/session").json()["csrf_token"]}
        phone = f"/_shim/devices/{devices['Phone']}"
        added = {**hidden_fields(ada, "/_shim/"), "name": "New"}
        renamed = {**hidden_fields(ada, f"{phone}/rename"), "name": "Other"}
        pages = "/_shim/admin"
        actions = {
            "api sync": lambda: operator.post("/api/accounts/sync", json={"account": "bob"}),
            "api unlock": lambda: operator.post("/api/accounts/unlock", json={"account": "bob"}),
            "api unlink": lambda: operator.post("/api/accounts/unlink", json={"account": "cy"}),
            "api lock": lambda: operator.post("/api/accounts/lock", json={"account": "dan"}),
            "api revoke": lambda: operator.post("/api/devices/revoke", json={"id": devices["Car"]}),
            "api reload": lambda: operator.post("/api/reload"),
            "console sync": lambda: ada.post(
                f"{pages}/accounts/sync", data={"account": "bob"}, headers=csrf
            ),
            "console unlink": lambda: ada.post(
                f"{pages}/accounts/unlink", data={"account": "cy"}, headers=csrf
            ),
            "console lock": lambda: ada.post(
                f"{pages}/accounts/lock", data={"account": "eve"}, headers=csrf
            ),
            "console reload": lambda: ada.post(f"{pages}/configuration", headers=csrf),
            "console revoke": lambda: ada.post(
                f"{pages}/devices/{devices['Tablet']}/revoke", headers=csrf
            ),
            "own add": lambda: ada.post("/_shim/devices/add", data=added, headers=HTML),
            "own rename": lambda: ada.post(f"{phone}/rename", data=renamed),
            "own revoke": lambda: ada.post(
                f"/_shim/devices/{devices['Radio']}/revoke", headers=csrf
            ),
        }
        with prepared.locked(), ThreadPoolExecutor(len(actions)) as threads:
            running = {name: threads.submit(action) for name, action in actions.items()}
            responses = {name: each.result() for name, each in running.items()}
        refused = {
            "api sync": 503,
            "api unlock": 503,
            "api unlink": 503,
            "console sync": 503,
            "console unlink": 503,
            "own add": 503,
        }
        for name, response in responses.items():
            text = response.text.replace("&#39;", "'")
            if name in refused:
                assert response.status_code == refused[name], (name, response.status_code, text)
                assert "the audit trail can't be written" in text, (name, text)
            else:
                assert response.status_code == 200, (name, response.status_code, text)
                assert "not recorded in the audit trail, only in the log" in text, (name, text)
        for action, result in (("users.lock", "done"), ("device.add", "refused")):
            deployment.shim.wait_for_line(kind="admin_action", action=action, result=result)
        # The trail stores later what was refused.
        query = {"kind": "admin_action", "text": "refused"}
        latest = time.monotonic() + PATIENCE
        while len(stored := operator.get("/api/audit/events", params=query).json()["events"]) < len(
            refused
        ):
            assert time.monotonic() < latest, stored
            time.sleep(0.2)


def test_commands_end_while_the_trail_is_locked(prepared: Prepared) -> None:
    deployment, devices = prepared.deployment, prepared.devices
    refused = (
        ("devices", "add", "ada", "New"),
        ("users", "unlock", "bob"),
        ("users", "unlink", "cy", "--yes"),
        ("audit", "prune", "--yes"),
    )
    done = (
        ("users", "lock", "dan", "--yes"),
        ("devices", "revoke", devices["Car"], "--yes"),
        ("reload",),
    )
    settings = {**deployment.settings, "CONTROL_LISTEN": deployment.control.removeprefix("http://")}

    def run(arguments: tuple[str, ...]) -> CompletedProcess[str]:
        return command(deployment.folder, *arguments, settings=settings, program=IMPATIENT)

    with prepared.locked(), ThreadPoolExecutor(2) as threads:
        ran = list(threads.map(run, (*refused, *done)))
    for arguments, process in zip((*refused, *done), ran, strict=True):
        output = process.stderr + process.stdout
        if arguments in refused:
            assert process.returncode == 1, (arguments, output)
            assert "the audit trail can't be written" in output, (arguments, output)
        else:
            assert process.returncode == 0, (arguments, output)
            assert "not recorded in the audit trail, only in the log" in output, output


def test_the_waits_of_an_action_are_within_the_limit() -> None:
    assert admin_actions.STORE_SECONDS <= performing._ACTION_SECONDS < LIMIT
    assert performing._ACTION_SECONDS + recorded._FAILING_SECONDS < LIMIT
