"""Check the edge: what the running shim saw of it, and what becomes of requests to SHIM_PUBLIC_URL.

The running shim gives a one-time path below each public prefix, for the web app's manifest and below /api/,
and responds on it with the names of the headers that arrived. So the result shows what the edge's public
routes let through, and whether the others have a sign-in.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import urljoin, urlsplit

import httpx

from shim.cli.control_client import control_client
from shim.health import Check, State
from shim.proxy.edge_probe import EDGE_PROBE_MARK, EDGE_PROBE_VALUE, MANIFEST, PROTECTED
from shim.settings import Settings

_TIMEOUT = 10.0
_MAX_BODY = 65536
# The characters of a header name (RFC 9110 §5.6.2) that a program may read as a dash. Programs are known to
# accept the first two.
_ALIAS_CHARACTERS = "_.!#$%&'*+^`|~"
_KNOWN_ALIASES = frozenset("_.")
_SIGN_IN = (401, 403, 407)
_NO_BACKEND = (502, 503, 504)
_SUBSONIC = "/rest/"
# In the `Permissions-Policy` of every response of Navidrome.
_NAVIDROME = "camera=(), microphone=(), usb=()"

_FILES = "See deploy/traefik/, deploy/caddy/ and deploy/nginx/."
_REMOVE_HEADERS = {
    "Caddy": "Put `import no-identity` into the `handle` of these paths (deploy/caddy/Caddyfile).",
    "nginx": 'Put the lines `proxy_set_header NAME ""` into the `location` of these paths '
    "(deploy/nginx/navidrome.conf.template).",
    "": "Remove the identity headers on the edge's routes without a sign-in too. Traefik: the middleware "
    '`navidrome-no-identity`. Caddy: `import no-identity`. nginx: `proxy_set_header NAME ""`. '
    + _FILES,
}
_REMOVE_ALIASES = {
    "Caddy": "Remove them with `request_header -*authentik*`, or a part of your provider's header names, as "
    "deploy/caddy/Caddyfile does.",
    "nginx": "Set `underscores_in_headers off` and `ignore_invalid_headers on` outside of `server` "
    "(deploy/nginx/navidrome.conf.template).",
    "": "Traefik 3.7.12 and newer: `aliasHeadersStrategy: delete` at the entry point; older: "
    "deploy/traefik/aliases.yml (for authentik). Caddy: `request_header -*authentik*`. nginx: "
    "`underscores_in_headers off`. " + _FILES,
}
_OPEN_ROUTE = (
    "Give these paths a route of their own without a sign-in, and with a higher priority than the route with "
    "the sign-in. " + _FILES
)

_CLOSED_ROUTE = (
    "Let the edge ask the identity provider for every path that is not in SHIM_PUBLIC_PATHS: the route needs "
    "forward auth, and before it the removal of the client's identity headers. " + _FILES
)


@dataclass(frozen=True, slots=True)
class EdgeFindings:
    """The checks, and sentences on what was not checked."""

    checks: tuple[Check, ...] = ()
    not_checked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Arrived:
    """The request reached the shim. `server` is the edge's name if its response shows it.

    `forged` is true if an identity header arrived as it was sent.
    """

    peer: str
    peer_trusted: bool
    forwarded: bool
    headers: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    secret: str = "absent"
    server: str = ""
    forged: bool = False


@dataclass(frozen=True, slots=True)
class SignIn:
    """The edge asked for a sign-in instead."""

    detail: str


@dataclass(frozen=True, slots=True)
class NotReached:
    """The request did not reach this shim. `connected` is false if nothing responded, `navidrome` true if
    Navidrome did."""

    detail: str
    remedy: str
    connected: bool = True
    navidrome: bool = False


Result: TypeAlias = Arrived | SignIn | NotReached


@dataclass(frozen=True, slots=True)
class RouteResults:
    """The results for one public prefix: with identity headers, and with aliases of them. `aliases` is None
    if it was not sent."""

    headers: Result
    aliases: Result | None = field(default=None)


class ControlFault(Exception):
    """The control plane of the running shim did not respond as expected; the text says how."""


def check_edge(settings: Settings) -> EdgeFindings:
    """Ask the running shim, then send requests to SHIM_PUBLIC_URL. Takes at most 10 seconds for a request."""
    with control_client(settings, timeout=_TIMEOUT) as control:
        try:
            seen = _findings_of_shim(control)
        except ControlFault as fault:
            note = (
                "the edge (is it trusted, is the secret at both sides, what do its routes let through): "
                f"{fault}"
            )
            return EdgeFindings(not_checked=(note,))
        if settings.public_url is None:
            note = (
                "the edge's routes without a sign-in (do they remove identity headers and aliases, is /rest/ "
                "open): SHIM_PUBLIC_URL is not set"
            )
            return EdgeFindings(seen, (note,))
        if not settings.public_paths:
            note = "the edge's routes without a sign-in: SHIM_PUBLIC_PATHS is empty"
            return EdgeFindings(seen, (note,))
        try:
            results = _probe(settings, settings.public_url, control)
        except ControlFault as fault:
            return EdgeFindings(seen, (f"the edge's routes without a sign-in: {fault}",))
    found = evaluate_results(settings.public_url, results, _proof(settings))
    return EdgeFindings((*seen, *found.checks), found.not_checked)


# the running shim


def _findings_of_shim(control: httpx.Client) -> tuple[Check, ...]:
    """Return the check of the edge that the running shim has. Raises `ControlFault`."""
    found = _call_control(control, "GET", "/readyz", statuses=(200, 503)).get("checks")
    one = found.get("edge") if isinstance(found, dict) else None
    if not isinstance(one, dict):
        raise ControlFault("the running shim is of another version: restart it")
    try:
        return (Check("edge", State(one["state"]), one["detail"], one["remedy"]),)
    except (KeyError, ValueError):
        raise ControlFault("the running shim is of another version: restart it") from None


def _probe_path(control: httpx.Client, prefix: str) -> str:
    body = {"prefix": prefix}
    return str(
        _call_control(control, "POST", "/api/edge-probe", body=body, statuses=(200,))["path"]
    )


def _call_control(
    control: httpx.Client,
    method: str,
    path: str,
    *,
    statuses: tuple[int, ...],
    body: Mapping[str, str] | None = None,
) -> dict[str, object]:
    try:
        response = control.request(method, path, json=body)
        found = response.json()
    except httpx.HTTPError as error:
        raise ControlFault(
            "no response from SHIM_CONTROL_LISTEN, so `navidrome-shim serve` does not run there: "
            f"{_reason(error)}"
        ) from None
    except ValueError:
        raise ControlFault("SHIM_CONTROL_LISTEN is the address of another program") from None
    if not isinstance(found, dict):
        raise ControlFault("SHIM_CONTROL_LISTEN is the address of another program")
    if response.status_code not in statuses:
        raise ControlFault(
            f"the control plane returned {response.status_code}: {found.get('detail')}"
        )
    return found


# requests through the edge


def _probe(settings: Settings, public_url: str, control: httpx.Client) -> dict[str, RouteResults]:
    """Return the results by public prefix. Stops after the first if it did not connect."""
    parts = urlsplit(public_url)
    origin = f"{parts.scheme}://{parts.netloc}"
    headers = dict.fromkeys(_identity_headers(settings), EDGE_PROBE_VALUE)
    aliases = dict.fromkeys(_aliases(settings), EDGE_PROBE_VALUE)
    results: dict[str, RouteResults] = {}
    with httpx.Client(verify=_certificates(), timeout=_TIMEOUT, trust_env=False) as client:
        for prefix in dict.fromkeys((*settings.public_paths, MANIFEST, PROTECTED)):
            first = _send(client, origin, _probe_path(control, prefix), headers)
            second = None
            if isinstance(first, Arrived) and aliases and prefix != PROTECTED:
                second = _send(client, origin, _probe_path(control, prefix), aliases)
            results[prefix] = RouteResults(first, second)
            if isinstance(first, NotReached) and not first.connected:
                break
    return results


def _certificates() -> ssl.SSLContext:
    """Return a context with the usual CAs, those of the system, and those in SSL_CERT_FILE."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context


