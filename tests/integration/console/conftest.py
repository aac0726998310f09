"""The demo after its scenario, with an attacker's texts, and a browser.

The browser has an event loop in this thread as long as it runs, so it runs for this package alone.
The group keeps the tests on one worker.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from demo.environment import EDGE_ADDRESS, OUTSIDER, Environment
from tests.support.browser import chromium
from tests.support.demo_run import FinishedDemo, run_demo

SCRIPT = "<script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(2)>"
RIGHT_TO_LEFT = "\u202egnp.exe\u202c"
FORMULA = "=cmd|' /C calc'!A0"
EMOJI = "🎵" * 255


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "integration/console" in str(item.path):
            item.add_marker(pytest.mark.xdist_group("chromium"))
            item.add_marker(pytest.mark.binary("chromium"))


@pytest.fixture(scope="package")
def demo() -> Iterator[FinishedDemo]:
    with run_demo(attack) as found:
        yield found


def attack(environment: Environment) -> None:
    """Send texts that could be active in a browser, a terminal or a table."""
    host, port = environment.shim.url.removeprefix("http://").split(":")
    name = "X-authentik-username"
    for source, path, lines in (
        (OUTSIDER, f"/app/{IMAGE.replace(' ', '%20')}", [f"{name}: {SCRIPT}"]),
        (OUTSIDER, "/app/\u202e".encode(), [f"{name}: {RIGHT_TO_LEFT}", f"User-Agent: {SCRIPT}"]),
        (OUTSIDER, "/app/", [f"{name}: {FORMULA}"]),
        (OUTSIDER, "/app/", [f"{name}: {EMOJI}"]),
        (EDGE_ADDRESS, "/app/", [b"X-authentik-username: \xff\xfe\x9b31m", b"User-Agent: \x9b31m"]),
        (EDGE_ADDRESS, "/app/", [f"{name}: \x1b[31mred\x1b[0m", "User-Agent: \x1b]0;title\x07"]),
        (EDGE_ADDRESS, "/app/", [f"{name}: eve{SCRIPT}", f"X_authentik_username: {SCRIPT}"]),
    ):
        with socket.create_connection((host, int(port)), 10, (source, 0)) as raw:
            target = path if isinstance(path, bytes) else path.encode()
            head = [b"GET %b HTTP/1.1" % target, b"Host: %b" % host.encode(), b"Connection: close"]
            head += [line if isinstance(line, bytes) else line.encode() for line in lines]
            raw.sendall(b"\r\n".join(head) + b"\r\n\r\n")
            assert raw.recv(64).startswith(b"HTTP/1.1 ")


@pytest.fixture(scope="package")
def browser(demo: FinishedDemo) -> Iterator[Browser]:
    assert demo is not None  # the browser ends first
    with chromium() as found:
        yield found
