"""Notifications as an operator configures them: the test message, and invalid settings."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.recorder import Recorder
from tests.support.shim_process import run_shim
from tests.support.shim_settings import command

TOKEN = "s3cret-s3cret-s3cret"


class Service(ThreadingHTTPServer):
    """An HTTP service that records its messages."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.messages: list[dict[str, str]] = []
        self.arrived = threading.Event()

    @property
    def url(self) -> str:
        return f"json://user:{TOKEN}@127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Service)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.messages.append(json.loads(body))
        self.server.arrived.set()
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_test_message_goes_to_every_service_and_a_failure_is_the_exit_code(
    service: Service, tmp_path: Path
) -> None:
    urls = f"{service.url} json://127.0.0.1:9/{TOKEN}"
    done = command(tmp_path, "notify", "test", settings={"NOTIFY_URLS": urls})
    first, second = done.stdout.splitlines()
    assert first == "1 (json): sent"
    assert second.startswith("2 (json): failed: ")
    assert done.returncode == 1
    assert TOKEN not in done.stdout + done.stderr
    (message,) = service.messages
    assert "This is a test" in message["message"]
    done = command(tmp_path, "notify", "test", settings={"NOTIFY_URLS": service.url})
    assert (done.returncode, done.stdout) == (0, "1 (json): sent\n")


def test_without_urls_a_test_reports_that_there_is_no_target(tmp_path: Path) -> None:
    done = command(tmp_path, "notify", "test", settings={})
    assert (done.returncode, done.stdout) == (1, "")
    assert "SHIM_NOTIFY_URLS is not set" in done.stderr


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"NOTIFY_URLS": f"nosuch://{TOKEN}"}, "entry 1 (nosuch://…) is not an Apprise URL"),
        (
            {"NOTIFY_URLS": "json://127.0.0.1", "NOTIFY_KINDS": "acount_created"},
            "no event has the kind acount_created",
        ),
    ],
)
def test_invalid_settings_prevent_the_start_and_check_reports_why(
    upstream: Recorder, tmp_path: Path, settings: dict[str, str], expected: str
) -> None:
    settings = {
        "UPSTREAM": f"http://127.0.0.1:{upstream.port}",
        "PROVISIONING": "false",
        "LISTEN": "127.0.0.1:0",
        "CONTROL_LISTEN": "127.0.0.1:0",
        **settings,
    }
    for arguments in (("serve",), ("notify", "test")):
        done = command(tmp_path, *arguments, settings=settings)
        assert done.returncode == 1
        assert expected in done.stderr
        assert TOKEN not in done.stdout + done.stderr
    checked = command(tmp_path, "check", "--json", settings=settings)
    found = json.loads(checked.stdout)["checks"]["notifications"]
    assert found["state"] == "failing" and expected in found["detail"]
    assert TOKEN not in checked.stdout


def test_a_running_shim_sends_a_notification_of_its_start(
    service: Service, upstream: Recorder, tmp_path: Path
) -> None:
    settings = {"NOTIFY_URLS": service.url, "NOTIFY_KINDS": "started"}
    with run_shim(upstream.port, tmp_path, **settings) as shim:
        assert service.arrived.wait(20)
        assert service.messages[0]["title"] == "navidrome-shim: started"
        assert f"listen=127.0.0.1:{shim.port}" in service.messages[0]["message"]
        assert not [line for line in shim.lines if TOKEN in json.dumps(line)]