def _proof(settings: Settings) -> str:
    """Return what an identity needs besides a trusted peer."""
    if settings.jwt_verify == "required":
        return "token"
    return "secret" if settings.proxy_secret else "none"


def _identity_headers(settings: Settings) -> list[str]:
    names = (
        settings.username_header,
        settings.uid_header,
        settings.groups_header,
        settings.reverse_proxy_user_header,
    )
    return [name for name in names if name]


def _aliases(settings: Settings) -> list[str]:
    """Return every alias of the header with the user name, and the usual ones of the others."""
    first, *others = (*_identity_headers(settings), settings.proxy_secret_header)
    return [
        name.replace("-", character)
        for name, characters in ((first, _ALIAS_CHARACTERS), *((each, "_.") for each in others))
        for character in characters
        if "-" in name
    ]


def _send(client: httpx.Client, origin: str, path: str, headers: Mapping[str, str]) -> Result:
    url = origin + path
    try:
        with client.stream("GET", url, headers=dict(headers)) as response:
            body = b""
            for piece in response.iter_bytes():
                body += piece
                if len(body) > _MAX_BODY:
                    break
    except httpx.HTTPError as error:
        return _not_connected(error)
    return read_response(url, response.status_code, response.headers, body)


def _not_connected(error: httpx.HTTPError) -> NotReached:
    reason = _reason(error)
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        remedy = (
            "Check the edge's certificate. If its CA is your own, set SSL_CERT_FILE to the CA's file for "
            "this command."
        )
    else:
        remedy = (
            "Check SHIM_PUBLIC_URL, and that this machine or container can connect to the edge by that "
            "name."
        )
    return NotReached(reason, remedy, connected=False)


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__


