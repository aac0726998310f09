"""The commands' client of the control plane of the running shim."""

from __future__ import annotations

import httpx

from shim.settings import Settings


def control_client(settings: Settings, *, timeout: float) -> httpx.Client:
    """Return a client of SHIM_CONTROL_LISTEN with SHIM_CONTROL_TOKEN. `timeout` is in seconds."""
    address, token = settings.control_listen, settings.control_token
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host) or "localhost"
    authority = f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"
    headers = {}
    if token is not None:
        headers["Authorization"] = f"Bearer {token.get_secret_value()}"
    return httpx.Client(
        transport=httpx.HTTPTransport(uds=address.path),
        timeout=timeout,
        headers=headers,
        base_url="http://localhost" if address.path else f"http://{authority}",
    )
