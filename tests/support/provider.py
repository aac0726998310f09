"""A provider: signs tokens for its users and serves its key set, from its own thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.jwt_minting import (
    AUDIENCE,
    ISSUER,
    Private,
    claims,
    jwk,
    key_set,
    rsa_key,
    token,
)

_PATIENCE = 10.0


class Provider:
    """`keys` are published; `status` and `body` replace the response. `requests` counts."""

    def __init__(self) -> None:
        self.keys: dict[str, Private] = {"rsa-0": rsa_key(0)}
        self.status = 200
        self.body: bytes | None = None
        self.requests = 0
        self.url = ""

    def token(self, key: Private | None = None, kid: str = "rsa-0", **changes: Any) -> str:
        """A token of ada's that is valid now, with these claims changed."""
        now = int(time.time())
        entries = claims(**{"iat": now - 5, "exp": now + 300, **changes})
        return token(entries, key=self.keys[kid] if key is None else key, kid=kid)

    def settings(self, **changes: str) -> dict[str, str]:
        """The settings that make a shim use it."""
        return {
            "JWT_VERIFY": "required",
            "JWKS_URL": self.url,
            "JWT_ISSUER": ISSUER,
            "JWT_AUDIENCE": AUDIENCE,
            "JWT_LEEWAY": "0",
            **changes,
        }

    def wait_for_requests(self, times: int) -> None:
        """Wait until its key set was fetched this many times."""
        end = time.monotonic() + _PATIENCE
        while self.requests < times:
            assert time.monotonic() < end, f"got {self.requests} requests, not {times}"
            time.sleep(0.01)


@contextmanager
def provider() -> Iterator[Provider]:
    """Serve on a free port, until the block ends."""
    created = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            created.requests += 1
            body = created.body
            if body is None:
                body = key_set(*(jwk(key, kid, use="sig") for kid, key in created.keys.items()))
            self.send_response(created.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        created.url = f"http://127.0.0.1:{server.server_address[1]}/jwks/"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield created
        finally:
            server.shutdown()
            thread.join()