def read_response(url: str, status: int, headers: Mapping[str, str], body: bytes) -> Result:
    """Return what the response to a probe means. `headers` ignore case."""
    if status == 200 and (arrived := _read_arrived(headers, body)) is not None:
        return arrived
    if _NAVIDROME in headers.get("Permissions-Policy", "") or b"subsonic-response" in body:
        return NotReached(
            f"Navidrome or another instance of the shim responded (HTTP {status})",
            "Let the edge forward to this shim, never to Navidrome itself. If several shims run behind the "
            "edge, run `check` again, or stop the others for it.",
            navidrome=True,
        )
    location = headers.get("Location", "")
    if 300 <= status < 400 and location:
        target = urlsplit(urljoin(url, location))
        if target.path == urlsplit(url).path:
            redirect_origin = f"{target.scheme}://{target.netloc}"
            return NotReached(
                f"it redirects to {redirect_origin}", f"Set SHIM_PUBLIC_URL to {redirect_origin}."
            )
        return SignIn(f"redirect to {target.scheme}://{target.netloc}{target.path}")
    if status in _SIGN_IN:
        return SignIn(f"HTTP {status}")
    if status in _NO_BACKEND:
        return NotReached(
            f"the edge responded with HTTP {status}",
            "The edge does not reach the shim: check the shim's address at the edge, and SHIM_LISTEN.",
        )
    kind = headers.get("Content-Type", "no content type").partition(";")[0]
    return NotReached(
        f"another server responded (HTTP {status}, {kind})",
        "Set SHIM_PUBLIC_URL to the URL at which users open Navidrome, and let the edge forward it to the "
        "shim.",
    )


