"""Assemble the components of the process and define the order in which they start and stop.

The ASGI application of the data plane is only a lifespan: it starts the components, gives the data plane
to every connection, and stops the components. The server of the control plane runs inside it and stops
last, so that health and metrics stay readable until the last response is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

import shim
from shim.app.factories import (
    build_limits,
    build_policy,
    build_upstream_address,
    sign_out_url,
)
from shim.app.out_of_memory import end_process_on_memory_error
from shim.app.policy_updater import PolicyUpdater
from shim.app.reloader import ConfigReloader
from shim.app.sockets import bind, raise_descriptor_limit
from shim.app.tls import build_listener_tls
from shim.audit.admin_actions import AdminActions
from shim.audit.events import Operator, Started, Stopped
from shim.audit.line_writer import LineWriter
from shim.audit.observer import TrailObserver
from shim.audit.performing import Performed, perform
from shim.audit.sinks.log import LogSink, configure_log, log_event
from shim.audit.sinks.table import build_sinks
from shim.audit.trail import Trail
from shim.control.access import Access, channel_lines
from shim.control.keys import ControlKey
from shim.control.on_demand import OnDemandApp
from shim.control.probes import Probes
from shim.control.protocol import MAX_CONNECTIONS, ControlProtocol
from shim.health import Check
from shim.monitors.edge import EdgeMonitor
from shim.monitors.empty_server import EmptyServerMonitor
from shim.navidrome.transport import upstream_tls
from shim.proxy.client_connection import ClientConnection
from shim.proxy.counters import Counters
from shim.proxy.edge_probe import MANIFEST, PROTECTED
from shim.proxy.limits import Limits
from shim.proxy.pool import UpstreamAddress
from shim.proxy.server import DataPlane, Options
from shim.proxy.tls_handshake import TlsHandshake
from shim.settings import Endpoint, Settings
from shim.settings.reload import ReloadResult

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from shim.app.audit_keeper import AuditKeeper
    from shim.audit.store.reader import TrailReader
    from shim.audit.store.writer import TrailStore
    from shim.control.explain import ExplainedRequest
    from shim.control.live import LiveTrail
    from shim.devices.administration import DeviceAdministration
    from shim.devices.gate import SubsonicDevices
    from shim.devices.people import People
    from shim.provisioning.administration import AccountAdministration
    from shim.provisioning.factory import AccountParts
    from shim.store.database import Database

_SIGNAL = Operator("signal", "signal")
EMPTY_WATCH_SECONDS = 60.0
KEY_RETRY_SECONDS = 1.0
OWN_DESCRIPTORS = 64  # files for listeners, the control plane, the store and the JWKS client


class _Server(uvicorn.Server):
    """A server without its own signal handlers: two servers run in one loop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _DataServer(_Server):
    """The server of the data plane."""

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        # From now on a reload is possible, including one that was requested before.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        # A reload during the shutdown would be interrupted by the end of the process.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        await super().shutdown(sockets)


