"""The control plane over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from pathlib import Path

import httpx
import pytest
import uvicorn
from prometheus_client import CollectorRegistry
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from shim.audit.events import Operator
from shim.audit.performing import Performed
from shim.control.access import ADMIN_HEADER, CHANNEL_HEADER, USER_HEADER, Access
from shim.control.app import create_app
from shim.control.explain import ExplainedRequest
from shim.control.metrics import build_registry
from shim.control.probes import Probes
from shim.control.responses import SECURITY_HEADERS
from shim.control.services import ControlServices
from shim.health import Check, State
from shim.proxy.counters import Counters
from shim.settings import load
from shim.settings.reload import ReloadResult

SECRET = "s" * 43
TOKEN = "t" * 32

PASSING = Check("navidrome", State.OK, "answers")
IN_WARNING = Check("whitelist", State.WARNING, "names everybody", "name the edge alone")
BROKEN = Check("navidrome", State.FAILING, "connection refused", "start it, or set SHIM_UPSTREAM")


class Health:
    def __init__(self, *checks: Check) -> None:
        self.now = checks

    def checks(self) -> tuple[Check, ...]:
        return self.now


class FailingHealth(Health):
    def checks(self) -> tuple[Check, ...]:
        raise RuntimeError("an internal secret")


async def no_reload(_operator: Operator) -> Performed[ReloadResult]:
    raise AssertionError("no reload was requested")


async def fail_explain(_request: ExplainedRequest) -> dict[str, object]:
    return {"verdict": "anonymous"}


def app_of(
    health: Health | None = None,
    *,
    token: str | None = None,
    reload: Callable[[Operator], Awaitable[Performed[ReloadResult]]] = no_reload,
) -> ASGIApp:
    return Probes(*parts_of(health, token, reload))


def parts_of(
    health: Health | None = None,
    token: str | None = None,
    reload: Callable[[Operator], Awaitable[Performed[ReloadResult]]] = no_reload,
) -> tuple[Access, Health, Callable[[], CollectorRegistry], ASGIApp]:
    """Return what `Probes` needs; the last is the application of the API, with the same routes."""
    health = health or Health(PASSING)
    registry = build_registry(Counters(), version="9.9.9")
    services = ControlServices(
        health=health,
        metrics=registry,
        settings=lambda: load({}),
        pending_restart=tuple,
        reload=reload,
        explain=fail_explain,
    )
    access = Access(channel_secret=SECRET, token=token, hosts=["127.0.0.1"])
    return access, health, lambda: registry, create_app(services, access)


async def send(
    app: ASGIApp,
    path: str,
    *,
    method: str = "GET",
    peer: str = "127.0.0.1",
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    transport = httpx.ASGITransport(app, client=(peer, 1), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:4535") as client:
        return await client.request(method, path, headers=headers)


async def test_healthz_requires_no_authentication() -> None:
    for app in (app_of(), app_of(token=TOKEN)):
        response = await send(app, "/healthz", peer="192.0.2.7")
        assert (response.status_code, response.text) == (200, "ok\n")
        assert response.headers["content-type"].startswith("text/plain")


async def test_readyz_has_the_state_and_remedy_of_each_part() -> None:
    response = await send(app_of(Health(PASSING, IN_WARNING)), "/readyz")

    assert response.status_code == 200
    assert response.json() == {
        "ready": True,
        "checks": {
            "navidrome": {"state": "ok", "detail": "answers", "remedy": None},
            "whitelist": {
                "state": "warning",
                "detail": "names everybody",
                "remedy": "name the edge alone",
            },
        },
    }


async def test_readyz_is_503_while_a_part_is_failing() -> None:
    health = Health(IN_WARNING, BROKEN)
    app = app_of(health)

    response = await send(app, "/readyz")
    assert response.status_code == 503
    assert response.json()["ready"] is False
    assert response.json()["checks"]["navidrome"]["remedy"] == BROKEN.remedy

    health.now = (PASSING,)
    assert (await send(app, "/readyz")).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_probes_can_use_head(path: str) -> None:
    assert (await send(app_of(), path, method="HEAD")).status_code == 200


async def test_metrics_have_the_requested_format() -> None:
    app = app_of()

    plain = await send(app, "/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "shim_streams_open 0.0" in plain.text

    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    assert (await send(app, "/metrics", headers=accept)).text.endswith("# EOF\n")


@pytest.mark.parametrize("path", ["/readyz", "/metrics"])
async def test_everything_but_healthz_is_denied_to_untrusted_peers(path: str) -> None:
    assert (await send(app_of(), path, peer="192.0.2.7")).status_code == 403

    response = await send(app_of(token=TOKEN), path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.json()["error"] == "unauthorized"

    token = {"Authorization": f"Bearer {TOKEN}"}
    response = await send(app_of(token=TOKEN), path, peer="192.0.2.7", headers=token)
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_another_host_is_rejected_on_every_path(path: str) -> None:
    response = await send(app_of(), path, headers={"Host": "evil.example"})

    assert response.status_code == 421
    assert response.json()["error"] == "misdirected_request"


async def test_the_private_channel_requires_its_secret() -> None:
    app = app_of(token=TOKEN)
    headers = {
        CHANNEL_HEADER: SECRET,
        USER_HEADER: "ada",
        ADMIN_HEADER: "1",
        "Host": "music.example",
    }

    assert (await send(app, "/readyz", headers=headers)).status_code == 200
    response = await send(app, "/readyz", headers={**headers, CHANNEL_HEADER: "guessed"})
    assert response.status_code == 404
    assert response.json() == (await send(app, "/nothing/here")).json()


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/readyz/", "/x"])
async def test_there_are_no_generated_api_pages(path: str) -> None:
    response = await send(app_of(), path)

    assert response.status_code == 404
    assert response.json() == {"error": "not_found", "detail": "Not Found"}


async def test_a_wrong_method_gets_a_json_response() -> None:
    response = await send(app_of(), "/metrics", method="POST")

    assert response.status_code == 405
    assert response.json()["error"] == "method_not_allowed"
    assert response.headers["allow"] == "GET"


async def test_an_internal_error_shows_no_details() -> None:
    response = await send(app_of(FailingHealth()), "/readyz")

    assert response.status_code == 500
    assert response.json()["error"] == "internal_server_error"
    assert "secret" not in response.text


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/nothing"])
async def test_every_response_has_the_security_headers(path: str) -> None:
    response = await send(app_of(FailingHealth() if path == "/readyz" else Health()), path)

    assert {name: response.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/healthz/", "/nothing"])
@pytest.mark.parametrize(
    ("token", "peer", "headers"),
    [
        (None, "127.0.0.1", {}),
        (None, "192.0.2.7", {}),
        (None, "127.0.0.1", {"Host": "evil.example"}),
        (None, "127.0.0.1", {"Sec-Fetch-Site": "cross-site"}),
        (TOKEN, "127.0.0.1", {}),
        (TOKEN, "192.0.2.7", {"Authorization": f"Bearer {TOKEN}"}),
        (TOKEN, "127.0.0.1", {CHANNEL_HEADER: "guessed", USER_HEADER: "ada"}),
        (TOKEN, "127.0.0.1", {CHANNEL_HEADER: SECRET, USER_HEADER: "ada"}),
    ],
)
async def test_a_probe_gets_the_response_that_the_documented_route_gives(
    method: str, path: str, token: str | None, peer: str, headers: dict[str, str]
) -> None:
    access, health, metrics, documented = parts_of(token=token)
    probes = Probes(access, health, metrics, documented)
    found = await send(probes, path, method=method, peer=peer, headers=headers)
    expected = await send(documented, path, method=method, peer=peer, headers=headers)
    assert found.status_code == expected.status_code
    assert headers_of(found) == headers_of(expected)
    # The values of a process change from one moment to the next.
    assert re.sub(r"(?m) \S+$", "", found.text) == re.sub(r"(?m) \S+$", "", expected.text)


def headers_of(response: httpx.Response) -> list[tuple[str, str]]:
    return sorted(each for each in response.headers.items() if each[0] != "content-length")


async def test_a_request_for_something_else_is_passed_on() -> None:
    async def rest(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("else")(scope, receive, send)

    access, health, metrics, _ = parts_of()
    probes = Probes(access, health, metrics, rest)
    for method, path in (("GET", "/"), ("POST", "/healthz"), ("GET", "/readyz/")):
        assert (await send(probes, path, method=method)).text == "else"
    assert (await send(probes, "/healthz")).text == "ok\n"


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield  # the test run's own handlers stay


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, listener: socket.socket) -> AsyncIterator[None]:
    server = Server(
        uvicorn.Config(app, log_config=None, access_log=False, proxy_headers=False, lifespan="off")
    )
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        for _ in range(5000):
            if server.started:
                break
            await asyncio.sleep(0.001)
        yield
    finally:
        server.should_exit = True
        await task


async def test_on_a_tcp_socket_loopback_is_allowed_by_its_address() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    async with serving(app_of(), listener), httpx.AsyncClient() as client:
        response = await client.get(f"http://127.0.0.1:{port}/readyz")
        assert response.status_code == 200
        response = await client.get(
            f"http://127.0.0.1:{port}/readyz", headers={"Host": "evil.example"}
        )
        assert response.status_code == 421


async def test_on_a_unix_socket_its_file_permissions_decide(tmp_path: Path) -> None:
    path = str(tmp_path / "control.sock")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    transport = httpx.AsyncHTTPTransport(uds=path)
    async with serving(app_of(), listener), httpx.AsyncClient(transport=transport) as client:
        assert (await client.get("http://localhost/readyz")).status_code == 200
