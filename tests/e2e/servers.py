"""Traefik, Caddy, nginx and the shim, each started as a user starts it, with the files of `deploy/`.

Only what differs from site to site is changed: addresses, ports, folders, and no certificates.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

import httpx
import yaml

from tests.e2e.compose import labels, read
from tests.e2e.docker_engine import docker_engine
from tests.e2e.kubernetes import dynamic_configuration
from tests.e2e.programs import NotStarted, beside_python, running
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
GUIDE = Path(__file__).parent / "guide"
CDN = "127.0.0.70"
SECRET = "e2e-only-secret-of-the-edge-0123456789abcdef"

_PORT_LABEL = "traefik.http.services.navidrome-shim.loadbalancer.server.port"
_ROUTED_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Upstreams:
    """The upstreams of an edge. URLs without a slash at their end.

    secret: the shared secret that the edge adds, "" for none.
    """

    authentik: str
    navidrome: str
    secret: str = ""


@dataclass(frozen=True, slots=True)
class Shim:
    """Where a shim listens: `url` for an edge, `control` as `host:port`."""

    url: str
    control: str


@contextmanager
def traefik(folder: Path, upstreams: Upstreams) -> Iterator[str]:
    """Traefik with `deploy/traefik/`; returns its URL."""
    port, redirecting = free_port(), free_port()
    static = _static(port, redirecting, folder)
    with _traefik(folder, static, port, upstreams) as url:
        yield url


@contextmanager
def traefik_behind_a_cdn(folder: Path, upstreams: Upstreams) -> Iterator[str]:
    """Traefik with `deploy/traefik/` that trusts the forwarded headers of a CDN at `CDN`; returns its
    URL.
    """
    port, redirecting = free_port(), free_port()
    static = _replaced(
        _static(port, redirecting, folder),
        {
            "    # forwardedHeaders:\n": "    forwardedHeaders:\n",
            '    #   trustedIPs: ["173.245.48.0/20"]': f'      trustedIPs: ["{CDN}/32"]',
        },
    )
    with _traefik(folder, static, port, upstreams) as url:
        yield url


@contextmanager
def traefik_of_the_full_stack(
    folder: Path, upstreams: Upstreams, authentik_host: str
) -> Iterator[str]:
    """Traefik with the files that `deploy/compose/full/` mounts; returns its URL."""
    dynamic = folder / "dynamic"
    dynamic.mkdir()
    (dynamic / "navidrome.yml").write_text((DEPLOY / "traefik/dynamic/navidrome.yml").read_text())
    (dynamic / "authentik.yml").write_text(
        (DEPLOY / "compose/full/traefik/authentik.yml").read_text()
    )
    port = free_port()
    static = _static(port, free_port(), folder)
    static = _replaced(static, {f"directory: {DEPLOY}/traefik/dynamic": f"directory: {dynamic}"})
    with _traefik(folder, static, port, upstreams, AUTHENTIK_HOST=authentik_host) as url:
        yield url


@contextmanager
def traefik_by_labels(folder: Path, upstreams: Upstreams) -> Iterator[str]:
    """Traefik with the labels of `deploy/compose/add-on.yml`; returns its URL."""
    port, redirecting = free_port(), free_port()
    compose = read(
        DEPLOY / "compose/add-on.yml",
        {
            "NAVIDROME_HOST": "127.0.0.1",
            "AUTHENTIK_URL": upstreams.authentik,
            "SHIM_PROXY_SECRET": upstreams.secret,
        },
    )
    carried = labels(compose["services"]["navidrome-shim"])
    carried[_PORT_LABEL] = str(urlsplit(upstreams.navidrome).port)
    with docker_engine(carried, compose["networks"]["edge"]["name"]) as docker:
        static = _replaced(
            _static(port, redirecting, folder),
            {
                f"  file:\n    directory: {DEPLOY}/traefik/dynamic\n    watch: true\n": (
                    f"  docker:\n    endpoint: {docker}\n    exposedByDefault: false\n"
                )
            },
        )
        with _traefik(folder, static, port, upstreams) as url:
            yield url


@contextmanager
def traefik_by_ingress_routes(folder: Path, upstreams: Upstreams) -> Iterator[str]:
    """Traefik with the IngressRoutes of `deploy/kubernetes/`; returns its URL."""
    dynamic = folder / "dynamic"
    dynamic.mkdir()
    (dynamic / "kubernetes.yml").write_text(
        yaml.safe_dump(
            dynamic_configuration(
                "127.0.0.1", upstreams.navidrome, upstreams.authentik, upstreams.secret
            )
        )
    )
    port = free_port()
    static = _static(port, free_port(), folder)
    static = _replaced(static, {f"directory: {DEPLOY}/traefik/dynamic": f"directory: {dynamic}"})
    with _traefik(folder, static, port, upstreams) as url:
        yield url


@contextmanager
def guides_traefik(folder: Path, upstreams: Upstreams) -> Iterator[str]:
    """Traefik with the guide's own routers, including their weakness; returns its URL."""
    port = free_port()
    static = _replaced(
        (GUIDE / "traefik.yml").read_text(),
        {
            'address: ":443"': f'address: "127.0.0.1:{port}"',
            "directory: /etc/traefik/dynamic": f"directory: {GUIDE}/dynamic",
        },
    )
    with _traefik(folder, static, port, upstreams) as url:
        yield url


