"""Everything that the demo runs, on loopback only, and the folder of its data.

Two edges: one in front of the shim, and one as in the usual guide, directly in front of a Navidrome
that trusts it. Everything that is started here is stopped here.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from demo.edge import Edge
from demo.navidrome import StandIn, StandInOptions
from demo.navidrome.accounts import AccountFields
from demo.navidrome.state import Share
from demo.outpost import Outpost, OutpostOptions, OutpostUser
from demo.sidecar import Sidecar, sidecar

EDGE_ADDRESS: Final = "127.0.0.2"
LOCAL_CLIENT: Final = "127.0.0.3"
HOME: Final = "127.0.0.10"
PHONE: Final = "127.0.0.20"
OUTSIDER: Final = "127.0.0.66"
ADDRESSES: Final = (EDGE_ADDRESS, LOCAL_CLIENT, HOME, PHONE, OUTSIDER)

USER_HEADER: Final = "Remote-User"
CLAIM: Final = "X-authentik-username"
PASSWORD: Final = "correct horse battery staple"
SHARE_ID: Final = "demoShare1"

ALICE: Final = OutpostUser("alice", "Alice Ämmer", "alice@example.org", ("family",))
BERT: Final = OutpostUser("bert", "Bert", "bert@example.org", ("family",))
ADMIN: Final = OutpostUser("admin", "The Admin", "admin@example.org", ("family", "admins"))
USERS: Final = (ALICE, BERT, ADMIN)
"""Users who have an account in Navidrome at the start of the scenario."""
CARLA: Final = OutpostUser("carla.berg", "Carla Berg", "carla.berg@example.org", ("family",))
DIRK: Final = OutpostUser("dirk", "Dirk", "dirk@example.org", ("colleagues",))
SUPPORT_CONTACT: Final = ALICE.email


class EnvironmentFailed(Exception):
    """The demo cannot run on this machine; the message has the reason."""


class EntryPoint(Enum):
    """The destination of a request. The value is its name in the scenario."""

    EDGE = "the edge"
    EDGE_WITHOUT_SHIM = "the edge, with no shim behind it"
    SHIM = "the shim directly, without the edge"


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of the parts on 127.0.0.1; 0 is any free port."""

    edge: int = 0
    edge_without_shim: int = 0
    navidrome: int = 0
    shim: int = 0
    control: int = 0


WELL_KNOWN: Final = Ports(
    edge=4580, edge_without_shim=4581, navidrome=4583, shim=4584, control=4585
)


@dataclass(frozen=True, slots=True)
class Environment:
    """The running parts. `navidrome_without_shim` is the one without a shim."""

    outpost: Outpost
    navidrome: StandIn
    navidrome_without_shim: StandIn
    shim: Sidecar
    edge: Edge
    edge_without_shim: Edge

    def url(self, entry_point: EntryPoint) -> str:
        """The URL of this entry point; no slash at its end."""
        match entry_point:
            case EntryPoint.EDGE:
                return self.edge.url
            case EntryPoint.EDGE_WITHOUT_SHIM:
                return self.edge_without_shim.url
            case EntryPoint.SHIM:
                return self.shim.url

    def navidrome_behind(self, entry_point: EntryPoint) -> StandIn:
        """The Navidrome behind this entry point."""
        return (
            self.navidrome_without_shim
            if entry_point is EntryPoint.EDGE_WITHOUT_SHIM
            else self.navidrome
        )


