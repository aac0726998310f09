"""The edge configurations of each provider in `docs/providers.md`, in the real Traefik, Caddy and nginx.

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
from tests.e2e.programs import beside_python, running
from tests.e2e.servers import DEPLOY, SECRET, Upstreams, nginx_with, shim
from tests.support.ports import free_port
from tests.support.provider_headers import SENDS, Sent

GUIDE = (Path(__file__).parents[2] / "docs/providers.md").read_text()
PROVIDERS = ("authelia", "oauth2-proxy", "tinyauth")
COOKIE = "session=ada"
# The end of each target, since the shim has requests of its own.
MARK = "from=test"
_PATHS_FOR_NGINX = ("/api/authz/auth-request", "/oauth2/auth")
# The same user, in no group.
GROUPLESS = "session=ada-without-groups"
# Another user in no group, whose name has a blank.
GROUPLESS_WITH_BLANK = f"{GROUPLESS}-with-blank"
# A session that the provider refreshes at each request.
REFRESHED = "session=ada-refreshed"
# The places that the guide names for nginx: the text of each in the template, and the lines to replace.
_NAMES = r"^ +proxy_set_header (?:X-authentik-|Remote-User ).*\n"
_NGINX_BLOCKS = {
    "server": (r"^    listen 443 .*?(?=^    location )", _NAMES),
    "location /": (
        r"^    location / \{\n.*?^    \}\n",
        r"^ +auth_request_set .*authentik.*\n",
    ),
    "location = /navidrome-auth-request": (
        r"^    location = /navidrome-auth-request \{\n.*?^    \}\n",
        rf"^ +proxy_pass .*\n|{_NAMES}",
    ),
    "location @sign-in": (
        r"^    location @sign-in \{\n.*?^    \}\n",
        r"^ +return .*\n",
    ),
}


@dataclass(frozen=True, slots=True)
class Site:
    """An edge, a provider's headers, the edge's URL, and the Navidrome behind it."""

    edge: str
    sent: Sent
    url: str
    stand_in: StandIn

    def get(self, path: str, **headers: str) -> httpx.Response:
        target = f"{path}{'&' if '?' in path else '?'}{MARK}"
        return httpx.get(f"{self.url}{target}", headers=headers, trust_env=False, timeout=20)

    def users_sent(self) -> list[list[str]]:
        """The user headers of each request of `get` that reached Navidrome, and the provider's own."""
        prefix = self.sent.load().identity_prefixes[0].lower()
        return [
            [value for name, value in seen.headers if name.lower().startswith(("remote-", prefix))]
            for seen in self.stand_in.seen
            if seen.target.endswith(MARK)
        ]


@contextmanager
def provider(sent: Sent) -> Iterator[str]:
    """A provider that responds 200 with its headers to a session, and else redirects; returns its URL.

    At the paths for nginx it responds 401 in place of 302, and requires what the real one requires.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            signed_in = COOKIE in self.headers.get("Cookie", "")
            at = self.path.partition("?")[0]
            if at == "/api/authz/auth-request" and not (
                self.headers["X-Original-URL"] and self.headers["X-Original-Method"]
            ):
                self.send_error(400)
                return
            self.send_response(200 if signed_in else 401 if at in _PATHS_FOR_NGINX else 302)
            if REFRESHED in self.headers.get("Cookie", ""):
                self.send_header("Set-Cookie", "_oauth2_proxy=refreshed; Path=/; HttpOnly")
            if not signed_in:
                self.send_header("Location", "https://id.example.org/")
            for line in sent.fields if signed_in else ():
                name, _, value = line.partition(": ")
                if "Groups" in name and GROUPLESS in self.headers["Cookie"]:
                    value = ""
                if value == "ada" and GROUPLESS_WITH_BLANK in self.headers["Cookie"]:
                    value = "ada b"
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


def _section(name: str) -> str:
    return GUIDE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


def section_of(name: str, language: str) -> str:
    """Return the code block of this language in the provider's section."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", _section(name), re.DOTALL)
    assert isinstance(block, str)
    return block


