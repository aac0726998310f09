"""Authorize requests to the control plane.

Requests arrive in one of two ways:

- **private channel**: the data plane forwards requests of authenticated users under `/_shim/`. It
  authenticates with a secret that only this process knows, and sends the user name. A loopback address gives
  no rights there.
- **listener** of the control plane: a bearer token is required if one is set. Otherwise only this machine has
  access, and `Host` must be one of its addresses. This stops DNS rebinding, where a page in a browser has a
  name that points to 127.0.0.1: its requests carry that name.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request

CHANNEL_HEADER = "X-Shim-Channel"
USER_HEADER = "X-Shim-User"

# Headers that a proxy adds: then only the proxy is on this machine, and the client is unknown.
_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


@dataclass(frozen=True, slots=True)
class Caller:
    """The client: `user` is the authenticated name on the private channel, None on the listener."""

    user: str | None


class Access:
    """The access rules of one process.

    `channel_secret`: secret of the private channel, new at each start. `token`: the bearer token, or None.
    `hosts`: allowed values of `Host` besides loopback, above all the listening address; `0.0.0.0` or `::`
    allows every literal address.
    """

    def __init__(
        self, *, channel_secret: str, token: str | None, hosts: Iterable[str] = ()
    ) -> None:
        if not channel_secret or token == "":
            raise ValueError("the channel secret and the token must not be empty")
        self._channel_secret = channel_secret.encode()
        self._token = None if token is None else token.encode()
        self._hosts = frozenset(_bare_host(host) for host in hosts)
        self._any_address = not self._hosts.isdisjoint(("0.0.0.0", "::"))

    def authorize(self, request: Request) -> Caller:
        """Return the client. A dependency of every route except `/healthz`. Raises 401, 403, 404 or 421."""
        if CHANNEL_HEADER in request.headers:
            return Caller(self._channel_user(request))
        if self._has_token(request):
            return Caller(None)
        self._check_host(request)
        if self._token is not None:
            raise HTTPException(
                401,
                "a bearer token is required: Authorization: Bearer SHIM_CONTROL_TOKEN",
                {"WWW-Authenticate": 'Bearer realm="navidrome-shim"'},
            )
        if not _is_local(request):
            raise HTTPException(403, "without SHIM_CONTROL_TOKEN only this machine has access")
        return Caller(None)

    def check_host(self, request: Request) -> None:
        """Check that the request is for this server. The dependency of `/healthz`, which is open to all.
        Raises 404 or 421."""
        if CHANNEL_HEADER in request.headers:
            self._channel_user(request)
        elif not self._has_token(request):
            self._check_host(request)

    def _channel_user(self, request: Request) -> str:
        secret, user = _single_header(request, CHANNEL_HEADER), _single_header(request, USER_HEADER)
        known = hmac.compare_digest(secret, self._channel_secret)
        try:
            name = user.decode("utf-8")
        except UnicodeDecodeError:
            name = ""
        if not known or not name:
            # The same response as for a page that does not exist, so that guessing reveals nothing.
            raise HTTPException(404)
        return name

    def _has_token(self, request: Request) -> bool:
        scheme, _, token = _single_header(request, "Authorization").partition(b" ")
        if self._token is None or scheme.lower() != b"bearer":
            return False
        return hmac.compare_digest(token.strip(), self._token)

    def _check_host(self, request: Request) -> None:
        host = _bare_host(_single_header(request, "Host").decode("latin-1"), port=True)
        if host == "localhost" or host in self._hosts:
            return
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            address = None
        if address is None or not (self._any_address or address.is_loopback):
            raise HTTPException(421, "the Host header is not an address of the control plane")


def _single_header(request: Request, name: str) -> bytes:
    """Return the value of this header, or nothing if it occurs several times."""
    values = request.headers.getlist(name)
    return values[0].encode("latin-1") if len(values) == 1 else b""


def _bare_host(host: str, *, port: bool = False) -> str:
    """Return the host in lower case, without brackets and port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if port else host


def _is_local(request: Request) -> bool:
    if any(name in request.headers for name in _FORWARDED):
        return False
    if request.client is None:
        # A Unix socket, whose permissions decide: its listener has a path and no port. A TCP peer that
        # has disconnected has no address either.
        server = request.scope.get("server")
        return server is not None and server[1] is None
    try:
        address = ipaddress.ip_address(request.client.host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