@asynccontextmanager
async def start_environment(ports: Ports | None = None) -> AsyncIterator[Environment]:
    """Run everything until the block ends. Raises `EnvironmentFailed`, `NotStarted` or `OSError`."""
    ports = ports or Ports()
    for address in ADDRESSES:
        _require_address(address)
    async with AsyncExitStack() as parts:
        folder = Path(parts.enter_context(TemporaryDirectory(prefix="navidrome-shim-demo-")))
        outpost = parts.enter_context(Outpost(OutpostOptions(users=(*USERS, DIRK))))
        options = StandInOptions(trusted_sources="127.0.0.1/32")
        navidrome = _with_content(options)
        without_shim = _with_content(
            StandInOptions(trusted_sources=f"{EDGE_ADDRESS}/32", user_header=CLAIM)
        )
        for server, port in ((navidrome, ports.navidrome), (without_shim, 0)):
            await server.start(f"127.0.0.1:{port}")
            parts.push_async_callback(server.stop)
        running = await parts.enter_async_context(
            sidecar(folder, settings(folder, navidrome.url, outpost, ports))
        )
        edge = Edge(running.url, outpost.url, address=EDGE_ADDRESS, port=ports.edge)
        edge_without_shim = Edge(
            without_shim.url, outpost.url, address=EDGE_ADDRESS, port=ports.edge_without_shim
        )
        for each in (edge, edge_without_shim):
            await parts.enter_async_context(each)
        yield Environment(outpost, navidrome, without_shim, running, edge, edge_without_shim)


def settings(folder: Path, navidrome: str, outpost: Outpost, ports: Ports) -> dict[str, str]:
    """The settings of the demo's shim, by their names in the environment.

    The provider's token is required, so it is sufficient for a new name (`SHIM_FOLLOW_RENAMES` is
    `jwt` by default), and accounts are provisioned, as by default.
    """
    return {
        "SHIM_LISTEN": f"127.0.0.1:{ports.shim}",
        "SHIM_CONTROL_LISTEN": f"127.0.0.1:{ports.control}",
        "SHIM_UPSTREAM": navidrome,
        "SHIM_REVERSE_PROXY_WHITELIST": EDGE_ADDRESS,
        "SHIM_REVERSE_PROXY_USER_HEADER": USER_HEADER,
        "SHIM_JWT_VERIFY": "required",
        "SHIM_JWKS_URL": f"{outpost.issuer}jwks/",
        "SHIM_JWT_ISSUER": outpost.issuer,
        "SHIM_JWT_AUDIENCE": outpost.options.client_id,
        "SHIM_ALLOWED_GROUPS": "family,admins",
        "SHIM_ADMIN_GROUPS": "admins",
        "SHIM_LINK_EXISTING": "all",  # the admin's own account exists already
        "SHIM_BOOTSTRAP_ADMIN": ADMIN.username,  # the account that the shim uses to create its own
        "SHIM_SUPPORT_CONTACT": SUPPORT_CONTACT,
        "SHIM_DATABASE_URL": f"sqlite:///{folder}/shim.db",
        "SHIM_LOG_FORMAT": "json",
        "SHIM_ACCESS_LOG": "true",
        "SHIM_SHUTDOWN_TIMEOUT": "2",
    }


def free_ports(ports: Ports) -> Ports:
    """These ports, with 0 in place of each that is in use."""
    return Ports(
        edge=_free(ports.edge),
        edge_without_shim=_free(ports.edge_without_shim),
        navidrome=_free(ports.navidrome),
        shim=_free(ports.shim),
        control=_free(ports.control),
    )


def _free(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
    return port


def _require_address(address: str) -> None:
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise EnvironmentFailed(
                f"the demo needs the loopback address {address}: {error.strerror} "
                f"(on macOS: sudo ifconfig lo0 alias {address})"
            ) from error


def _with_content(options: StandInOptions) -> StandIn:
    """A Navidrome with its accounts, its music and one share link."""
    server = StandIn(options)
    for user in USERS:
        server.accounts.put(
            AccountFields(
                user_name=user.username,
                name=user.name,
                email=user.email,
                password=PASSWORD,
                is_admin=user is ADMIN,
            )
        )
    alice = server.accounts.find(ALICE.username)
    assert alice is not None
    song = server.state.catalogue.songs[1]
    server.state.shares[SHARE_ID] = Share(SHARE_ID, song.id, "From Alice", False, alice.id)
    return server
