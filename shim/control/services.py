"""What the control plane's routes need from the other parts of the process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shim.audit.events import Operator
from shim.audit.performing import Performed
from shim.control.explain import ExplainedRequest
from shim.health import HealthSource
from shim.settings import Settings
from shim.settings.reload import ReloadResult

if TYPE_CHECKING:  # importing them loads the database code
    from prometheus_client import CollectorRegistry

    from shim.audit.store.reader import TrailReader
    from shim.control.live import LiveTrail
    from shim.devices.administration import DeviceAdministration
    from shim.devices.people import People
    from shim.provisioning.administration import AccountAdministration


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlServices:
    """The parts that the API and the pages show and use.

    `settings` returns the settings in force, `pending_restart` the names of those whose new value waits for a
    restart. `reload` reads the settings again. `explain` raises `InvalidRequest`. `start_edge_probe` returns
    a one-time path below a public prefix, and raises ValueError for another one; None without a data plane.
    `sign_out_url` returns where a person signs out, empty if that is unknown. `accounts`, `devices` and
    `people` are None without provisioning, `trail` and `live` if the events are only in the log.
    """

    health: HealthSource
    metrics: CollectorRegistry
    settings: Callable[[], Settings]
    pending_restart: Callable[[], tuple[str, ...]]
    reload: Callable[[Operator], Awaitable[Performed[ReloadResult]]]
    explain: Callable[[ExplainedRequest], Awaitable[dict[str, object]]]
    start_edge_probe: Callable[[str], str] | None = None
    sign_out_url: Callable[[], str] = str
    accounts: AccountAdministration | None = None
    devices: DeviceAdministration | None = None
    people: People | None = None
    trail: TrailReader | None = None
    live: LiveTrail | None = None
