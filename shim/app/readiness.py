"""Build the checks of `/readyz` and `check`, each with a finding and a remedy."""

from __future__ import annotations

from shim.health import Check, State
from shim.monitors.dns import NameState
from shim.monitors.jwks import JwksMonitor, JwksState
from shim.monitors.upstream import UpstreamMonitor
from shim.monitors.user_header import UserHeaderState, sources_beyond_shim
from shim.settings import Settings, warnings
from shim.trust.peers import AddressList, parse_entry


def readiness_checks(
    settings: Settings,
    names: tuple[NameState, ...],
    upstream: UpstreamMonitor,
    user_header: UserHeaderState,
    keys: JwksMonitor | None = None,
) -> tuple[Check, ...]:
    """Return one check for each part."""
    checks = (
        _whitelist(settings, names),
        _navidrome(settings, upstream),
        _base_path(settings, upstream),
        user_header_check(settings, user_header),
    )
    return checks if keys is None else (*checks, _keys(settings, keys.state))


def _whitelist(settings: Settings, names: tuple[NameState, ...]) -> Check:
    entries = settings.reverse_proxy_whitelist
    if not entries:
        return Check(
            "whitelist",
            State.WARNING,
            "empty: no identity is trusted",
            "Set SHIM_REVERSE_PROXY_WHITELIST to the edge's address, network or host name.",
        )
    unresolved = [name for name in names if not name.addresses]
    stale = "; ".join(f"{n.host}: {n.fault}" for n in names if n.addresses and n.fault)
    if unresolved:
        details = "; ".join(f"{name.host}: {name.fault or 'no address'}" for name in unresolved)
        state = State.FAILING if len(unresolved) == len(entries) else State.WARNING
        return Check(
            "whitelist",
            state,
            f"not resolved, so it trusts no peer: {details}"
            + (f"; the last addresses are still used: {stale}" if stale else ""),
            "Check the name, and the name server of this machine.",
        )
    if stale:
        return Check(
            "whitelist",
            State.WARNING,
            f"the last addresses are still used: {stale}",
            "Check the name server of this machine.",
        )
    unusable = [n for n in names if any(a.is_unspecified or a.is_multicast for a in n.addresses)]
    if unusable:
        details = "; ".join(map(_resolved, unusable))
        return Check(
            "whitelist",
            State.WARNING,
            f"an address that no peer can have: {details}",
            "Check the name. Some name servers return such an address for blocked or unknown names.",
        )
    if AddressList(map(parse_entry, entries)).matches_everyone:
        return Check(
            "whitelist",
            State.WARNING,
            "trusts every address: every client can use any user name",
            "Name only the edge.",
        )
    notes = [text for text in warnings(settings) if "WHITELIST" in text]
    if notes:
        return Check(
            "whitelist", State.WARNING, " ".join(notes), "Correct SHIM_REVERSE_PROXY_WHITELIST."
        )
    return Check("whitelist", State.OK, "; ".join((", ".join(entries), *map(_resolved, names))))


def _resolved(name: NameState) -> str:
    return f"{name.host} = {', '.join(sorted(map(str, name.addresses)))}"


def _navidrome(settings: Settings, upstream: UpstreamMonitor) -> Check:
    state = upstream.state
    if state.reached:
        return Check("navidrome", State.OK, f"{settings.upstream} {state.detail}")
    return Check(
        "navidrome",
        State.FAILING,
        f"no connection to {settings.upstream}: {state.detail}",
        "Start Navidrome, or set SHIM_UPSTREAM to its address.",
    )


def _base_path(settings: Settings, upstream: UpstreamMonitor) -> Check:
    if upstream.base_path_mismatch:
        return Check(
            "base_path",
            State.FAILING,
            f"Navidrome's base path is {upstream.state.base_path}, SHIM_BASE_PATH is "
            f"{settings.base_path}: no identity is trusted",
            "Set SHIM_BASE_PATH to the path of Navidrome's ND_BASEURL.",
        )
    return Check("base_path", State.OK, settings.base_path)


def user_header_check(settings: Settings, state: UserHeaderState) -> Check:
    """Return whether Navidrome obeys the user header, and which other addresses it trusts."""
    user_header, own = settings.reverse_proxy_user_header, _as_trusted_source(state.own_address)
    if state.obeyed is None:
        return Check(
            "user_header",
            State.WARNING,
            f"not known yet whether Navidrome obeys {user_header}, so only allowed headers are forwarded: "
            f"{state.detail}",
            "Check that Navidrome runs and responds to GET /rest/ping.",
        )
    if not state.obeyed and state.other:
        return Check(
            "user_header",
            State.FAILING,
            f"Navidrome obeys {state.other}, but the shim sets {user_header}: identities are rejected, and "
            "only allowed headers are forwarded",
            f"Set Navidrome's ND_EXTAUTH_USERHEADER to {user_header} and restart it, or set "
            f"SHIM_REVERSE_PROXY_USER_HEADER to {state.other} and restart the shim.",
        )
    if not state.obeyed:
        return Check(
            "user_header",
            State.FAILING,
            f"Navidrome does not obey {user_header} from the shim: identities are rejected, and only allowed "
            "headers are forwarded",
            f"Set Navidrome's ND_EXTAUTH_TRUSTEDSOURCES to the shim's address {own} and "
            f"ND_EXTAUTH_USERHEADER to {user_header}; then restart Navidrome.",
        )
    others = sources_beyond_shim(state.trusted_sources or "", state.own_address)
    if others:
        return Check(
            "user_header",
            State.WARNING,
            f"Navidrome obeys {user_header} from {', '.join(others)}: any client there can use any user name",
            f"Set Navidrome's ND_EXTAUTH_TRUSTEDSOURCES to only the shim's address {own} (of several shims, "
            "to only theirs).",
        )
    return Check("user_header", State.OK, f"Navidrome obeys {user_header}")


def _as_trusted_source(address: str) -> str:
    """Return the address as an entry of ND_EXTAUTH_TRUSTEDSOURCES."""
    if not address:
        return "as a CIDR (172.20.0.5/32; @ on a Unix socket)"
    return address if address == "@" else f"{address}/{128 if ':' in address else 32}"


def _keys(settings: Settings, state: JwksState) -> Check:
    names = ", ".join(map(str, state.keys))
    if state.fault is None:
        return Check("keys", State.OK, f"{settings.jwks_url}: {names}")
    remedy = "Check SHIM_JWKS_URL, and the connection to the provider."
    if state.fault.startswith("the key set is empty"):
        remedy = (
            "An authentik proxy provider (forward auth) cannot have a signing key: set SHIM_JWT_VERIFY=off, "
            "and use SHIM_PROXY_SECRET on the edge's authenticated route. For an OAuth2 provider, choose "
            "a signing key in authentik."
        )
    if state.keys:
        detail = f"{state.fault}; the old keys are used for {state.failing_for:.0f} s now: {names}"
        return Check("keys", State.WARNING, detail, remedy)
    if settings.jwt_hs256_secret is not None:
        detail = f"{state.fault}: only HS256 tokens are accepted"
        return Check("keys", State.WARNING, detail, remedy)
    return Check("keys", State.FAILING, f"{state.fault}: no token is accepted", remedy)
