"""Cross-site requests that use the victim's session at the edge."""

from __future__ import annotations

import pytest

from tests.support.recorder import Recorder
from tests.support.shim_process import (
    HOST,
    Shim,
    assert_rejected,
    build_request,
    edge_address,
)

ADMIN = "X-authentik-username: admin"
FORM = ("Content-Type: text/plain", "Content-Length: 2")


@pytest.mark.parametrize(
    "fields",
    [
        ("Sec-Fetch-Site: same-site",),
        ("Sec-Fetch-Site: cross-site",),
        (f"Origin: https://evil.{HOST}",),
        ("Origin: https://evil.example",),
        ("Origin: null",),
        ("Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: same-origin"),
        (f"Origin: https://{HOST}", "Sec-Fetch-Site: same-site"),
        ("Origin: https://evil.example", "Connection: close, origin"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_form_post_from_a_sibling_subdomain_is_rejected(
    shim: Shim, upstream: Recorder, fields: tuple[str, ...], method: str
) -> None:
    edge = edge_address()
    line = f"{method} /api/user HTTP/1.1"
    response = shim.request(build_request(line, ADMIN, *FORM, *fields, body=b"{}"), edge)
    assert_rejected(shim, upstream, response, edge, 403, "cross_site")


def test_a_websocket_from_another_site_is_rejected(shim: Shim, upstream: Recorder) -> None:
    edge = edge_address()
    fields = (
        ADMIN,
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        "Origin: https://evil.example",
    )
    response = shim.request(build_request("GET /api/socket HTTP/1.1", *fields), edge)
    assert_rejected(shim, upstream, response, edge, 403, "cross_site")


@pytest.mark.parametrize(
    "fields",
    [
        (f"Origin: https://{HOST}", "Sec-Fetch-Site: same-origin"),
        (),
        (f"Origin: https://{HOST}", f"X-Forwarded-Host: {HOST}"),
        # nginx by default: Host is that of the upstream, and the port is dropped
        ("Origin: https://music.example.org:8443", "Sec-Fetch-Site: same-origin"),
        (f"Origin: https://{HOST}", f"X-Forwarded-Host: {HOST}, inner.example"),
    ],
)
def test_the_web_app_itself_can_post(
    shim: Shim, upstream: Recorder, fields: tuple[str, ...]
) -> None:
    line = "POST /api/playlist HTTP/1.1"
    response = shim.request(build_request(line, ADMIN, *FORM, *fields, body=b"{}"), edge_address())
    assert response.statuses == [200]
    (received,) = upstream.requested
    assert received.values("Remote-User") == ["admin"]
    assert received.body == b"{}"
