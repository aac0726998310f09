"""`deploy/traefik/aliases.yml`, for a Traefik without `aliasHeadersStrategy`, in the real Traefik."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import product
from pathlib import Path
from threading import Thread

import httpx
import pytest
import yaml

from tests.e2e.programs import beside_python, running
from tests.e2e.servers import DEPLOY
from tests.e2e.test_edges import NAMES
from tests.support.ports import free_port

ALL_NAMES = (*NAMES, "Remote-User", "X-Shim-Proxy-Secret")


def aliases() -> list[str]:
    """Every name with `_` or `.` for one or more of its dashes."""
    found = []
    for name in ALL_NAMES:
        first, *others = name.split("-")
        for marks in product("-_.", repeat=len(others)):
            alias = first + "".join(m + part for m, part in zip(marks, others, strict=True))
            if alias != name:
                found.append(alias)
    return found


@contextmanager
def backend() -> Iterator[tuple[str, list[str]]]:
    """A server that records the header names of its requests: its URL and the names."""
    names: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            names.extend(self.headers)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", names
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_file_names_every_alias_of_every_header() -> None:
    parsed = yaml.safe_load((DEPLOY / "traefik/aliases.yml").read_text())
    headers = parsed["http"]["middlewares"]["navidrome-no-aliases"]["headers"]
    assert headers["customRequestHeaders"] == dict.fromkeys(aliases(), "")


@pytest.mark.parametrize("with_file", [True, False])
def test_the_aliases_are_removed_behind_a_traefik_without_the_option(
    tmp_path: Path, with_file: bool
) -> None:
    (tmp_path / "aliases.yml").write_text((DEPLOY / "traefik/aliases.yml").read_text())
    sent = {alias.swapcase() if n % 2 else alias: "forged" for n, alias in enumerate(aliases())}
    with backend() as (url, names):
        router = {
            "rule": "PathPrefix(`/`)",
            "service": "there",
            "middlewares": ["navidrome-no-aliases"] if with_file else [],
        }
        there = {"loadBalancer": {"servers": [{"url": url}]}}
        rules = {"http": {"routers": {"all": router}, "services": {"there": there}}}
        (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
        port = free_port()
        command = (
            beside_python("traefik"),
            f"--entrypoints.web.address=127.0.0.1:{port}",
            "--entrypoints.web.http.aliasheadersstrategy=keep",
            f"--providers.file.directory={tmp_path}",
        )
        with running(command, port, tmp_path, {}), httpx.Client(trust_env=False) as client:
            where = f"http://127.0.0.1:{port}/"
            for _ in range(100):  # until the rules are read
                if client.get(where).status_code == 204:
                    break
                time.sleep(0.05)
            lines = list(sent.items())
            for first in range(0, len(lines), 50):  # Python's server accepts a hundred
                part = dict(lines[first : first + 50])
                assert client.get(where, headers=part).status_code == 204
    left = {name.lower() for name in names} & {name.lower() for name in sent}
    assert (not left) is with_file
