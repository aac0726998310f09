"""What `/readyz` and `check` say of the parts, with what to do where one is not well."""

from __future__ import annotations

from shim.health import Check, State
from shim.monitors.dns import NameState
from shim.monitors.jwks import JwksMonitor, JwksState
from shim.monitors.upstream import UpstreamMonitor
from shim.monitors.user_header import UserHeaderState, beyond_the_shim
from shim.settings import Settings, warnings
from shim.trust.peers import AddressList, parse_entry


def readiness_checks(
    settings: Settings,
    names: tuple[NameState, ...],
    upstream: UpstreamMonitor,
    user_header: UserHeaderState,
    keys: JwksMonitor | None = None,
) -> tuple[Check, ...]:
    """One check for each part."""
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
            "nobody is listed: no identity is believed",
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
            f"not resolved, so it lists nobody: {details}"
            + (f"; the last answer is still used: {stale}" if stale else ""),
            "Check the name, and that this machine's name server knows it.",
        )
    if stale:
        return Check(
            "whitelist",
            State.WARNING,
            f"the last answer is still used: {stale}",
            "Check this machine's name server.",
        )
    unusable = [n for n in names if any(a.is_unspecified or a.is_multicast for a in n.addresses)]
    if unusable:
        details = "; ".join(map(_resolved, unusable))
        return Check(
            "whitelist",
            State.WARNING,
            f"an address that no peer has: {details}",
            "Check the name: some name servers answer so for what they block or don't know.",
        )
    if AddressList(map(parse_entry, entries)).matches_everyone:
        return Check(
            "whitelist",
            State.WARNING,
            "every address of a family is listed: whoever reaches the shim can name any user",
            "List the edge alone.",
        )
    remarks = [text for text in warnings(settings) if "WHITELIST" in text]
    if remarks:
        return Check("whitelist", State.WARNING, " ".join(remarks), "List what is meant.")
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
        f"{settings.upstream} is not reached: {state.detail}",
        "Start Navidrome, or set SHIM_UPSTREAM to where it listens.",
    )


def _base_path(settings: Settings, upstream: UpstreamMonitor) -> Check:
    if upstream.base_path_mismatch:
        return Check(
            "base_path",
            State.FAILING,
            f"Navidrome's base path is {upstream.state.base_path}, SHIM_BASE_PATH says "
            f"{settings.base_path}: nobody is believed",
            "Set SHIM_BASE_PATH to what Navidrome's ND_BASEURL says.",
        )
    return Check("base_path", State.OK, settings.base_path)


def user_header_check(settings: Settings, state: UserHeaderState) -> Check:
    """Return whether Navidrome obeys the user header, and whom else it trusts."""
    ours = settings.reverse_proxy_user_header
    if state.obeyed is None:
        return Check(
            "user_header",
            State.WARNING,
            f"it is not known whether Navidrome obeys {ours}, so only well-known headers pass: "
            f"{state.detail}",
            "See that Navidrome runs, and that GET /rest/ping reaches it.",
        )
    if not state.obeyed and state.other:
        return Check(
            "user_header",
            State.FAILING,
            f"Navidrome obeys {state.other} and the shim writes {ours}: identities are rejected, and only "
            "well-known headers pass",
            f"Set Navidrome's ND_EXTAUTH_USERHEADER to {ours} and restart it, or set "
            f"SHIM_REVERSE_PROXY_USER_HEADER to {state.other} and restart the shim.",
        )
    if not state.obeyed:
        return Check(
            "user_header",
            State.FAILING,
            f"Navidrome does not obey {ours} when the shim sends it: identities are rejected, and only "
            "well-known headers pass",
            "Set Navidrome's ND_EXTAUTH_TRUSTEDSOURCES to the shim's address as a CIDR (172.20.0.5/32; @ on "
            f"a Unix socket) and ND_EXTAUTH_USERHEADER to {ours}; then restart Navidrome.",
        )
    wide = beyond_the_shim(state.trusted_sources or "")
    if wide:
        return Check(
            "user_header",
            State.WARNING,
            f"Navidrome obeys {ours} from {', '.join(wide)}: whoever reaches it from there can name any user",
            "Set Navidrome's ND_EXTAUTH_TRUSTEDSOURCES to the shim's address alone, as a /32 or /128.",
        )
    return Check("user_header", State.OK, f"Navidrome obeys {ours}")


def _keys(settings: Settings, state: JwksState) -> Check:
    names = ", ".join(map(str, state.keys))
    if state.fault is None:
        return Check("keys", State.OK, f"{settings.jwks_url}: {names}")
    remedy = "Check SHIM_JWKS_URL, and that the provider is reached from here."
    if state.fault.startswith("the key set is empty"):
        remedy = (
            "An authentik proxy provider (forward auth) cannot have a signing key: set SHIM_JWT_VERIFY=off, "
            "and SHIM_PROXY_SECRET on the edge's authenticated route. For an OAuth2 provider, choose a "
            "signing key there."
        )
    if state.keys:
        detail = f"{state.fault}; for {state.failing_for:.0f} s the keys from before count: {names}"
        return Check("keys", State.WARNING, detail, remedy)
    if settings.jwt_hs256_secret is not None:
        detail = f"{state.fault}: only tokens that are signed with HS256 hold"
        return Check("keys", State.WARNING, detail, remedy)
    return Check("keys", State.FAILING, f"{state.fault}: no token holds", remedy)