class Runtime:
    """All components of one process. `serve` runs them."""

    def __init__(
        self, settings: Settings, load_settings: Callable[[], Settings] | None = None
    ) -> None:
        """Create the components. `load_settings` reads the settings again for a reload; it raises
        `SettingsError`.
        """
        self.settings = settings
        self.counters = Counters()
        self._log_writer = LineWriter(sys.stdout.fileno())
        configure_log(self._log_writer, log_format=settings.log_format, level=settings.log_level)
        store = _build_trail_store(settings)
        self._optional_sinks = build_sinks(settings)
        sinks = (LogSink(self._log_writer), store, *self._optional_sinks)
        self.trail = Trail(sink for sink in sinks if sink is not None)
        self.admin_actions = AdminActions(store, self.trail.record)
        self._trail_reader = _build_trail_reader(settings)
        self.edge = EdgeMonitor()
        observer = TrailObserver(
            self.trail,
            str(settings.upstream),
            logs_access=settings.access_log,
            watch=self.edge,
        )
        limits, self._limit_note = _within_descriptors(build_limits(settings))
        tls = upstream_tls(settings)
        self._database = _build_database(settings)
        self.accounts = _accounts(settings, self.trail, self._database, tls)
        self.devices = _devices(settings, self.trail, self._database, self.accounts)
        self.plane = DataPlane(
            build_policy(settings),
            limits,
            self.counters,
            observer,
            build_upstream_address(settings, tls),
            gate=None if self.accounts is None else self.accounts.gate,
            devices=self.devices,
            options=Options(
                support_contact=settings.support_contact or "", tls=build_listener_tls(settings)
            ),
        )
        self.policy_updater = PolicyUpdater(
            settings,
            self.plane,
            self.trail.record,
            None if self.accounts is None else self.accounts.service.api.external_authentication,
            tls,
        )
        self.empty_server = EmptyServerMonitor(settings, tls)
        self._audit = self._build_audit_keeper(store)
        self._reloader = ConfigReloader(
            settings,
            load_settings,
            self.plane,
            self.policy_updater,
            self.accounts,
            self.trail.record,
        )
        self._channel_secret = secrets.token_urlsafe(32)
        self._control_key = ControlKey()
        self._live: LiveTrail | None = None
        self._registry: CollectorRegistry | None = None
        self._started_at = time.monotonic()
        self._stop_trigger = "stopped"
        self._reloads: set[asyncio.Task[Performed[ReloadResult]]] = set()
        self._data: _DataServer
        self._control: _Server

    @property
    def _store_seconds(self) -> float:
        """Return the part of the grace time in seconds that is reserved for the store."""
        if self.accounts is None:
            return 0.0
        from shim.provisioning.service import STORE_STOP_SECONDS  # noqa: PLC0415

        return STORE_STOP_SECONDS

    def checks(self) -> tuple[Check, ...]:
        """Return the state of all components for `/readyz`."""
        edge = self.edge.check(self.plane.policy)
        sinks = (sink.check() for sink in self._optional_sinks)
        checks = (*self.policy_updater.checks(), edge, *sinks)
        if self._audit is not None:
            checks = (*checks, self._audit.check())
        if self.accounts is None:
            return (*checks, self.empty_server.check())
        devices = () if self.devices is None else (self.devices.check(),)
        return (*checks, *self.accounts.checks(), *devices)

    def _build_audit_keeper(self, store: TrailStore | None) -> AuditKeeper | None:
        if store is None:
            return None
        from shim.app.audit_keeper import AuditKeeper  # noqa: PLC0415

        return AuditKeeper(self.settings, store, self.trail.record, self._set_audit_available)

    def _set_audit_available(self, available: bool) -> None:
        self.policy_updater.set_audit_available(available)
        if self.accounts is not None:
            self.accounts.service.suspend(not available)

    async def reload(self, operator: Operator) -> Performed[ReloadResult]:
        """Reload the settings for this person, as `ConfigReloader.reload` does, and record it."""

        async def work() -> ReloadResult:
            if not self._data.started:
                return ReloadResult(faults=("the shim is still starting, or stopping",))
            return await self._reloader.reload(operator)

        return await perform(
            self.admin_actions,
            operator,
            "reload",
            work,
            changes=lambda outcome: outcome.changes,
            failure=lambda outcome: "; ".join(outcome.faults) or None,
        )

    def _start_reload(self) -> None:
        task = asyncio.get_running_loop().create_task(self.reload(_SIGNAL))
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def explain(self, request: ExplainedRequest) -> dict[str, object]:
        """Explain the decision on this request by the policy in force. Raises `InvalidRequest`."""
        from shim.control.explain import explain  # noqa: PLC0415 - loaded with the API

        return await explain(request, self._reloader.settings, self.plane.policy)

    def start_edge_probe(self, prefix: str) -> str:
        """Return the target of a new edge probe. Raises ValueError if `check` has no use for the prefix."""
        if prefix not in (*self._reloader.settings.public_paths, MANIFEST, PROTECTED):
            raise ValueError(f"expected a prefix of SHIM_PUBLIC_PATHS, {MANIFEST} or {PROTECTED}")
        return self.plane.start_edge_probe(prefix).target.decode()

    def serve(self) -> None:
        """Listen, and serve until a stop signal. Raises OSError if it cannot listen."""
        settings = self.settings
        data = bind(settings.listen, settings.listen_socket_mode)
        control = bind(settings.control_listen, settings.listen_socket_mode)
        channel = bind(Endpoint("127.0.0.1", 0))
        try:
            uvicorn_loop = uvicorn.Config(
                _unused_app, loop="uvloop", ws="none", log_config=None
            ).get_loop_factory()
            with asyncio.Runner(loop_factory=uvicorn_loop) as runner:
                runner.run(self._serve(data, control, channel))
        finally:
            for listener, endpoint in ((data, settings.listen), (control, settings.control_listen)):
                listener.close()
                if endpoint.path is not None:
                    with contextlib.suppress(FileNotFoundError):
                        Path(endpoint.path).unlink()
            channel.close()
            self._log_writer.close(2.0)

    async def _serve(self, data: socket, control: socket, channel: socket) -> None:
        settings = self.settings
        self._control_sockets = [control, channel]
        host, port = channel.getsockname()
        self.plane.connect_control(
            UpstreamAddress(host, port),
            channel_lines(self._channel_secret),
            MAX_CONNECTIONS,
        )
        self._bound_addresses = (
            _bound_address(settings.listen, data),
            _bound_address(settings.control_listen, control),
        )
        config = uvicorn.Config(
            self._application,
            http=cast("Any", ClientConnection if self.plane.options.tls is None else TlsHandshake),
            interface="asgi3",
            ws="none",
            lifespan="on",
            server_header=False,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=max(
                1, round(settings.shutdown_timeout - self._store_seconds)
            ),
        )
        self._data = _DataServer(config)
        loop = asyncio.get_running_loop()
        end_process_on_memory_error(loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, signal.Signals(number).name)
        loop.add_signal_handler(signal.SIGHUP, self._start_reload)
        await self._data.serve(sockets=[data])
        if not self._data.started:
            raise RuntimeError("the shim did not start; the log says why")

    def _stop(self, trigger: str) -> None:
        if self._data.should_exit:
            self._abort_clients()
        if self._live is not None:
            # Its responses never end by themselves.
            self._live.close()
        self._stop_trigger = trigger
        self._data.should_exit = True

    def _abort_clients(self) -> int:
        open_clients = [c for c in self.plane.connections if isinstance(c, ClientConnection)]
        for client in open_clients:
            client.abort_at_shutdown()
        return len(open_clients)

    async def _application(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the lifespan of the data plane's ASGI application. HTTP requests never reach it."""
        assert scope["type"] == "lifespan"
        await receive()
        async with self._running():
            scope["state"]["plane"] = self.plane
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start_components(self) -> None:
        if self._audit is not None:
            await self._audit.start()
        self.trail.start()
        if self._trail_reader is not None:
            from shim.control.live import LiveTrail  # noqa: PLC0415

            self._live = LiveTrail(self._trail_reader)
        await self.policy_updater.start()
        self.plane.start(asyncio.get_running_loop())
        if self.accounts is None:
            await self.empty_server.probe()
            return
        await self.accounts.gate.start()
        if self.devices is not None:
            await self.devices.start()

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        await self._start_components()
        tasks = [asyncio.create_task(self._serve_control())]
        if self.accounts is None:
            tasks.append(asyncio.create_task(self.empty_server.run(EMPTY_WATCH_SECONDS)))
        else:
            tasks.append(asyncio.create_task(self._read_control_key(self.accounts)))
        self._log_started()
        # All current objects live as long as the process: the garbage collector need not scan them again.
        gc.collect()
        gc.freeze()
        try:
            yield
        finally:
            aborted = self._abort_clients()
            for task in tasks[1:]:
                task.cancel()
            self.plane.stop()
            await self.policy_updater.stop()
            store_deadline = time.monotonic() + self._store_seconds
            if self.devices is not None:
                await self.devices.stop()
            if self.accounts is not None:
                await self.accounts.gate.stop()
            if self._database is not None:
                # Close the database after all components that use it.
                remaining = max(0.0, store_deadline - time.monotonic())
                await asyncio.to_thread(self._database.close, remaining)
            if self._audit is not None:
                await self._audit.stop()
            if self._live is not None:
                self._live.close()
            self._control.should_exit = True
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.empty_server.close()
            uptime = time.monotonic() - self._started_at
            self.trail.record(
                Stopped(
                    time=time.time(),
                    trigger=self._stop_trigger,
                    uptime_seconds=round(uptime, 3),
                    aborted_connections=aborted,
                )
            )
            await self.trail.close()
            if self._trail_reader is not None:
                await asyncio.to_thread(self._trail_reader.close)
            if self._audit is not None:
                await self._audit.store.close()

    async def _serve_control(self) -> None:
        settings = self.settings
        token = settings.control_token
        access = Access(
            channel_secret=self._channel_secret,
            token=None if token is None else token.get_secret_value(),
            hosts=(settings.control_listen.host,) if settings.control_listen.host else (),
            key=self._control_key,
            record=self.trail.record,
        )
        rest = OnDemandApp(lambda: self._build_control_app(access))
        app = Probes(access, health=self, metrics=self._metrics, rest=rest)
        config = uvicorn.Config(
            app,
            http=ControlProtocol,
            ws="none",
            lifespan="off",
            server_header=False,
            log_config=None,
            access_log=False,
            proxy_headers=False,
        )
        self._control = _Server(config)
        await self._control.serve(sockets=self._control_sockets)

    def _build_control_app(self, access: Access) -> ASGIApp:
        """Return the API and the pages, with the code that only they need. Runs in a thread."""
        from shim.control.app import create_app  # noqa: PLC0415
        from shim.control.services import ControlServices  # noqa: PLC0415

        services = ControlServices(
            health=self,
            metrics=self._metrics(),
            settings=lambda: self._reloader.settings,
            pending_restart=lambda: self._reloader.pending_restart,
            reload=self.reload,
            explain=self.explain,
            sign_out_url=lambda: sign_out_url(self._reloader.settings),
            start_edge_probe=self.start_edge_probe,
            accounts=self._administration(),
            devices=self._device_administration(),
            people=self._people(),
            trail=self._trail_reader,
            live=self._live,
        )
        return create_app(services, access)

    def _metrics(self) -> CollectorRegistry:
        """Return the metrics, with the code that only they need. Runs in a thread."""
        if self._registry is None:
            from shim.control.metrics import Sources, build_registry  # noqa: PLC0415

            sources = Sources(
                checks=self.checks,
                events=self.trail.recorded,
                events_dropped=self.trail.dropped,
                events_queued=self.trail.queued,
                accounts=dict if self.accounts is None else self.accounts.states,
                key_set_age=self.policy_updater.key_set_age,
                name_ages=self.policy_updater.name_ages,
            )
            self._registry = build_registry(
                self.counters, version=shim.__version__, sources=sources
            )
        return self._registry

    def _administration(self) -> AccountAdministration | None:
        if self.accounts is None:
            return None
        from shim.provisioning.administration import AccountAdministration  # noqa: PLC0415
        from shim.provisioning.operations import running_operations  # noqa: PLC0415

        service = self.accounts.service
        return AccountAdministration(
            lambda operator: running_operations(
                service, self.settings, self.trail.record, operator
            ),
            self.admin_actions,
        )

    def _device_administration(self) -> DeviceAdministration | None:
        people = self._people()
        if self.devices is None or people is None:
            return None
        from shim.devices.administration import DeviceAdministration  # noqa: PLC0415

        return DeviceAdministration(self.devices.service, people.names, self.admin_actions)

    def _people(self) -> People | None:
        if self.accounts is None:
            return None
        from shim.devices.people import People  # noqa: PLC0415

        return People(self.accounts.service)

    async def _read_control_key(self, accounts: AccountParts) -> None:
        """Read the key of the control plane's sessions, once the database is open."""
        from shim.store.control_key import read_or_create_key  # noqa: PLC0415 - see `_build_database`
        from shim.store.errors import StoreError  # noqa: PLC0415

        while True:
            if accounts.service.store_fault is None:
                with contextlib.suppress(StoreError):
                    key = await accounts.service.bindings.database.write_async(read_or_create_key)
                    self._control_key.replace(key)
                    return
            await asyncio.sleep(KEY_RETRY_SECONDS)

    def _log_started(self) -> None:
        self._reloader.log_configuration(self._limit_note)
        listen, control = self._bound_addresses
        self.trail.record(
            Started(
                time=time.time(),
                version=shim.__version__,
                listen=listen,
                control_listen=control,
                process=os.getpid(),
            )
        )


def _build_trail_reader(settings: Settings) -> TrailReader | None:
    """Return a reader of the stored trail, None if the trail is in the log only; its code is then not
    loaded. Raises `StoreError` if the database driver is missing."""
    url = settings.audit_database_url
    if url is not None and url.get_secret_value() == "none":
        return None
    from shim.audit.store.factory import build_reader  # noqa: PLC0415

    return build_reader(settings)


def _build_trail_store(settings: Settings) -> TrailStore | None:
    """Return the stored audit trail.

    Returns None if the trail is in the log only; its code is then not loaded. Raises `StoreError` if the
    database driver is missing."""
    url = settings.audit_database_url
    if url is not None and url.get_secret_value() == "none":
        return None
    from shim.audit.store.factory import build_store  # noqa: PLC0415

    return build_store(settings, log=log_event, replaces=True)


def _build_database(settings: Settings) -> Database | None:
    """Return the database of this process, which is opened on first use.

    Returns None if nothing is stored; its code is then not loaded. Raises `StoreError` if the database
    driver is missing.
    """
    if not settings.provisioning:
        return None
    from shim.store.database import Database  # noqa: PLC0415

    return Database(settings.database_url.get_secret_value())


def _accounts(
    settings: Settings, trail: Trail, database: Database | None, tls: ssl.SSLContext | None
) -> AccountParts | None:
    """Build the components that manage accounts.

    Returns None without a database; their code is then not loaded.
    """
    if database is None:
        return None
    from shim.provisioning.factory import build_accounts  # noqa: PLC0415

    return build_accounts(settings, trail.record, database, tls)


def _devices(
    settings: Settings, trail: Trail, database: Database | None, accounts: AccountParts | None
) -> SubsonicDevices | None:
    """Build the device passwords, which need the accounts. Returns None without them."""
    if database is None or accounts is None:
        return None
    from shim.devices.factory import build_devices  # noqa: PLC0415

    return build_devices(settings, trail.record, database, accounts.service, trail.count_suppressed)


async def _unused_app(scope: Scope, receive: Receive, send: Send) -> None:
    """An ASGI application that is never called."""


def _within_descriptors(limits: Limits) -> tuple[Limits, tuple[str, ...]]:
    """Return the limits with the connections capped, and notes for the log.

    The connections on both sides are capped so that the shim's own files fit in the limit of open files.
    """
    descriptors = raise_descriptor_limit()
    limit = max(8, (descriptors - OWN_DESCRIPTORS) // 2)
    limits = replace(limits, max_upstream_connections=min(limits.max_upstream_connections, limit))
    if limits.max_connections <= limit:
        return limits, ()
    note = (
        f"client connections are capped at {limit}: {descriptors} files may be open, each client needs two "
        f"and the shim itself {OWN_DESCRIPTORS}"
    )
    return replace(limits, max_connections=limit), (note,)


def _bound_address(endpoint: Endpoint, listener: socket) -> str:
    if endpoint.path is not None:
        return str(endpoint)
    host, port = listener.getsockname()[:2]
    return str(Endpoint(host, port))
