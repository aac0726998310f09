"""Keep the active policy up to date with the settings and with the values that are looked up for it.

The monitors watch the host names, Navidrome's base path, the user header that Navidrome obeys and the
provider's keys. When one of them differs from the active policy, the data plane gets a new policy between
two requests, and the change is recorded in the audit trail.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from shim.app.factories import build_policy, jwks_config, sign_out_url
from shim.app.readiness import readiness_checks, user_header_check
from shim.audit.events import Event, PolicyChanged
from shim.audit.events.proof import KeySetFailed, KeySetFetched, NameLookupFailed, NameResolved
from shim.health import Check
from shim.monitors.dns import DnsMonitor
from shim.monitors.jwks import JwksMonitor
from shim.monitors.upstream import UpstreamMonitor
from shim.monitors.user_header import Configuration, UserHeaderState, UserHeaderWatch
from shim.proxy.server import DataPlane
from shim.settings import Settings
from shim.trust.peers import Address
from shim.trust.policy import Policy

UPSTREAM_WATCH_SECONDS = 15.0


class PolicyUpdater:
    """Update the policy of `plane`, and report each change to `record`."""

    def __init__(
        self,
        settings: Settings,
        plane: DataPlane,
        record: Callable[[Event], None],
        configuration: Configuration | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Create the monitors for the settings.

        `configuration` reads the settings of Navidrome; None if the shim has no account there. `tls`
        verifies the certificate of Navidrome; None means without TLS.
        """
        self.settings = settings
        self._plane = plane
        self._record = record
        self.names = _build_dns_monitor(settings)
        self.keys = _keys(settings)
        self.upstream = UpstreamMonitor(settings.upstream, tls, settings.base_path)
        self.user_header = UserHeaderWatch(
            settings, configuration, lambda: self.update_policy("user_header"), tls
        )
        self._enforced_user_header: UserHeaderState | None = None
        self._audit_available = True
        self._tasks: list[asyncio.Task[None]] = []
        self._reported_fault: str | None = None
        self._unresolved: dict[str, bool] = {}
        self._publish()

    def checks(self) -> tuple[Check, ...]:
        """Return the state of each looked-up value for `/readyz`."""
        return readiness_checks(
            self.settings, self.names.states, self.upstream, self.user_header.state, self.keys
        )

    def key_set_age(self) -> float | None:
        """Return the seconds since the key set was fetched, None without a key set."""
        keys = self.keys
        return None if keys is None else keys.state.age

    def name_ages(self) -> dict[str, float]:
        """Return the seconds since each host name of the whitelist was resolved."""
        return {name.host: name.age for name in self.names.states}

    async def start(self) -> None:
        """Look up all values once, apply the results, and start the monitors."""
        await asyncio.gather(
            self.names.resolve(),
            self.upstream.probe(),
            self.user_header.start(),
            *(k.fetch() for k in self._jwks_monitors()),
        )
        self._report_jwks(first=True)
        self._report_dns()
        self.update_policy("start")
        self._watch()

    async def stop(self) -> None:
        """Stop all monitors."""
        await self._stop_watchers()
        for keys in self._jwks_monitors():
            await keys.close()
        await self.upstream.close()
        await self.user_header.close()

    async def refresh_now(self) -> None:
        """Resolve the names and fetch the keys now, and apply the results."""
        await asyncio.gather(self.names.resolve(), *(k.refetch() for k in self._jwks_monitors()))
        self._report_dns()
        self.update_policy("whitelist")

    def set_audit_available(self, available: bool) -> None:
        """Trust no identity while the audit trail must be written and cannot be."""
        self._audit_available = available
        self.update_policy("audit")

    async def apply_settings(self, settings: Settings) -> str | None:
        """Apply these settings.

        Returns an error message and changes nothing if the key set cannot be fetched. A name that cannot
        be resolved matches no peer.
        """
        names, keys = _build_dns_monitor(settings), self.keys
        names.copy_state_from(self.names)
        source = jwks_config(settings)
        if source != (None if keys is None else keys.config):
            keys = _keys(settings)
        if keys is not None and keys is not self.keys:
            await keys.fetch()
            if keys.state.fault is not None:
                await keys.close()
                return f"SHIM_JWKS_URL: the key set can't be fetched: {keys.state.fault}"
        await names.resolve()
        await self._stop_watchers()
        former, self.keys, self.names = self.keys, keys, names
        self.settings = settings
        self._publish()
        if former is not None and former is not keys:
            await former.close()
            self._reported_fault = None
            self._report_jwks(first=True)
        self._report_dns()
        self.update_policy("settings", always=True)
        self._watch()
        return None

    def _publish(self) -> None:
        self._plane.apply_options(
            replace(
                self._plane.options,
                keys=self.keys,
                sign_in_url=self.settings.sign_in_url or "",
                sign_out_url=sign_out_url(self.settings),
            )
        )

    def _watch(self) -> None:
        settings, loop = self.settings, asyncio.get_running_loop()
        runs = [
            self.names.run(
                settings.dns_refresh_seconds,
                lambda: self.update_policy("whitelist"),
                self._report_dns,
            ),
            self.user_header.run(),
            self.upstream.run(UPSTREAM_WATCH_SECONDS, lambda: self.update_policy("base_path")),
            *(keys.run(settings.jwks_refresh_seconds) for keys in self._jwks_monitors()),
        ]
        if self.keys is not None:
            self.keys.report_changes(self._on_jwks_change)
        self._tasks = [loop.create_task(run) for run in runs]

    async def _stop_watchers(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _jwks_monitors(self) -> tuple[JwksMonitor, ...]:
        return () if self.keys is None else (self.keys,)

    def _on_jwks_change(self) -> None:
        self._report_jwks(first=False)
        self.update_policy("keys")

    def _report_dns(self) -> None:
        """Record that a name became resolvable or unresolvable, or lost its last address."""
        for name in self.names.states:
            now, addresses = time.time(), tuple(sorted(map(str, name.addresses)))
            reported = self._unresolved.get(name.host)
            if name.fault is not None and reported is not bool(addresses):
                self._record(
                    NameLookupFailed(
                        time=now, host=name.host, detail=name.fault, addresses=addresses
                    )
                )
                self._unresolved[name.host] = bool(addresses)
            elif name.fault is None and reported is not None:
                self._record(NameResolved(time=now, host=name.host, addresses=addresses))
                del self._unresolved[name.host]

    def _report_jwks(self, *, first: bool) -> None:
        """Record that the key set became reachable or unreachable."""
        if self.keys is None:
            return
        state, now = self.keys.state, time.time()
        keys = tuple(map(str, state.keys))
        if state.fault is None:
            if first or self._reported_fault is not None:
                self._record(KeySetFetched(time=now, keys=keys))
        elif state.fault != self._reported_fault or not keys:
            self._record(KeySetFailed(time=now, detail=state.fault, keys=keys))
        self._reported_fault = state.fault

    def update_policy(self, subject: str, *, always: bool = False) -> None:
        """Apply a new policy if the looked-up values differ from the active policy."""
        previous, user_header = self._plane.policy, self.user_header.state
        new = build_policy(
            self.settings,
            number=previous.number + 1,
            resolved=self.names.addresses(),
            suspended=self.upstream.base_path_mismatch,
            keys=() if self.keys is None else self.keys.keys,
            user_header=user_header,
            audit_available=self._audit_available,
        )
        before, after = _watched_values(previous), _watched_values(new)
        reported = _user_header_values(user_header), _user_header_values(self._enforced_user_header)
        if (
            before == after
            and previous.suspended == new.suspended
            and previous.audit_available == new.audit_available
            and reported[0] == reported[1]
            and not always
        ):
            return
        self._enforced_user_header = user_header
        self._plane.apply_policy(new)
        self._record(
            PolicyChanged(
                time=time.time(),
                subject=subject,
                policy_number=new.number,
                added=tuple(sorted(after - before)),
                removed=tuple(sorted(before - after)),
                detail="; ".join(
                    self._details(previous, new, user_header, differs=reported[0] != reported[1])
                )
                or None,
                needs_attention=(
                    new.suspended or not new.user_header_obeyed or not new.audit_available
                ),
            )
        )

    def _details(
        self, old: Policy, new: Policy, user_header: UserHeaderState, *, differs: bool
    ) -> list[str]:
        details = [self.upstream.state.detail] if old.suspended != new.suspended else []
        if old.audit_available != new.audit_available:
            state = "can be written again" if new.audit_available else "can't be written"
            details.append(f"the audit trail {state}")
        if differs:
            details.append(user_header_check(self.settings, user_header).detail)
        return details


def _user_header_values(state: UserHeaderState | None) -> tuple[bool | None, str]:
    """Return the part of the user header's state that a policy depends on; None counts as obeyed."""
    return (True, "") if state is None else (state.obeyed, state.other)


def _build_dns_monitor(settings: Settings) -> DnsMonitor:
    return DnsMonitor(build_policy(settings).whitelist.hosts, settings.dns_stale_seconds)


def _keys(settings: Settings) -> JwksMonitor | None:
    source = jwks_config(settings)
    return None if source is None else JwksMonitor(source)


def _watched_values(policy: Policy) -> set[str]:
    """Return the looked-up values of a policy: addresses by name, and keys, which may change under the
    same name.
    """
    keys = () if policy.tokens is None else policy.tokens.keys
    return {
        *_addresses(policy.whitelist.resolved),
        *(f"key {key} {key.fingerprint}" for key in keys),
    }


def _addresses(resolved: Mapping[str, frozenset[Address]]) -> set[str]:
    return {f"{host}={address}" for host, found in resolved.items() for address in found}
