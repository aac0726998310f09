"""What a running shim loads: nothing that only some people use, and nothing on the event loop's thread."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.integration.control.conftest import TOKEN, Deployment, start_deployment
from tests.support.import_watch import Imports, read_imports

HTML = {"Accept": "text/html"}
JWT = {
    "JWT_VERIFY": "optional",
    "JWT_HS256_SECRET": "the-client-secret-of-these-tests-0123456789",
    "JWT_ISSUER": "https://sso.example.com/",
    "JWT_AUDIENCE": "navidrome",
}
# Each takes memory for good, and the shim needs none of them before somebody opens the API or a page.
UNUSED = (
    "alembic",
    "apprise",
    "argcomplete",
    "attr",
    "cryptography",
    "difflib",
    "fastapi",
    "greenlet",
    "httpx._main",
    "jinja2",
    "jwt",
    "prometheus_client",
    "psycopg",
    "pydantic.v1",
    "pygments",
    "rich",
    "segno",
    "shim.cli.main",
    "shim.control.api",
    "shim.control.app",
    "shim.control.audit_api",
    "shim.control.pages",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.orm",
    "typer",
    "websockets",
)
CONSOLE = (
    "/admin/",
    "/admin/trail",
    "/admin/accounts",
    "/admin/devices",
    "/admin/explain",
    "/admin/configuration",
    "/admin/nothing",
)
API = (
    "/api/openapi.json",
    "/api/session",
    "/api/config",
    "/api/accounts",
    "/api/devices",
    "/api/audit/events",
    "/api/nothing",
)


class Watched:
    """A shim whose imports are recorded. `imports` is there after its end."""

    def __init__(self, deployment: Deployment, file: Path) -> None:
        self.deployment = deployment
        self._file = file

    @property
    def imports(self) -> Imports:
        return read_imports(self._file)


@contextmanager
def watched(folder: Path, **settings: str) -> Iterator[Watched]:
    file = folder / "imports.json"
    before = (sys.executable, "-m", "tests.support.import_watch", str(file))
    with start_deployment(folder, before=before, **settings) as deployment:
        deployment.visit("ada", "users")
        yield Watched(deployment, file)


def get(client: httpx.Client, path: str, status: int = 200) -> None:
    response = client.get(path, headers=HTML)
    assert response.status_code == (404 if path.endswith("nothing") else status), response.text


@pytest.mark.parametrize("settings", [{}, JWT, {"AUDIT_DATABASE_URL": "none"}])
def test_a_shim_that_only_serves_loads_neither_the_api_nor_the_pages(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    with watched(tmp_path, **settings) as shim, shim.deployment.operator() as client:
        get(client, "/healthz")
        get(client, "/readyz")
    imports = shim.imports
    assert {"shim.app.runtime", "httpx", "pydantic"} <= imports.modules
    assert imports.loaded(*UNUSED) == []


def test_metrics_load_neither_the_api_nor_the_pages(tmp_path: Path) -> None:
    with watched(tmp_path) as shim, shim.deployment.operator() as client:
        moment = time.monotonic()
        get(client, "/metrics")
    imports = shim.imports
    assert imports.loaded(*UNUSED) == ["prometheus_client"]
    assert imports.on_loop_since(moment) == []


@pytest.mark.parametrize(
    "settings", [{}, {"AUDIT_DATABASE_URL": "none"}, {"PROVISIONING": "false"}]
)
def test_the_code_of_the_console_and_the_api_is_not_loaded_on_the_event_loop(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    with watched(tmp_path, **settings) as shim:
        moment = time.monotonic()
        with shim.deployment.client() as visitor:
            get(visitor, "/admin/", 303)
            get(visitor, "/sign-in")
            wrong = visitor.post("/sign-in", data={"token": "wrong"}, headers=HTML)
            assert wrong.status_code == 401
            right = visitor.post("/sign-in", data={"token": TOKEN}, headers=HTML)
            assert right.status_code == 303
            for path in CONSOLE:
                assert visitor.get(path, headers=HTML).status_code in (200, 404, 503)
        with shim.deployment.operator() as operator:
            for path in API:
                assert operator.get(path).status_code in (200, 404)
    imports = shim.imports
    assert imports.loaded("fastapi", "jinja2", "shim.control.pages") == [
        "fastapi",
        "jinja2",
        "shim.control.pages",
    ]
    assert imports.on_loop_since(moment) == []


def test_the_code_of_a_persons_page_is_not_loaded_on_the_event_loop(tmp_path: Path) -> None:
    with watched(tmp_path) as shim, shim.deployment.edge("ada", "users") as ada:
        moment = time.monotonic()
        get(ada, "/_shim/")
        get(ada, "/_shim/devices/add", 303)
        get(ada, "/_shim/nothing")
    imports = shim.imports
    assert imports.loaded("jinja2", "shim.control.pages.person") == [
        "jinja2",
        "shim.control.pages.person",
    ]
    assert imports.on_loop_since(moment) == []
