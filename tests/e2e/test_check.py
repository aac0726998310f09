"""`navidrome-shim check` behind the real Traefik, Caddy and nginx, set up right and in each wrong way.

Each wrong set-up is the shipped file with one change, as a person makes the mistake.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from demo.navidrome import StandInOptions, StandInThread
from demo.outpost import COOKIE, Outpost, OutpostOptions
from tests.e2e import servers
from tests.e2e.conftest import EDGES, NGINX, USERS
from tests.e2e.servers import ROOT, SECRET, Upstreams, shim
from tests.support.certificates import make_certificates

EDGE_NAMES = ["traefik", "caddy", NGINX]
PATHS = "/rest/, /share/, /jellyfin/, /app/manifest.webmanifest"
SOURCES_NOT_CHECKED = (
    "if Navidrome trusts more than the shim (ND_EXTAUTH_TRUSTEDSOURCES): SHIM_PROVISIONING is false"
)
_TRAEFIK_ROUTE = "middlewares: [navidrome-no-identity]\n      service: navidrome-shim"
_CADDY_ROUTE = "\t\timport no-identity\n\t\treverse_proxy {$NAVIDROME_SHIM"
_NO_IDENTITY = {
    "traefik": (_TRAEFIK_ROUTE, "service: navidrome-shim"),
    "caddy": (_CADDY_ROUTE, "\t\treverse_proxy {$NAVIDROME_SHIM"),
    "nginx": ('    proxy_set_header Remote-User "";\n    # The client', "    # The client"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Site:
    """An edge, the shim and a stand-in, and the settings of the shim without their prefix.

    `authority` is the file of a CA for the command.
    """

    url: str
    listen: str
    outpost: Outpost
    folder: Path
    settings: dict[str, str]
    authority: Path | None = None

    def check(self, **settings: str) -> tuple[int, dict[str, dict[str, str]], list[str]]:
        """Run `check --json`: its exit code, its checks, and what it did not check."""
        given = {"PUBLIC_URL": self.url, **self.settings, **settings}
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": str(ROOT),
            **{f"SHIM_{name}": value for name, value in given.items() if value},
            **({"SSL_CERT_FILE": str(self.authority)} if self.authority else {}),
        }
        done = subprocess.run(
            [sys.executable, "-m", "shim", "check", "--json"],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            timeout=60,
            check=False,
            text=True,
        )
        assert not done.stderr, done.stderr
        assert SECRET not in done.stdout
        found: dict[str, Any] = json.loads(done.stdout)
        return done.returncode, found["checks"], found["not_checked"]

    def visit(self, user: str) -> int:
        """Request a protected page as a user who is signed in: the status."""
        cookies = {COOKIE: self.outpost.sign_in(user)}
        with httpx.Client(base_url=self.url, cookies=cookies, trust_env=False) as client:
            return client.get("/app/").status_code


@contextmanager
def site_with(
    folder: Path, edge: str, *, secret: str = SECRET, sent: str | None = None, **settings: str
) -> Iterator[Site]:
    """Start the parts. `secret` is the shim's, `sent` the edge's if it differs."""
    with (
        StandInThread(StandInOptions()) as stand_in,
        Outpost(OutpostOptions(users=USERS)) as outpost,
    ):
        given = {
            "SHIM_REVERSE_PROXY_WHITELIST": "127.0.0.1",
            **({"SHIM_PROXY_SECRET": secret} if secret else {}),
            **settings,
        }
        with (
            shim(folder, stand_in.url, **given) as before,
            EDGES[edge](
                folder, Upstreams(outpost.url, before.url, secret if sent is None else sent)
            ) as url,
        ):
            control = {
                "CONTROL_LISTEN": before.control,
                "UPSTREAM": stand_in.url,
                "PROVISIONING": "false",
                "DATABASE_URL": f"sqlite:///{folder}/shim.db",
                **{name.removeprefix("SHIM_"): value for name, value in given.items()},
            }
            yield Site(url, urlsplit(before.url).netloc, outpost, folder, control)


def changed(
    monkeypatch: pytest.MonkeyPatch, folder: Path, file: str, *changes: tuple[str, str]
) -> None:
    """Use a copy of `deploy/` in which each old text of this file is replaced."""
    copy = folder / "deploy"
    for name in ("traefik/traefik.yml", "traefik/dynamic/navidrome.yml", "caddy/Caddyfile",
                 "nginx/navidrome.conf.template"):  # fmt: skip
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        text = (servers.DEPLOY / name).read_text()
        if name == file:
            for old, new in changes:
                assert old in text, old
                text = text.replace(old, new)
        (copy / name).write_text(text)
    monkeypatch.setattr(servers, "DEPLOY", copy)


FILES = {
    "traefik": "traefik/dynamic/navidrome.yml",
    "caddy": "caddy/Caddyfile",
    "nginx": "nginx/navidrome.conf.template",
}


@pytest.mark.parametrize("edge", EDGE_NAMES)
def test_an_edge_that_is_set_up_right_has_no_finding(tmp_path: Path, edge: str) -> None:
    with site_with(tmp_path, edge) as site:
        assert site.visit("alice") == httpx.codes.OK
        code, checks, not_checked = site.check()
    names = ["edge", "public_url", "public_routes", "edge_trusted", "edge_headers", "edge_aliases",
             "edge_secret", "protected_routes"]  # fmt: skip
    assert {name: checks[name]["state"] for name in names} == dict.fromkeys(names, "ok")
    assert PATHS in checks["edge_headers"]["detail"]
    assert code == 0
    assert not_checked == [SOURCES_NOT_CHECKED]


@pytest.mark.parametrize("edge", EDGE_NAMES)
def test_an_edge_that_is_not_trusted_is_named_with_its_address(tmp_path: Path, edge: str) -> None:
    with site_with(tmp_path, edge, SHIM_REVERSE_PROXY_WHITELIST="192.0.2.1") as site:
        site.visit("alice")
        code, checks, _ = site.check()
        assert code == 1
        assert checks["edge_trusted"]["state"] == "failing"
        assert "Add 127.0.0.1 to SHIM_REVERSE_PROXY_WHITELIST" in checks["edge_trusted"]["remedy"]
        # Without SHIM_PUBLIC_URL, from the visit.
        code, checks, not_checked = site.check(PUBLIC_URL="")
    assert (code, checks["edge"]["state"]) == (0, "warning")
    assert "identity from 127.0.0.1 did not count" in checks["edge"]["detail"]
    assert "SHIM_PUBLIC_URL is not set" in not_checked[1]


@pytest.mark.parametrize("edge", EDGE_NAMES)
@pytest.mark.parametrize(
    ("secret", "sent", "detail"),
    [
        (SECRET, "", "without X-Shim-Proxy-Secret"),
        (SECRET, "another-secret-of-the-edge-0123456789", "another secret in X-Shim-Proxy-Secret"),
        ("", SECRET, "SHIM_PROXY_SECRET is not set"),
    ],
    ids=["edge sends none", "they differ", "shim has none"],
)
def test_a_secret_that_one_side_lacks_is_found(
    tmp_path: Path, edge: str, secret: str, sent: str, detail: str
) -> None:
    with site_with(tmp_path, edge, secret=secret, sent=sent) as site:
        site.visit("alice")
        _, checks, _ = site.check()
    assert checks["edge"]["state"] == "warning"
    assert detail in checks["edge"]["detail"]
    assert "SHIM_PROXY_SECRET" in checks["edge"]["remedy"]
    assert checks["edge_secret"]["state"] == "ok"


@pytest.mark.parametrize("edge", EDGE_NAMES)
def test_a_public_route_that_keeps_identity_headers_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edge: str
) -> None:
    changed(monkeypatch, tmp_path, FILES[edge], _NO_IDENTITY[edge])
    with site_with(tmp_path, edge) as site:
        _, checks, _ = site.check()
    assert checks["edge_headers"]["state"] == "warning"
    assert "Remote-User" in checks["edge_headers"]["detail"]
    assert f"on {PATHS}" in checks["edge_headers"]["detail"]
    assert f"deploy/{edge}/" in checks["edge_headers"]["remedy"]


@pytest.mark.parametrize(
    ("edge", "file", "change"),
    [
        ("traefik", "traefik/traefik.yml", ("aliasHeadersStrategy: delete", "aliasHeadersStrategy: keep")),
        pytest.param(
            "nginx",
            "nginx/navidrome.conf.template",
            ("underscores_in_headers off;", "underscores_in_headers on;"),
            marks=pytest.mark.binary("nginx"),
        ),
    ],
)  # fmt: skip
def test_an_edge_that_keeps_aliases_is_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    edge: str,
    file: str,
    change: tuple[str, str],
) -> None:
    changed(monkeypatch, tmp_path, file, change)
    with site_with(tmp_path, edge) as site:
        _, checks, _ = site.check()
    assert checks["edge_aliases"]["state"] == "warning"
    assert "x_authentik_username" in checks["edge_aliases"]["detail"].lower()
    assert f"deploy/{edge}/" in checks["edge_aliases"]["remedy"]
    assert checks["edge_headers"]["state"] == "ok"


def test_aliases_that_no_program_is_known_to_accept_are_named_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Caddy deletes names with `_` and `.` by itself.
    exact = "request_header -X-Authentik-*"
    changed(monkeypatch, tmp_path, FILES["caddy"], ("request_header -*authentik*", exact))
    with site_with(tmp_path, "caddy") as site:
        _, checks, _ = site.check()
    assert checks["edge_aliases"]["state"] == "ok"
    assert "| ~ arrive, and the shim removes them" in checks["edge_aliases"]["detail"]


@pytest.mark.parametrize(
    ("edge", "change"),
    [
        ("traefik", ("PathPrefix(`/rest/`)", "PathPrefix(`/rest-is-missing/`)")),
        ("caddy", ("path /rest/* /share/*", "path /share/*")),
        pytest.param("nginx", ("^/(rest|share|", "^/(share|"), marks=pytest.mark.binary("nginx")),
    ],
)
def test_a_sign_in_on_the_subsonic_api_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edge: str, change: tuple[str, str]
) -> None:
    changed(monkeypatch, tmp_path, FILES[edge], change)
    with site_with(tmp_path, edge) as site:
        code, checks, not_checked = site.check()
    assert (code, checks["public_routes"]["state"]) == (1, "failing")
    assert "asks for a sign-in on /rest/ (redirect to" in checks["public_routes"]["detail"]
    assert "a route of their own without a sign-in" in checks["public_routes"]["remedy"]
    assert not_checked == [SOURCES_NOT_CHECKED, "what the edge lets through on /rest/"]


@pytest.mark.parametrize(
    ("edge", "change"),
    [
        (
            "traefik",
            (
                "middlewares: [navidrome-no-identity]\n      service: navidrome-shim",
                "middlewares: [navidrome-no-identity, navidrome-secret]\n      service: navidrome-shim",
            ),
        ),
        (
            "caddy",
            (
                "\t\timport no-identity\n\t\treverse_proxy {$NAVIDROME_SHIM",
                '\t\timport no-identity\n\t\trequest_header X-Shim-Proxy-Secret "{$SHIM_PROXY_SECRET}"\n'
                "\t\treverse_proxy {$NAVIDROME_SHIM",
            ),
        ),
        pytest.param(
            "nginx",
            (
                "proxy_set_header X-Shim-Proxy-Secret $navidrome_secret;",
                'proxy_set_header X-Shim-Proxy-Secret "${SHIM_PROXY_SECRET}";',
            ),
            marks=pytest.mark.binary("nginx"),
        ),
    ],
)
def test_a_secret_on_a_public_route_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edge: str, change: tuple[str, str]
) -> None:
    changed(monkeypatch, tmp_path, FILES[edge], change)
    with site_with(tmp_path, edge) as site:
        code, checks, _ = site.check()
    assert (code, checks["edge_secret"]["state"]) == (1, "failing")
    assert f"the secret on {PATHS}" in checks["edge_secret"]["detail"]
    assert "only on the edge's route with the sign-in" in checks["edge_secret"]["remedy"]


@pytest.mark.parametrize(
    ("edge", "change"),
    [
        ("traefik", ("PathPrefix(`/app/manifest.webmanifest`) || ", "")),
        ("caddy", ("path /app/manifest.webmanifest /app/browserconfig.xml", "path /app/browserconfig.xml")),
        pytest.param("nginx", ("manifest\\.webmanifest|", ""), marks=pytest.mark.binary("nginx")),
    ],
)  # fmt: skip
def test_a_sign_in_on_the_manifest_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edge: str, change: tuple[str, str]
) -> None:
    changed(monkeypatch, tmp_path, FILES[edge], change)
    with site_with(tmp_path, edge) as site:
        code, checks, _ = site.check()
    assert (code, checks["public_routes"]["state"]) == (0, "warning")
    assert "sign-in on /app/manifest.webmanifest" in checks["public_routes"]["detail"]
    assert "cannot be installed" in checks["public_routes"]["detail"]


_CADDY_SIGN_IN = "forward_auth {$AUTHENTIK:authentik-server:9000} {"
_NO_SIGN_IN = {
    "traefik": ("navidrome-no-identity, navidrome-authentik, ", "navidrome-no-identity, "),
    "caddy": (
        _CADDY_SIGN_IN,
        "@never path /nowhere\n" + _CADDY_SIGN_IN.replace("_auth ", "_auth @never "),
    ),
    "nginx": (
        "auth_request /navidrome-auth-request;",
        'set $navidrome_secret "${SHIM_PROXY_SECRET}";',
    ),
}
_KEPT = {
    "traefik": ("navidrome-no-identity, navidrome-authentik, ", ""),
    "caddy": ("route {\n\t\t\timport no-identity\n", "route {\n"),
}


@pytest.mark.parametrize("edge", EDGE_NAMES)
def test_a_catch_all_route_without_a_sign_in_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edge: str
) -> None:
    changed(monkeypatch, tmp_path, FILES[edge], _NO_SIGN_IN[edge])
    with site_with(tmp_path, edge) as site:
        code, checks, _ = site.check()
    assert (code, checks["protected_routes"]["state"]) == (0, "warning")
    assert "headers are removed there" in checks["protected_routes"]["detail"]
    assert "forward auth" in checks["protected_routes"]["remedy"]


@pytest.mark.parametrize("edge", sorted(_KEPT))
def test_an_edge_that_proves_identities_of_clients_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edge: str
) -> None:
    changes = [_KEPT[edge]] if edge == "traefik" else [_KEPT[edge], _NO_SIGN_IN[edge]]
    changed(monkeypatch, tmp_path, FILES[edge], *changes)
    with site_with(tmp_path, edge) as site:
        code, checks, _ = site.check()
    assert (code, checks["protected_routes"]["state"]) == (1, "failing")
    assert "everybody can be any user" in checks["protected_routes"]["detail"]


def test_a_url_that_leads_elsewhere_is_found(tmp_path: Path) -> None:
    with site_with(tmp_path, "caddy") as site:
        for url, state, detail in (
            (site.outpost.url, "failing", "another server responded"),
            ("http://127.0.0.1:9", "warning", "refused"),
            (site.url.replace("http:", "https:"), "warning", "SSL"),
        ):
            _, checks, not_checked = site.check(PUBLIC_URL=url)
            assert checks["public_url"]["state"] == state, checks
            assert detail in checks["public_url"]["detail"]
            assert "edge_headers" not in checks
            assert "no request reached this shim" in not_checked[1]


def test_a_certificate_that_is_not_verified_is_named_and_ssl_cert_file_has_its_ca(
    tmp_path: Path,
) -> None:
    certificates = make_certificates(tmp_path)
    listener = {
        "SHIM_TLS_CERT": str(certificates.certificate),
        "SHIM_TLS_KEY": str(certificates.key),
    }
    with site_with(tmp_path, "caddy", **listener) as site:
        shim_url = f"https://{site.listen}"  # past the edge, which has no certificate
        _, checks, _ = site.check(PUBLIC_URL=shim_url)
        assert checks["public_url"]["state"] == "warning"
        assert "SSL_CERT_FILE" in checks["public_url"]["remedy"]
        _, checks, _ = replace(site, authority=certificates.authority).check(PUBLIC_URL=shim_url)
        assert checks["public_url"]["state"] == "ok"
        # Nothing removes headers before the shim.
        assert checks["edge_headers"]["state"] == "warning"


def test_without_a_running_shim_it_says_what_it_did_not_check(tmp_path: Path) -> None:
    with site_with(tmp_path, "caddy") as site:
        code, checks, not_checked = site.check(CONTROL_LISTEN="127.0.0.1:9")
        assert code == 0
        assert "edge" not in checks and "public_url" not in checks
        [_, note] = not_checked
        assert "`navidrome-shim serve` does not run there" in note
        _, _, [_, note] = site.check(CONTROL_LISTEN=site.url.removeprefix("http://"))
        assert "another program" in note