def _read_arrived(headers: Mapping[str, str], body: bytes) -> Arrived | None:
    try:
        found = json.loads(body)
        if not isinstance(found, dict) or found.get(EDGE_PROBE_MARK) != 1:
            return None
        return Arrived(
            peer=str(found["peer"]),
            peer_trusted=found["peer_trusted"] is True,
            forwarded=found["forwarded"] is True,
            headers=tuple(map(str, (*found["identity_headers"], *found["user_header"]))),
            aliases=tuple(map(str, found["aliases"])),
            secret=str(found["secret"]),
            server=_server(headers),
            forged=found["forged"] is True,
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _server(headers: Mapping[str, str]) -> str:
    """Return the edge's name if it shows it: Traefik does not."""
    server_headers = f"{headers.get('Server', '')} {headers.get('Via', '')}".lower()
    return next((name for name in ("Caddy", "nginx") if name.lower() in server_headers), "")


# the findings


def evaluate_results(
    public_url: str, results: Mapping[str, RouteResults], proof: str = "none"
) -> EdgeFindings:
    """Return the checks that follow from the results, by prefix. `proof` is what an identity needs besides a
    trusted peer: `none`, `secret` or `token`."""
    protected = results.get(PROTECTED)
    results = {prefix: each for prefix, each in results.items() if prefix != PROTECTED}
    arrived = {
        prefix: each.headers
        for prefix, each in results.items()
        if isinstance(each.headers, Arrived)
    }
    checks = [_public_url(public_url, results, reached=bool(arrived)), *_public_routes(results)]
    if not arrived:
        note = "what the edge's routes without a sign-in let through: no request reached this shim"
        return EdgeFindings(tuple(check for check in checks if check is not None), (note,))
    checks += [
        _trust(arrived.values()),
        _headers(arrived),
        _aliases_check(results),
        _secret(arrived),
    ]
    if protected is not None:
        checks.append(_protected(protected.headers, proof))
    skipped = [prefix for prefix in results if prefix not in arrived]
    notes = (f"what the edge lets through on {', '.join(skipped)}",) if skipped else ()
    return EdgeFindings(tuple(check for check in checks if check is not None), notes)


def _public_url(
    public_url: str, results: Mapping[str, RouteResults], *, reached: bool
) -> Check | None:
    """Return whether the URL leads to this shim; None if that is not known, since it asks for a sign-in."""
    if reached:
        return Check("public_url", State.OK, f"{public_url} leads to this shim")
    for each in results.values():
        if isinstance(each.headers, NotReached):
            found = each.headers
            # Some networks do not let a container connect to its own public address.
            state = State.FAILING if found.connected else State.WARNING
            detail = f"{public_url} does not lead to this shim: {found.detail}"
            return Check("public_url", state, detail, found.remedy)
    return None


def _public_routes(results: Mapping[str, RouteResults]) -> list[Check]:
    closed = {p: e.headers for p, e in results.items() if isinstance(e.headers, SignIn)}
    arrived = [p for p, e in results.items() if isinstance(e.headers, Arrived)]
    not_reached = {p: e.headers for p, e in results.items() if isinstance(e.headers, NotReached)}
    if closed:
        details = "; ".join(f"{prefix} ({found.detail})" for prefix, found in closed.items())
        subsonic = _SUBSONIC in closed
        effect = ", and no identity counts there"
        if subsonic:
            effect = ": apps cannot sign in there"
        elif set(closed) == {MANIFEST}:
            effect = ": browsers request it and the icons without cookies, so the web app cannot be installed"
        remedy = _OPEN_ROUTE
        if not subsonic and set(closed) != {MANIFEST}:
            remedy += " Or remove them from SHIM_PUBLIC_PATHS."
        return [
            Check(
                "public_routes",
                State.FAILING if subsonic else State.WARNING,
                f"the edge asks for a sign-in on {details}{effect}",
                remedy,
            )
        ]
    if arrived and not_reached:
        details = "; ".join(f"{prefix}: {found.detail}" for prefix, found in not_reached.items())
        return [
            Check(
                "public_routes", State.WARNING, f"not forwarded to the shim: {details}", _OPEN_ROUTE
            )
        ]
    if arrived:
        detail = f"open without a sign-in: {', '.join(arrived)}"
        return [Check("public_routes", State.OK, detail)]
    return []


def _protected(found: Result, proof: str) -> Check | None:
    """Return what the edge does with a request to Navidrome's API without a session; None if not known."""
    if isinstance(found, SignIn):
        detail = f"the edge asks for a sign-in on {PROTECTED} ({found.detail})"
        return Check("protected_routes", State.OK, detail)
    if isinstance(found, NotReached):
        if not found.navidrome:
            return None
        detail = f"on {PROTECTED} {found.detail}: it gets around this shim"
        return Check("protected_routes", State.FAILING, detail, found.remedy)
    if not found.forged and found.headers:
        # For example Tailscale, for which this machine is signed in.
        detail = f"the edge has an identity for this machine on {PROTECTED}"
        return Check("protected_routes", State.OK, detail)
    detail = f"the edge asks for no sign-in on {PROTECTED}"
    has_proof = {"none": True, "secret": found.secret == "valid", "token": False}[proof]
    if found.forged and found.peer_trusted and has_proof:
        return Check(
            "protected_routes",
            State.FAILING,
            f"{detail}, and forwards a client's identity headers as proven: everybody can be any user",
            _CLOSED_ROUTE,
        )
    effect = "arrived there" if found.forged else "are removed there"
    return Check(
        "protected_routes",
        State.WARNING,
        f"{detail} (a client's identity headers {effect}): visitors get Navidrome's own login, or an error",
        _CLOSED_ROUTE,
    )


def _trust(arrived: Iterable[Arrived]) -> Check:
    peers = {each.peer: each for each in arrived}
    names = ", ".join(peers)
    if all(each.peer_trusted for each in peers.values()):
        return Check("edge_trusted", State.OK, f"the edge connects from {names}, which is trusted")
    untrusted = [each for each in peers.values() if not each.peer_trusted]
    detail = (
        f"the edge connects from {', '.join(each.peer for each in untrusted)}, which is not trusted: no "
        "identity from it counts"
    )
    remedy = (
        f"Add {','.join(each.peer for each in untrusted)} to SHIM_REVERSE_PROXY_WHITELIST, or the edge's "
        "host name if its address changes; then run `navidrome-shim reload`."
    )
    if not any(each.forwarded for each in untrusted):
        remedy += (
            " No X-Forwarded-For arrived: make sure that SHIM_PUBLIC_URL leads to the edge, not to the shim "
            "itself."
        )
    return Check("edge_trusted", State.FAILING, detail, remedy)


def _headers(arrived: Mapping[str, Arrived]) -> Check:
    passed = {prefix: each for prefix, each in arrived.items() if each.headers}
    if not passed:
        detail = f"the edge removes a client's identity headers on {', '.join(arrived)}"
        return Check("edge_headers", State.OK, detail)
    return Check(
        "edge_headers",
        State.WARNING,
        f"the edge does not remove a client's identity headers on {', '.join(passed)}: "
        f"{_union(each.headers for each in passed.values())} arrived (and the shim removed them)",
        _remedy(_REMOVE_HEADERS, passed.values()),
    )


def _aliases_check(results: Mapping[str, RouteResults]) -> Check:
    passed: dict[str, Arrived] = {}
    others: set[str] = set()
    for prefix, each in results.items():
        if isinstance(each.aliases, Arrived):
            if any(_is_known_alias(name) for name in each.aliases.aliases):
                passed[prefix] = each.aliases
            others |= {
                character for name in each.aliases.aliases for character in _alias_characters(name)
            }
    if passed:
        names = _union(filter(_is_known_alias, each.aliases) for each in passed.values())
        return Check(
            "edge_aliases",
            State.WARNING,
            f"the edge does not delete header aliases on {', '.join(passed)}: {names} arrived (and the shim "
            "removed them)",
            _remedy(_REMOVE_ALIASES, passed.values()),
        )
    detail = "the edge deletes header aliases, such as those with _ and ."
    if others:
        detail += f"; those with {' '.join(sorted(others))} arrive, and the shim removes them"
    return Check("edge_aliases", State.OK, detail)


def _is_known_alias(name: str) -> bool:
    return not _KNOWN_ALIASES.isdisjoint(name)


def _alias_characters(name: str) -> set[str]:
    return set(name) & set(_ALIAS_CHARACTERS)


def _secret(arrived: Mapping[str, Arrived]) -> Check:
    sent = [prefix for prefix, each in arrived.items() if each.secret != "absent"]
    if not sent:
        return Check(
            "edge_secret", State.OK, "the edge sends no secret on routes without a sign-in"
        )
    found = {arrived[prefix].secret for prefix in sent}
    detail = f"the edge sends the secret on {', '.join(sent)}, where it authenticates nobody"
    if "valid" not in found:
        detail += (
            ", and SHIM_PROXY_SECRET is not set"
            if found == {"unexpected"}
            else ", with another value than SHIM_PROXY_SECRET"
        )
    return Check(
        "edge_secret",
        State.FAILING,
        detail,
        "Send the secret only on the edge's route with the sign-in: it proves that the edge authenticated "
        "the request. " + _FILES,
    )


def _union(names: Iterable[Iterable[str]]) -> str:
    return ", ".join(sorted({name for each in names for name in each}))


def _remedy(table: Mapping[str, str], arrived: Iterable[Arrived]) -> str:
    servers = {each.server for each in arrived}
    return table[servers.pop() if len(servers) == 1 else ""]
