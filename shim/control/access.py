"""Authorize requests to the control plane: the one place that decides who may do what.

Requests arrive in one of two ways:

- **private channel**: the data plane forwards requests of authenticated users under `/_shim/`. It
  authenticates with a secret that only this process knows, and sends the user's identity, and whether
  the user is an administrator. Anybody else has only the pages of a person. A loopback address gives no
  rights there.
- **listener** of the control plane: the bearer token, or a session that was made with it. Wrong tokens are
  limited for each client address, whichever way they come, and this machine is no exception; the right one is
  always accepted. Without a token only this machine has access: it may read and reload. `Host` must be an
  address of the control plane. This stops DNS rebinding, where a page in a browser has a name that points to
  127.0.0.1: its requests carry that name.

What a browser adds by itself (the session's cookie, the edge's sign-in, an address of this machine) can be
used by another site's page too. So each write with it needs a CSRF token as well.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request

from shim.audit.events import AdminAction, ControlTokenRejected, Event
from shim.control.csrf import CSRF_FIELD, CSRF_HEADER, CsrfTokens
from shim.control.flash import Flashes
from shim.control.form_keys import FormKeys
from shim.control.forms import read_form
from shim.control.keys import ControlKey
from shim.control.sessions import SESSION_COOKIE, Sessions, TokenLimit
from shim.trust.identity import Identity
from shim.trust.reasons import PathClass

CHANNEL_HEADER = "X-Shim-Channel"
USER_HEADER = "X-Shim-User"
UID_HEADER = "X-Shim-Uid"
ADMIN_HEADER = "X-Shim-Admin"
IDENTITY_HEADER = "X-Shim-Identity"

# Headers that a proxy adds: then only the proxy is on this machine, and the client is unknown.
_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_WRONG_HOST = "the Host header is not an address of the control plane"
_OLD_PAGE = "the page is older than 12 hours, or of another sign-in: load it again"
_SAFE_METHODS = frozenset({"GET", "HEAD"})


def channel_lines(secret: str) -> bytes:
    """Return the header lines of the private channel, as `DataPlane.connect_control` expects them."""
    return (
        f"{CHANNEL_HEADER}: {secret}\r\n"
        f"{USER_HEADER}: %b\r\n{UID_HEADER}: %b\r\n{ADMIN_HEADER}: %b\r\n{IDENTITY_HEADER}: %b\r\n"
    ).encode()


@dataclass(frozen=True, slots=True)
class Caller:
    """The client of one request, and its rights.

    `actor`: who it is, for the audit trail: `console:NAME`, `token`, or `loopback` (this machine, without a
    token). `user`, `uid` and `identity`: the authenticated person on the private channel, None on the
    listener. `client`: the client's address.
    `is_admin`: may use the console and the API. `may_write`: may change something. `may_reload`: may reload
    the settings.
    `csrf_subject`: the subject that its CSRF tokens are bound to, empty if its writes need none. `session`:
    the id of its session, None without one.
    """

    actor: str
    user: str | None = None
    uid: str | None = None
    client: str = ""
    is_admin: bool = True
    may_write: bool = True
    may_reload: bool = True
    csrf_subject: str = ""
    session: str | None = None
    identity: Identity | None = None


class Access:
    """The access rules of one process.

    `channel_secret`: secret of the private channel, new at each start. `token`: the bearer token, or None.
    `hosts`: allowed values of `Host` besides loopback, above all the listening address; `0.0.0.0` or `::`
    allows every literal address. `key` signs sessions and CSRF tokens. `record` takes the events for the
    audit trail.
    """

    def __init__(
        self,
        *,
        channel_secret: str,
        token: str | None,
        hosts: Iterable[str] = (),
        key: ControlKey | None = None,
        record: Callable[[Event], None] = lambda _: None,
    ) -> None:
        if not channel_secret or token == "":
            raise ValueError("the channel secret and the token must not be empty")
        key = ControlKey() if key is None else key
        self._channel_secret = channel_secret.encode()
        self._has_token = token is not None
        self._hosts = frozenset(_bare_host(host) for host in hosts)
        self._any_address = not self._hosts.isdisjoint(("0.0.0.0", "::"))
        self._csrf = CsrfTokens(key)
        self._form_keys = FormKeys(key)
        self._flashes = Flashes(key)
        self._sessions = Sessions(key, token)
        self._limit = TokenLimit()
        self._record = record

    # dependencies of routes

    async def authorize(self, request: Request) -> Caller:
        """Return a client that may read. A dependency of every route except `/healthz`, the signing in, and a
        person's own pages. Raises 401, 403, 404 or 421."""
        caller = self.identify(request)
        if not caller.is_admin:
            raise HTTPException(404)
        return caller

    async def authorize_write(self, request: Request) -> Caller:
        """Return a client that may write, for a request that proves to come from it. Raises 401, 403, 404 or
        421."""
        caller = await self.authorize(request)
        if not caller.may_write:
            raise HTTPException(
                403, "without SHIM_CONTROL_TOKEN this listener only reads and reloads"
            )
        await self.check_csrf(request, caller)
        return caller

    async def authorize_reload(self, request: Request) -> Caller:
        """Return a client that may reload the settings. Raises 401, 403, 404 or 421."""
        caller = await self.authorize(request)
        if not caller.may_reload:
            raise HTTPException(404)
        await self.check_csrf(request, caller)
        return caller

    async def authorize_person(self, request: Request) -> Caller:
        """Return an authenticated person, for the pages that everybody has. Raises 401, 403, 404 or 421."""
        caller = self.identify(request)
        if caller.identity is None:
            raise HTTPException(404)
        return caller

    async def authorize_person_write(self, request: Request) -> Caller:
        """Return a person, for a change of what is the person's own, if the request proves to come from a
        page of the shim. Raises 401, 403, 404 or 421."""
        caller = await self.authorize_person(request)
        await self.check_csrf(request, caller)
        return caller

    async def check_host(self, request: Request) -> None:
        """Check that the request is for this server. The dependency of `/healthz`, which is open to all.
        Raises 404 or 421."""
        if CHANNEL_HEADER in request.headers:
            self._person(request)
        elif not self._is_host_allowed(request) and not self._has_right_token(request):
            raise HTTPException(421, _WRONG_HOST)

    # the client

    def identify(self, request: Request) -> Caller:
        """Return the client with its rights, on the private channel also a person who is no administrator.
        Raises 401, 403, 404 or 421."""
        if CHANNEL_HEADER in request.headers:
            return self._person(request)
        client = _client_address(request)
        if self._has_right_token(request):
            return Caller("token", client=client)
        self._check_host(request)
        _check_not_foreign(request)
        if self._has_token:
            session = self._sessions.find(request.cookies.get(SESSION_COOKIE, ""))
            if session is not None:
                return Caller(
                    "token", client=client, csrf_subject=f"session:{session}", session=session
                )
            raise HTTPException(
                401,
                "a bearer token is required: Authorization: Bearer SHIM_CONTROL_TOKEN",
                {"WWW-Authenticate": 'Bearer realm="navidrome-shim"'},
            )
        if not _is_local(request):
            raise HTTPException(403, "without SHIM_CONTROL_TOKEN only this machine has access")
        subject = "loopback" if _is_browser(request) else ""
        return Caller("loopback", client=client, may_write=False, csrf_subject=subject)

    def may_still_read(self, request: Request) -> bool:
        """Return whether the client of a request that was accepted before may still read: its session may
        have ended."""
        if CHANNEL_HEADER not in request.headers and self._sessions.is_token(_bearer(request)):
            return True
        try:
            return self.identify(request).is_admin
        except HTTPException:
            return False

    def csrf_token(self, caller: Caller) -> str:
        """Return a CSRF token for the pages of this client, empty if it needs none."""
        return self._csrf.issue(caller.csrf_subject) if caller.csrf_subject else ""

    def form_key(self, caller: Caller) -> str:
        """Return the key of a new form of this client: see `FormKeys`."""
        return self._form_keys.issue(caller.csrf_subject)

    def form_id(self, caller: Caller, form_key: str) -> str:
        """Return the id in the key of a form of this client. Raises 403 if it is none, or has expired."""
        found = self._form_keys.read(form_key, caller.csrf_subject)
        if found is None:
            raise HTTPException(403, _OLD_PAGE)
        return found

    def flash_query(self, caller: Caller, page: str, **values: str) -> str:
        """Return a query with the result of a change by this client, for `page`: see `Flashes`."""
        return self._flashes.query(caller.csrf_subject, page, values)

    def flash(self, request: Request, caller: Caller, page: str) -> Mapping[str, str]:
        """Return the result in the query of a request for `page`; empty without one that this client got."""
        return self._flashes.read(caller.csrf_subject, page, request.query_params)

    def check_not_foreign(self, request: Request) -> None:
        """Check that no page of another site made the browser send the request. Raises 403."""
        _check_not_foreign(request)

    async def check_csrf(self, request: Request, caller: Caller) -> None:
        """Check the CSRF token of a write, in the header or in the form's field. Raises 403."""
        if not caller.csrf_subject:
            return
        _check_not_foreign(request)
        token = request.headers.get(CSRF_HEADER) or (await read_form(request)).get(CSRF_FIELD, "")
        if not self._csrf.is_valid(token, caller.csrf_subject):
            raise HTTPException(403, _OLD_PAGE)

    # signing in on the listener

    @property
    def has_sign_in(self) -> bool:
        """Return whether a browser can sign in on the listener, which needs a token."""
        return self._has_token

    async def sign_in(self, request: Request, token: str) -> str:
        """Return the cookie's value of a new session for the right token. Raises 401, 403, 404, 421 or
        429."""
        if CHANNEL_HEADER in request.headers or not self._has_token:
            raise HTTPException(404)
        self._check_host(request)
        _check_not_foreign(request)
        if not self._verify(request, token):
            raise HTTPException(401, "this is not the token in SHIM_CONTROL_TOKEN")
        self._record_action("console.sign_in", _client_address(request))
        return self._sessions.create()

    def sign_out(self, caller: Caller) -> None:
        """End the session of this client, if it has one."""
        if caller.session is not None:
            self._sessions.end(caller.session)
            self._record_action("console.sign_out", caller.client)

    # parts of the rules

    def _has_right_token(self, request: Request) -> bool:
        """Return whether the request has the bearer token. Raises 429."""
        token = _bearer(request)
        return bool(token) and self._has_token and self._verify(request, token)

    def _verify(self, request: Request, token: str) -> bool:
        """Return whether this is the control token; record and count a wrong one. Raises 429 after too many
        of them from the client's address.

        The right one is accepted then too: behind a proxy all clients have one address, and one of them would
        lock out everybody.
        """
        if self._sessions.is_token(token):
            return True
        client = _client_address(request)
        wait = math.ceil(self._limit.wait_seconds(client))
        if wait > 0:
            self._record_wrong_token(request, client, "too_many_failures", 429)
            raise HTTPException(
                429,
                f"too many wrong tokens from this address: try again in {wait} seconds",
                {"Retry-After": str(wait)},
            )
        self._limit.failed(client, token)
        self._record_wrong_token(request, client, "wrong_token", 401)
        return False

    def _record_action(self, action: str, client: str) -> None:
        self._record(
            AdminAction(
                time=time.time(), action=action, actor="token", origin="console", client=client
            )
        )

    def _record_wrong_token(self, request: Request, client: str, reason: str, status: int) -> None:
        self._record(
            ControlTokenRejected(
                time=time.time(),
                peer=client,
                client=client,
                method=request.method,
                path=request.scope["path"],
                path_class=PathClass.INTERNAL,
                reason=reason,
                status=status,
                user_agent=request.headers.get("User-Agent"),
            )
        )

    def _person(self, request: Request) -> Caller:
        secret = _single_header(request, CHANNEL_HEADER)
        known = hmac.compare_digest(secret, self._channel_secret)
        try:
            name = _single_header(request, USER_HEADER).decode("utf-8")
            uid = _single_header(request, UID_HEADER).decode("utf-8")
        except UnicodeDecodeError:
            name = uid = ""
        if not known or not name:
            # The same response as for a page that does not exist, so that guessing reveals nothing.
            raise HTTPException(404)
        admin = _single_header(request, ADMIN_HEADER) == b"1"
        return Caller(
            f"console:{name}",
            user=name,
            uid=uid or None,
            # The data plane sets it on every request.
            client=_single_header(request, "X-Real-IP").decode("latin-1"),
            is_admin=admin,
            may_write=admin,
            may_reload=admin,
            csrf_subject=f"uid:{uid}" if uid else f"user:{name}",
            identity=_identity(name, uid or None, _single_header(request, IDENTITY_HEADER)),
        )

    def _check_host(self, request: Request) -> None:
        if not self._is_host_allowed(request):
            raise HTTPException(421, _WRONG_HOST)

    def _is_host_allowed(self, request: Request) -> bool:
        host = _bare_host(_single_header(request, "Host").decode("latin-1"), port=True)
        if host == "localhost" or host in self._hosts:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            address = None
        return address is not None and (self._any_address or address.is_loopback)


