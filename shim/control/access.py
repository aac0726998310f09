"""Who may ask the control plane.

Two ways lead here, and they are never mixed up:

- the **private channel**, on which the data plane passes on what a believed user asked under `/_shim/`.
  It proves itself by a secret that only this process knows, and brings the user's name. Being on
  loopback counts for nothing there;
- the **listener** of the control plane itself. A bearer token opens it where one is set; without one
  only this machine is let in, asked for by an address of its own: a page in a browser that had its
  name point to 127.0.0.1 (DNS rebinding) still asks for that name.
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

# What a proxy adds: then it is the proxy that is on this machine, and nobody knows who asks.
_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: `user` is the believed name on the private channel, None on the listener."""

    user: str | None


class Access:
    """The rules of one process.

    `channel_secret`: of the private channel, fresh at each start. `token`: the bearer token, None for
    none. `hosts`: names and addresses that the listener may be asked for beside loopback's, above all the
    one that it listens on; `0.0.0.0` or `::` among them stands for every literal address.
    """

    def __init__(
        self, *, channel_secret: str, token: str | None, hosts: Iterable[str] = ()
    ) -> None:
        if not channel_secret or token == "":
            raise ValueError("the channel's secret and the token may not be empty")
        self._channel_secret = channel_secret.encode()
        self._token = None if token is None else token.encode()
        self._hosts = frozenset(_bare_host(host) for host in hosts)
        self._any_address = not self._hosts.isdisjoint(("0.0.0.0", "::"))

    def authorize(self, request: Request) -> Caller:
        """Who asks, as a dependency of every route but `/healthz`. Raises 401, 403, 404 or 421."""
        if CHANNEL_HEADER in request.headers:
            return Caller(self._channel_user(request))
        if self._has_token(request):
            return Caller(None)
        self._check_host(request)
        if self._token is not None:
            raise HTTPException(
                401,
                "a bearer token is needed: Authorization: Bearer SHIM_CONTROL_TOKEN",
                {"WWW-Authenticate": 'Bearer realm="navidrome-shim"'},
            )
        if not _is_local(request):
            raise HTTPException(403, "without SHIM_CONTROL_TOKEN only this machine itself may ask")
        return Caller(None)

    def check_host(self, request: Request) -> None:
        """Whether the request is meant for us at all, as the dependency of `/healthz`, which is open.
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
            # As if there were nothing here: the right answer to somebody who guesses.
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
            raise HTTPException(421, "Host header is not an allowed control-plane name")


def _single_header(request: Request, name: str) -> bytes:
    """The value of the only header of this name, nothing where there are several."""
    values = request.headers.getlist(name)
    return values[0].encode("latin-1") if len(values) == 1 else b""


def _bare_host(host: str, *, port: bool = False) -> str:
    """The host in lower case, without brackets and, if it has one, without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if port else host


def _is_local(request: Request) -> bool:
    if any(name in request.headers for name in _FORWARDED):
        return False
    if request.client is None:
        # A Unix socket, whose permissions decide: its listener has a path and no port. A TCP peer that
        # is already gone has no address either.
        server = request.scope.get("server")
        return server is not None and server[1] is None
    try:
        address = ipaddress.ip_address(request.client.host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
