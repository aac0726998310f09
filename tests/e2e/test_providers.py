"""The edge configuration of each provider in `docs/providers.md`, in the real Traefik with the shim.

A stand-in for the provider sends its headers to every client with a session.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from demo.navidrome import StandIn, StandInOptions, StandInThread
from tests.e2e.programs import beside_python, free_port, running
from tests.e2e.servers import SECRET, shim
from tests.support.provider_headers import SENDS, Sent

GUIDE = (Path(__file__).parents[2] / "docs/providers.md").read_text()
BEHIND_TRAEFIK = ("authelia", "oauth2-proxy", "tinyauth")
COOKIE = "session=ada"


@dataclass(frozen=True, slots=True)
class Site:
    """A provider, its headers, the edge's URL, and the Navidrome behind it."""

    sent: Sent
    url: str
    stand_in: StandIn

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers=headers, trust_env=False, timeout=20)

    def users_sent(self) -> list[list[str]]:
        """The user headers of each request that reached Navidrome, and the provider's own."""
        prefix = self.sent.load().identity_prefixes[0].lower()
        return [
            [value for name, value in seen.headers if name.lower().startswith(("remote-", prefix))]
            for seen in self.stand_in.seen
        ]


@contextmanager
def provider(sent: Sent) -> Iterator[str]:
    """A provider that responds 200 with its headers to a session, and else redirects; returns its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            signed_in = COOKIE in self.headers.get("Cookie", "")
            self.send_response(200 if signed_in else 302)
            if not signed_in:
                self.send_header("Location", "https://id.example.org/")
            for line in sent.fields if signed_in else ():
                name, _, value = line.partition(": ")
                self._headers_buffer.append(f"{name}: {value}\r\n".encode())  # type: ignore[attr-defined]
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def dynamic(name: str, provider_url: str, shim_url: str) -> dict[str, Any]:
    """Return the guide's configuration for this provider, with the common routers."""
    section = GUIDE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    config: dict[str, Any] = yaml.safe_load(re.sub(r"http://[a-z0-9-]+:\d+", provider_url, block))
    http = config["http"]
    names = [each for each in http["middlewares"] if each != "navidrome-no-identity"]
    assert len(names) == 1
    secret = {"headers": {"customRequestHeaders": {"X-Shim-Proxy-Secret": SECRET}}}
    http["middlewares"]["navidrome-secret"] = secret
    http.setdefault("services", {})["shim"] = {"loadBalancer": {"servers": [{"url": shim_url}]}}
    http["routers"] = {
        "open": {
            "rule": "PathPrefix(`/rest/`)",
            "priority": 150,
            "middlewares": ["navidrome-no-identity"],
            "service": "shim",
        },
        "navidrome": {
            "rule": "PathPrefix(`/`)",
            "priority": 50,
            "middlewares": ["navidrome-no-identity", *names, "navidrome-secret"],
            "service": "shim",
        },
    }
    return config


def title_of(sent: Sent) -> str:
    """Return the heading of the provider's section."""
    return {"authelia": "Authelia"}.get(sent.provider, sent.provider)


@pytest.fixture(scope="module", params=BEHIND_TRAEFIK)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    sent = next(each for each in SENDS if each.provider == request.param)
    folder = tmp_path_factory.mktemp(sent.provider)
    port = free_port()
    static, rules = folder / "traefik.yml", folder / "dynamic.yml"
    static.write_text(
        yaml.safe_dump(
            {
                "entryPoints": {"web": {"address": f"127.0.0.1:{port}"}},
                "providers": {"file": {"filename": str(rules)}},
            }
        )
    )
    command = [beside_python("traefik"), f"--configfile={static}"]
    settings = {"SHIM_PROVIDER": sent.provider, "SHIM_PROXY_SECRET": SECRET}
    with (
        provider(sent) as provider_url,
        StandInThread(StandInOptions()) as stand_in,
        shim(folder, stand_in.url, **settings) as before,
    ):
        rules.write_text(yaml.safe_dump(dynamic(title_of(sent), provider_url, before.url)))
        with running(command, port, folder, {}):
            found = Site(sent, f"http://127.0.0.1:{port}", stand_in)
            _until_routed(found)
            yield found


@pytest.fixture(autouse=True)
def _forget(site: Site) -> None:
    site.stand_in.seen.clear()


def test_the_edge_removes_and_copies_every_header_of_the_provider(site: Site) -> None:
    middlewares = dynamic(title_of(site.sent), "http://id", "http://shim")["http"]["middlewares"]
    removed = middlewares.pop("navidrome-no-identity")["headers"]["customRequestHeaders"]
    assert set(removed.values()) == {""}
    sent = {line.partition(":")[0] for line in site.sent.fields}
    assert removed.keys() == sent | {"Remote-User", "X-Shim-Proxy-Secret"}
    (copied,) = (each["forwardAuth"] for each in middlewares.values() if "forwardAuth" in each)
    assert set(copied["authResponseHeaders"]) == sent


def test_a_session_names_its_user_only(site: Site) -> None:
    forged = dict.fromkeys((line.partition(":")[0] for line in site.sent.fields), "admin")
    assert site.get("/api/song", Cookie=COOKIE).status_code != httpx.codes.FORBIDDEN
    site.get("/api/song", Cookie=COOKIE, **forged, **{"X-Shim-Proxy-Secret": "forged"})
    assert site.users_sent() == [[site.sent.identity.username]] * 2


def test_a_client_without_a_session_has_no_identity(site: Site) -> None:
    forged = dict.fromkeys((line.partition(":")[0] for line in site.sent.fields), "admin")
    assert site.get("/api/song", **forged).status_code == httpx.codes.FOUND
    assert site.users_sent() == []
    site.get("/rest/ping?v=1&c=x", **forged)
    site.get("/rest/ping?v=1&c=x", Cookie=COOKIE)
    assert site.users_sent() == [[], []]


def test_an_alias_is_rejected(site: Site) -> None:
    alias = site.sent.name_field.replace("-", "_", 1)
    response = site.get("/api/song", Cookie=COOKIE, **{alias: "admin"})
    assert response.status_code == httpx.codes.BAD_REQUEST
    assert site.users_sent() == []


def _until_routed(site: Site) -> None:
    for _ in range(400):
        if site.get("/api/song").status_code == httpx.codes.FOUND:
            return
        threading.Event().wait(0.05)
    raise AssertionError("Traefik does not ask the provider")