def caddyfile(name: str, provider_url: str) -> str:
    """Return `deploy/caddy/Caddyfile` with the guide's parts for this provider."""
    address = provider_url.removeprefix("http://")
    block = re.sub(r"(?m)(?<= )[a-z0-9-]+:\d+", address, section_of(name, "caddyfile"))
    snippets, _, handle = block.partition("# In place of")
    text = (DEPLOY / "caddy/Caddyfile").read_text()
    for snippet in ("no-identity", "sign-in"):
        pattern = rf"^\({snippet}\) \{{\n.*?^\}}\n"
        text = text.replace(_only(pattern, text), _only(pattern, snippets))
    pages = _only(r"^\thandle /outpost\.goauthentik\.io/\* \{\n.*?\n\t\}\n", text)
    text = text.replace(pages, handle.partition("\n")[2])
    # Loopback only, and no control socket.
    own = "\n{\n\tadmin off\n\tdefault_bind 127.0.0.1\n\tservers {"
    return text.replace("\n{\n\tservers {", own)


def nginx_template(name: str) -> str:
    """Return `deploy/nginx/navidrome.conf.template` with the guide's lines for this provider."""
    comment = re.compile(r"^# In `(.+?)`, in place of .*:\n", re.MULTILINE)
    _, *parts = comment.split(section_of(name, "nginx"))
    lines = dict(zip(parts[::2], parts[1::2], strict=True))
    assert lines.keys() == _NGINX_BLOCKS.keys()
    text = (DEPLOY / "nginx/navidrome.conf.template").read_text()
    for place, (block, replaced) in _NGINX_BLOCKS.items():
        before = _only(block, text)
        at = re.search(replaced, before, re.MULTILINE)
        assert at, place
        rest = re.sub(replaced, "", before[at.start() :], flags=re.MULTILINE)
        text = text.replace(before, before[: at.start()] + lines[place] + rest)
    pages = re.search(r"with `(location \S+ \S+)` in place of", _section(name))
    before = _only(r"^    location \^~ /outpost\.goauthentik\.io/ \{\n.*?^    \}\n", text)
    after = re.sub("location .*/", pages[1], before) if pages else ""
    return text.replace(before, after)


def _only(pattern: str, text: str) -> str:
    (found,) = re.findall(pattern, text, re.DOTALL | re.MULTILINE)
    return str(found)


def dynamic(name: str, provider_url: str, shim_url: str) -> dict[str, Any]:
    """Return the guide's configuration for this provider, with the common routers."""
    block = re.sub(r"http://[a-z0-9-]+:\d+", provider_url, section_of(name, "yaml"))
    config: dict[str, Any] = yaml.safe_load(block)
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


@contextmanager
def traefik(folder: Path, name: str, provider_url: str, shim_url: str) -> Iterator[str]:
    """Traefik with the guide's configuration; returns its URL."""
    port = free_port()
    static, rules = folder / "traefik.yml", folder / "dynamic.yml"
    entry = {"address": f"127.0.0.1:{port}", "http": {"aliasHeadersStrategy": "keep"}}
    static.write_text(
        yaml.safe_dump(
            {"entryPoints": {"web": entry}, "providers": {"file": {"filename": str(rules)}}}
        )
    )
    rules.write_text(yaml.safe_dump(dynamic(name, provider_url, shim_url)))
    with running([beside_python("traefik"), f"--configfile={static}"], port, folder, {}):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def caddy(folder: Path, name: str, provider_url: str, shim_url: str) -> Iterator[str]:
    """Caddy with the guide's configuration; returns its URL."""
    url, config = f"http://127.0.0.1:{free_port()}", folder / "Caddyfile"
    config.write_text(caddyfile(name, provider_url))
    environment = {
        "NAVIDROME_SITE": url,
        "NAVIDROME_SHIM": shim_url.removeprefix("http://"),
        "SHIM_PROXY_SECRET": SECRET,
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
    }
    command = [beside_python("caddy"), "run", "--config", str(config), "--adapter", "caddyfile"]
    with running(command, int(url.rpartition(":")[2]), folder, environment):
        yield url


