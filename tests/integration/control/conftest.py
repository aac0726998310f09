"""A shim with accounts, a stored trail and a stand-in upstream, its control plane and its edge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from demo.navidrome import StandInOptions, StandInThread
from tests.support.shim_process import EDGE, Shim, run_shim

TOKEN = "the-control-token-of-these-tests"
SECRET = "swordfish-swordfish"
SETTINGS = {
    "PROVISIONING": "true",
    "ADMIN_GROUPS": "admins",
    "PROXY_SECRET": SECRET,
    "CONTROL_TOKEN": TOKEN,
}


@dataclass(frozen=True, slots=True)
class Deployment:
    """A running shim, and the folder with its databases."""

    shim: Shim
    folder: Path
    settings: dict[str, str]

    @property
    def control(self) -> str:
        return f"http://{self.shim.wait_for_line(kind='started')['control_listen']}"

    def client(self, **headers: str) -> httpx.Client:
        """A client of the control plane's listener without credentials."""
        return httpx.Client(base_url=self.control, headers=headers, trust_env=False, timeout=15)

    def operator(self) -> httpx.Client:
        """A client with the control token."""
        return self.client(Authorization=f"Bearer {TOKEN}")

    def edge(self, user: str, *groups: str, uid: str = "") -> httpx.Client:
        """A client whose requests the edge authenticated."""
        headers = {
            "Host": "music.example.com",
            "X-authentik-username": user,
            "X-authentik-uid": uid or f"uid-of-{user}",
            "X-authentik-groups": "|".join(groups or ("users",)),
            "X-authentik-name": user,
            "X-authentik-email": f"{user}@example.com",
            "X-Shim-Proxy-Secret": SECRET,
        }
        transport = httpx.HTTPTransport(local_address=EDGE)
        url = f"http://{self.shim.host}:{self.shim.port}"
        return httpx.Client(base_url=url, headers=headers, transport=transport, timeout=15)

    def visit(self, user: str, *groups: str) -> None:
        """Send a user's request to the web app, which provisions the account."""
        with self.edge(user, *groups) as client:
            assert client.get("/app/").status_code == 200


@contextmanager
def start_deployment(
    folder: Path, *, before: Sequence[str] = (), **settings: str
) -> Iterator[Deployment]:
    """Start a shim; an empty value removes a setting. `before` precedes its command line."""
    environment = {name: value for name, value in {**SETTINGS, **settings}.items() if value}
    environment["DATABASE_URL"] = f"sqlite:///{folder}/shim.db"
    with StandInThread(StandInOptions(login_window=3600)) as stand_in:
        port = int(stand_in.url.rsplit(":", 1)[1])
        with run_shim(port, folder, before=before, **environment) as shim:
            yield Deployment(shim, folder, {**environment, "UPSTREAM": stand_in.url})


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A shim with a control token."""
    with start_deployment(tmp_path_factory.mktemp("shim")) as running:
        running.visit("ada", "users")
        yield running


@pytest.fixture(scope="module")
def deployment_without_token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A shim without a control token: this machine can read and reload."""
    with start_deployment(tmp_path_factory.mktemp("open"), CONTROL_TOKEN="") as running:
        yield running