def _single_header(request: Request, name: str) -> bytes:
    """Return the value of this header, or nothing if it occurs several times."""
    values = request.headers.getlist(name)
    return values[0].encode("latin-1") if len(values) == 1 else b""


def _identity(user: str, uid: str | None, text: bytes) -> Identity:
    """Return the identity that `Identity.as_json` wrote; without its text, only the name and the uid."""
    fields = json.loads(text) if text else {}
    groups = fields.get("groups")
    return Identity(
        user,
        name=fields.get("name"),
        email=fields.get("email"),
        groups=None if groups is None else tuple(groups),
        uid=uid,
        uid_source=fields.get("uid_source", ""),
    )


def _bearer(request: Request) -> str:
    scheme, _, token = _single_header(request, "Authorization").decode("latin-1").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _bare_host(host: str, *, port: bool = False) -> str:
    """Return the host in lower case, without brackets and port."""
    host = host.strip().lower()
    if host.startswith("["):
        ipv6_text, _, rest = host[1:].partition("]")
        return ipv6_text if not rest or rest.startswith(":") else host
    return host.partition(":")[0] if port else host


def _is_browser(request: Request) -> bool:
    """Return whether a browser sent the request: each one adds one of these headers to a write."""
    return any(name in request.headers for name in ("Origin", "Sec-Fetch-Site", "Referer"))


def _check_not_foreign(request: Request) -> None:
    """Check that the page of another site did not make the browser send the request; a link may. Raises
    403."""
    site = request.headers.get("Sec-Fetch-Site")
    reads = request.method in _SAFE_METHODS
    if site is not None:
        link = reads and request.headers.get("Sec-Fetch-Mode") == "navigate"
        cross_site = site not in ("same-origin", "none") and not link
    else:
        origin = request.headers.get("Origin")
        cross_site = origin is not None and (
            origin.partition("://")[2].lower() != request.headers.get("Host", "").lower()
        )
    if cross_site:
        raise HTTPException(403, "another site made the browser send the request")


def _client_address(request: Request) -> str:
    return "@" if request.client is None else request.client.host


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