@contextmanager
def nginx(folder: Path, name: str, provider_url: str, shim_url: str) -> Iterator[str]:
    """nginx with the guide's configuration; returns its URL."""
    upstreams = Upstreams(provider_url, shim_url, SECRET)
    with nginx_with(nginx_template(name), folder, upstreams) as url:
        yield url


BEHIND = {"traefik": traefik, "caddy": caddy, "nginx": nginx}
# The guide has no lines for nginx and this provider.
_WITHOUT_NGINX = {"tinyauth"}


@pytest.fixture(
    scope="module",
    params=[
        (edge, provider)
        for provider in PROVIDERS
        for edge in BEHIND
        if edge != "nginx" or provider not in _WITHOUT_NGINX
    ],
    ids="-".join,
)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    edge, name = request.param
    sent = next(each for each in SENDS if each.provider == name)
    folder = tmp_path_factory.mktemp(f"{edge}-{name}")
    settings = {
        "SHIM_PROVIDER": sent.provider,
        "SHIM_PROXY_SECRET": SECRET,
        # So that an identity without the groups header is rejected.
        "SHIM_ADMIN_GROUPS": "administrators",
    }
    with (
        provider(sent) as provider_url,
        StandInThread(StandInOptions()) as stand_in,
        shim(folder, stand_in.url, **settings) as before,
        BEHIND[edge](folder, title_of(sent), provider_url, before.url) as url,
    ):
        found = Site(edge, sent, url, stand_in)
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
    # The rules of deploy/traefik/dynamic/navidrome.yml.
    assert copied["trustForwardHeader"] is False
    assert copied["maxResponseBodySize"] > 0
    block = section_of(title_of(site.sent), "caddyfile")
    (names,) = re.findall(r"copy_headers \{(.*?)\}", block, re.DOTALL)
    assert set(names.split()) == sent
    if site.sent.provider in _WITHOUT_NGINX:
        return
    set_headers = re.findall(
        r"proxy_set_header (\S+) (\S+);", section_of(title_of(site.sent), "nginx")
    )
    removed = {name for name, value in set_headers if value == '""' and name != "Remote-User"}
    assert removed == sent - {"Remote-User"}
    assert {name for name, value in set_headers if value.startswith("$navidrome")} == sent


def test_a_user_in_no_group_is_signed_in(site: Site) -> None:
    response = site.get("/api/song", Cookie=GROUPLESS)
    assert response.status_code != httpx.codes.FORBIDDEN, response.text
    assert site.users_sent() == [[site.sent.identity.username]]


def test_a_user_in_no_group_whose_name_has_a_blank_is_signed_in(site: Site) -> None:
    response = site.get("/api/song", Cookie=GROUPLESS_WITH_BLANK)
    assert response.status_code != httpx.codes.FORBIDDEN, response.text
    assert site.users_sent() == [["ada b"]]


def test_the_cookie_of_a_refreshed_session_reaches_the_browser(site: Site) -> None:
    if site.sent.provider != "oauth2-proxy" or site.edge == "caddy":
        pytest.skip(
            "only oauth2-proxy refreshes sessions, and behind Caddy it stores them in Redis"
        )
    response = site.get("/api/song", Cookie=REFRESHED)
    assert response.headers["Set-Cookie"].startswith("_oauth2_proxy=refreshed")


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


def test_an_alias_is_no_identity(site: Site) -> None:
    # Caddy deletes names with `_` by itself, nginx all aliases.
    alias = site.sent.name_field.replace("-", "~" if site.edge == "caddy" else "_", 1)
    response = site.get("/api/song", Cookie=COOKIE, **{alias: "admin"})
    rejected = response.status_code == httpx.codes.BAD_REQUEST
    # The guide's Caddyfile removes this one too; from Traefik it arrives and is rejected.
    removed = site.edge != "traefik"
    assert rejected is not removed
    assert site.users_sent() == ([] if rejected else [[site.sent.identity.username]])


def _until_routed(site: Site) -> None:
    for _ in range(400):
        if site.get("/api/song").status_code == httpx.codes.FOUND:
            return
        threading.Event().wait(0.05)
    raise AssertionError("the edge does not ask the provider")
