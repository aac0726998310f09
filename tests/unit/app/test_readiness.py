"""The readiness check of the whitelist's host names."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from shim.app.factories import jwks_config
from shim.app.readiness import readiness_checks
from shim.health import Check, State
from shim.monitors.dns import NameState
from shim.monitors.jwks import JwksMonitor
from shim.monitors.upstream import UpstreamMonitor
from shim.monitors.user_header import UserHeaderState
from shim.settings import load
from shim.trust.jwks import read_key_set


def whitelist(*addresses: str, fault: str | None = None) -> Check:
    """The check with one configured host name, `edge`, and these addresses."""
    settings = load({"SHIM_REVERSE_PROXY_WHITELIST": "edge"}, None)
    upstream = UpstreamMonitor(settings.upstream, None, "/")
    name = NameState("edge", frozenset(map(ip_address, addresses)), fault)
    check = readiness_checks(settings, (name,), upstream, UserHeaderState(True))[0]
    assert check.name == "whitelist"
    return check


def test_a_name_with_an_address_is_ok() -> None:
    check = whitelist("192.0.2.7", "2001:db8::7")
    assert (check.state, check.detail) == (State.OK, "edge; edge = 192.0.2.7, 2001:db8::7")


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "224.0.0.1", "ff02::1"])
def test_an_address_that_no_peer_can_have_is_reported(address: str) -> None:
    check = whitelist(address, "192.0.2.7")
    assert check.state is State.WARNING
    assert check.detail.startswith("an address that no peer can have: edge = ")
    assert address in check.detail


def test_a_name_without_an_address_matches_no_peer() -> None:
    check = whitelist(fault="no response in time")
    assert check.state is State.FAILING
    assert "edge: no response in time" in check.detail


async def test_an_empty_key_set_is_reported_as_a_proxy_providers() -> None:
    settings = load(
        {
            "SHIM_JWT_VERIFY": "required",
            "SHIM_JWKS_URL": "https://auth.example.org/jwks/",
            "SHIM_JWT_ISSUER": "issuer",
            "SHIM_JWT_AUDIENCE": "audience",
        },
        None,
    )
    upstream = UpstreamMonitor(settings.upstream, None, "/")
    for text in (b"{}", b'{"keys": []}'):
        with pytest.raises(ValueError, match="the key set is empty") as raised:
            read_key_set(text)
        source = jwks_config(settings)
        assert source is not None
        keys = JwksMonitor(source)
        keys._failed(str(raised.value))
        check = readiness_checks(settings, (), upstream, UserHeaderState(True), keys)[-1]
        assert (check.name, check.state) == ("keys", State.FAILING)
        assert "authentik proxy provider" in (check.remedy or "")
        assert "SHIM_PROXY_SECRET" in (check.remedy or "")
