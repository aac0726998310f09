"""The environments: an edge, an outpost, the shim or no shim, and a stand-in Navidrome with accounts.

Each is started once, at its first use; a test sees only the requests since its start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from demo.navidrome import StandIn, StandInOptions, StandInThread
from demo.navidrome.accounts import AccountFields
from demo.navidrome.request import SeenRequest
from demo.outpost import COOKIE, Outpost, OutpostOptions, OutpostUser
from tests.e2e.servers import (
    CDN,
    SECRET,
    Upstreams,
    caddy,
    guides_traefik,
    nginx,
    shim,
    traefik,
    traefik_behind_a_cdn,
    traefik_by_ingress_routes,
    traefik_by_labels,
)

PASSWORD = "correct horse battery staple"
ADMIN_GROUP = "music admins"
USERS = (
    OutpostUser("alice", "Alice Ämmer", "alice@example.org", ("family", "listeners")),
    OutpostUser("boss", "The Boss", "boss@example.org", ("family", ADMIN_GROUP)),
    OutpostUser("jörg", "Jörg", "joerg@example.org", ("family",)),
    OutpostUser("solo"),
)
OPEN_PATH = "/ping"
LOOPBACK = "127.0.0.1"

# The others come as Python packages.
NGINX = pytest.param("nginx", marks=pytest.mark.binary("nginx"))
Edge = Callable[[Path, Upstreams], AbstractContextManager[str]]


@dataclass(frozen=True, slots=True)
class Deployment:
    """The running parts.

    url: the edge's. shim_url, control: the shim's, its control plane as `host:port`; "" without
    one.
    """

    edge: str
    url: str
    shim_url: str
    control: str
    outpost: Outpost
    stand_in: StandIn

    def client(
        self, user: str | None = None, *, source: str = LOOPBACK, to: str = ""
    ) -> httpx.Client:
        """A browser: signed in as a user or not, at a loopback address, with the edge as its server.

        to: another base URL, which bypasses the edge.
        """
        return httpx.Client(
            base_url=to or self.url,
            transport=httpx.HTTPTransport(local_address=source, verify=False),
            cookies={COOKIE: self.outpost.sign_in(user)} if user else {},
            trust_env=False,
            timeout=20,
        )

    @property
    def received(self) -> list[SeenRequest]:
        """The requests that Navidrome received through the edge, without the shim's own probes."""
        return [seen for seen in self.stand_in.seen if seen.values("X-Forwarded-For")]

    def last_seen(self, target: str) -> SeenRequest:
        """The last request for a target that reached Navidrome."""
        return next(seen for seen in reversed(self.stand_in.seen) if seen.target == target)


@contextmanager
def start_deployment(
    folder: Path, edge: str, *, with_shim: bool, secret: str = "", user_header: str = "Remote-User"
) -> Iterator[Deployment]:
    """Start the parts of an environment and end them. `edge` is a name in `EDGES`."""
    options = StandInOptions(user_header=user_header, login_window=3600)
    provider = OutpostOptions(users=USERS, open_paths=(rf"^{OPEN_PATH}$",))
    with StandInThread(options) as stand_in, Outpost(provider) as outpost:
        for user in ("admin", *(known.username for known in USERS)):
            stand_in.accounts.put(
                AccountFields(
                    user_name=user, name=user, password=PASSWORD, is_admin=user == "admin"
                )
            )
        if not with_shim:
            with EDGES[edge](folder, Upstreams(outpost.url, stand_in.url, secret)) as url:
                yield Deployment(edge, url, "", "", outpost, stand_in)
            return
        settings = {"SHIM_ADMIN_GROUPS": ADMIN_GROUP}
        if edge == "cdn":
            settings["SHIM_REAL_IP_TRUSTED_PROXIES"] = CDN
        if secret:
            settings["SHIM_PROXY_SECRET"] = f"{secret},another-secret-of-this-edge-0123456789"
        with (
            shim(folder, stand_in.url, **settings) as before,
            EDGES[edge](folder, Upstreams(outpost.url, before.url, secret)) as url,
        ):
            yield Deployment(edge, url, before.url, before.control, outpost, stand_in)


EDGES: dict[str, Edge] = {
    "traefik": traefik,
    "cdn": traefik_behind_a_cdn,
    "labels": traefik_by_labels,
    "kubernetes": traefik_by_ingress_routes,
    "caddy": caddy,
    "nginx": nginx,
    "guide": guides_traefik,
}


@pytest.fixture(scope="session", params=["traefik", "caddy", NGINX, "guide"])
def shared_deployment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """The shim behind each edge.

    The edges of `deploy/` send the shared secret, the guide's sends none.
    """
    edge: str = request.param
    secret = "" if edge == "guide" else SECRET
    with start_deployment(
        tmp_path_factory.mktemp(edge), edge, with_shim=True, secret=secret
    ) as deployment:
        yield deployment


@pytest.fixture(scope="session")
def shared_guide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The guide's setup: its Traefik, and directly behind it a Navidrome that trusts it."""
    with start_deployment(
        tmp_path_factory.mktemp("bare"),
        "guide",
        with_shim=False,
        user_header="X-authentik-username",
    ) as deployment:
        yield deployment


@pytest.fixture(scope="session", params=["traefik", "labels", "kubernetes", "caddy", NGINX])
def shared_edge(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """An edge of `deploy/` directly in front of Navidrome, which shows what the edge forwards."""
    edge: str = request.param
    with start_deployment(
        tmp_path_factory.mktemp("edge"), edge, with_shim=False, secret=SECRET
    ) as deployment:
        yield deployment


@pytest.fixture
def deployment(shared_deployment: Deployment) -> Deployment:
    shared_deployment.stand_in.seen.clear()
    return shared_deployment


@pytest.fixture
def guide_without_shim(shared_guide: Deployment) -> Deployment:
    shared_guide.stand_in.seen.clear()
    return shared_guide


@pytest.fixture
def edge_without_shim(shared_edge: Deployment) -> Deployment:
    shared_edge.stand_in.seen.clear()
    return shared_edge