@contextmanager
def caddy(folder: Path, upstreams: Upstreams) -> Iterator[str]:
    """Caddy with `deploy/caddy/`; returns its URL."""
    port = free_port()
    config = folder / "Caddyfile"
    # Loopback only, and no control socket.
    config.write_text(
        _replaced(
            (DEPLOY / "caddy/Caddyfile").read_text(),
            {"\n{\n\tservers {": "\n{\n\tadmin off\n\tdefault_bind 127.0.0.1\n\tservers {"},
        )
    )
    env = {
        "NAVIDROME_SITE": f"http://127.0.0.1:{port}",
        "NAVIDROME_SHIM": upstreams.navidrome.removeprefix("http://"),
        "AUTHENTIK": upstreams.authentik.removeprefix("http://"),
        "SHIM_PROXY_SECRET": upstreams.secret,
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
    }
    command = [beside_python("caddy"), "run", "--config", str(config), "--adapter", "caddyfile"]
    with running(command, port, folder, env):
        yield _wait_until_routed(f"http://127.0.0.1:{port}")


@contextmanager
def nginx(folder: Path, upstreams: Upstreams) -> Iterator[str]:
    """nginx with `deploy/nginx/`; returns its URL."""
    template = (DEPLOY / "nginx/navidrome.conf.template").read_text()
    with nginx_with(template, folder, upstreams) as url:
        yield _wait_until_routed(url)


@contextmanager
def nginx_with(template: str, folder: Path, upstreams: Upstreams) -> Iterator[str]:
    """nginx with `deploy/nginx/` as this template changes it; returns its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    text = _replaced(
        template,
        {
            "    listen 80;\n": f"    listen 127.0.0.1:{free_port()};\n",
            "    listen 443 ssl;\n": f"    listen 127.0.0.1:{port};\n",
            "    ssl_certificate /etc/nginx/certs/navidrome.pem;\n": "",
            "    ssl_certificate_key /etc/nginx/certs/navidrome.key;\n": "",
            "set $navidrome_url https://${NAVIDROME_HOST};": f"set $navidrome_url {url};",
        },
    )
    # Like envsubst in nginx's image.
    filled_in = Template(text).safe_substitute(
        NAVIDROME_HOST="127.0.0.1",
        NAVIDROME_SHIM=upstreams.navidrome.removeprefix("http://"),
        AUTHENTIK=upstreams.authentik.removeprefix("http://"),
        SHIM_PROXY_SECRET=upstreams.secret,
    )
    (folder / "navidrome.conf").write_text(filled_in)
    folders = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    own = "".join(f"{name}_temp_path {folder}/{name};\n" for name in folders)
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off;\npid {folder}/nginx.pid;\nerror_log stderr warn;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{own}include {folder}/navidrome.conf;\n}}\n"
    )
    command = [beside_python("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(config)]
    with running(command, port, folder, {}):
        yield url


@contextmanager
def shim(folder: Path, navidrome: str, **settings: str) -> Iterator[Shim]:
    """`navidrome-shim serve` with a Navidrome, trusting 127.0.0.1.

    settings: additional or different ones, by their names in the environment.
    """
    port, control = free_port(), f"127.0.0.1:{free_port()}"
    env = {
        "PYTHONPATH": str(ROOT),
        "SHIM_LISTEN": f"127.0.0.1:{port}",
        "SHIM_CONTROL_LISTEN": control,
        "SHIM_UPSTREAM": navidrome,
        "SHIM_REVERSE_PROXY_WHITELIST": "127.0.0.1",
        "SHIM_PROVISIONING": "false",
        "SHIM_DATABASE_URL": f"sqlite:///{folder}/shim.db",
        **settings,
    }
    with running([sys.executable, "-m", "shim", "serve"], port, folder, env):
        yield Shim(f"http://127.0.0.1:{port}", control)


@contextmanager
def _traefik(
    folder: Path, static: str, port: int, upstreams: Upstreams, **env: str
) -> Iterator[str]:
    config = folder / "traefik.yml"
    config.write_text(static)
    env = {
        "NAVIDROME_HOST": "127.0.0.1",
        "NAVIDROME_SHIM_URL": upstreams.navidrome,
        "AUTHENTIK_URL": upstreams.authentik,
        "SHIM_PROXY_SECRET": upstreams.secret,
        **env,
    }
    command = [beside_python("traefik"), f"--configfile={config}"]
    with running(command, port, folder, env):
        yield _wait_until_routed(f"http://127.0.0.1:{port}")


def _static(port: int, redirecting: int, folder: Path) -> str:
    return _replaced(
        (DEPLOY / "traefik/traefik.yml").read_text(),
        {
            'address: ":80"': f'address: "127.0.0.1:{redirecting}"',
            'address: ":443"': f'address: "127.0.0.1:{port}"',
            "      tls:\n        certResolver: letsencrypt\n": "",
            "storage: /data/acme.json": f"storage: {folder}/acme.json",
            "directory: /etc/traefik/dynamic": f"directory: {DEPLOY}/traefik/dynamic",
        },
    )


def _wait_until_routed(url: str) -> str:
    """Wait until the outpost responds through an edge: Traefik listens before it has read its routers."""
    deadline = time.monotonic() + _ROUTED_SECONDS
    while time.monotonic() < deadline:
        response = httpx.get(f"{url}/outpost.goauthentik.io/start", trust_env=False, verify=False)
        if response.status_code == httpx.codes.OK:
            return url
        time.sleep(0.05)
    raise NotStarted(f"{url} does not lead to the outpost after {_ROUTED_SECONDS:g} s")


def _replaced(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        if text.count(old) != 1:
            raise NotStarted(f"{old!r} occurs {text.count(old)} times in the file, not once")
        text = text.replace(old, new)
    return text
