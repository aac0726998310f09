"""As much of Docker's Engine API as Traefik uses, with one container with labels.

So that Traefik itself reads the labels in `deploy/compose/`, on a machine without Docker.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

_VERSION: Final = "1.48"
_ID: Final = "5e1f" * 16


@contextmanager
def docker_engine(labels: dict[str, str], network: str) -> Iterator[str]:
    """An engine with one running container, at 127.0.0.1 on a network; returns its `tcp://` URL."""
    name = "/navidrome-shim-1"
    networks = {"Networks": {network: {"IPAddress": "127.0.0.1", "NetworkID": "edge"}}}
    listed = {
        "Id": _ID,
        "Names": [name],
        "State": "running",
        "Labels": labels,
        "NetworkSettings": networks,
    }
    inspected = {
        "Id": _ID,
        "Name": name,
        "State": {"Status": "running", "Running": True},
        "HostConfig": {"NetworkMode": network},
        "Config": {"Labels": labels},
        "NetworkSettings": {**networks, "Ports": {}},
    }
    responses = {
        "/_ping": "OK",
        "/version": {"Version": "28.0.0", "ApiVersion": _VERSION, "MinAPIVersion": "1.24"},
        "/containers/json": [listed],
        f"/containers/{_ID}/json": inspected,
    }
    stopping = threading.Event()

    class Engine(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/v1."):
                path = path[path.index("/", 1) :]
            if path == "/events":  # There are no events.
                self._begin(200)
                stopping.wait()
                return
            body = json.dumps(responses.get(path, {"message": "no such thing"})).encode()
            self._begin(200 if path in responses else 404, len(body))
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Log nothing."""

        def _begin(self, status: int, length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Api-Version", _VERSION)
            self.send_header("Content-Type", "application/json")
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.flush()

    with ThreadingHTTPServer(("127.0.0.1", 0), Engine) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.server_port}"
        finally:
            stopping.set()
            server.shutdown()
            thread.join()
