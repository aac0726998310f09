"""A scenario: each step is a request and its expectation; `play` runs it and compares.

Independent of the concrete steps (`steps`) and of the output (`reporter`). The shim's decision is
read from the shim, the forwarded request from the stand-in.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx

from demo.environment import USER_HEADER, EntryPoint, Environment
from demo.navidrome import StandIn
from demo.outpost import COOKIE, OutpostUser
from demo.sidecar import DecisionNotFound, ShimDecision
from shim.trust.reasons import Reason, outcome

Fields = tuple[tuple[str, str], ...]

_SECONDS: Final = 20.0
_CONFIG: Final = re.compile(r"window\.__APP_CONFIG__ = (\".*\")$", re.MULTILINE)
_TITLE: Final = re.compile(r"<title>(.*?)</title>")
_PARAGRAPH: Final = re.compile(r"<p>(.*?)</p>", re.DOTALL)
_SUBSONIC_FIELDS: Final = frozenset({"status", "version", "type", "serverVersion", "openSubsonic"})


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """One request.

    actor: the client's name in the output. address: its source address.
    entry_point: its destination. signed_in: the user of its session at the provider, None for no session.
    form: changes in Navidrome's form of the own account, which sends the whole account; `{id}` in
        the target is its id.
    """

    actor: str
    address: str
    entry_point: EntryPoint
    target: str
    headers: Fields = ()
    signed_in: OutpostUser | None = None
    method: str = "GET"
    form: Fields = ()


@dataclass(frozen=True, slots=True)
class AccountState:
    """An account of Navidrome's: its display name, its e-mail, and whether it is an admin."""

    name: str
    email: str = ""
    is_admin: bool = False


Accounts = tuple[tuple[str, AccountState | None], ...]
"""Accounts by their user names; None for one that is not there."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """The expectation of a step.

    reason: the shim's, None without a shim; its verdict follows from it.
    navidrome: every field in which Navidrome sees an identity; None: the request is not forwarded.
    status, contains, excludes: of the response's summary.
    accounts: these accounts in Navidrome afterwards.
    """

    reason: Reason | None
    navidrome: Fields | None
    status: int
    contains: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    accounts: Accounts = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its title, a sentence on its purpose, the request, and its expectation."""

    title: str
    explanation: str
    request: RequestSpec
    expected: Expectation


@dataclass(frozen=True, slots=True)
class Response:
    """A response. `summary` describes it in a few lines."""

    status: int
    summary: str


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of a step. `faults` are the unmet expectations, a sentence each.

    decision: None without a shim. seen_identity: as in `Expectation.navidrome`.
    accounts: those that the step names, as they are.
    """

    step: Step
    response: Response
    decision: ShimDecision | None
    seen_identity: Fields | None
    accounts: Accounts = ()
    faults: tuple[str, ...] = ()


async def run_steps(environment: Environment, steps: Iterable[Step]) -> AsyncIterator[StepResult]:
    """Run the steps one after the other."""
    for step in steps:
        yield await _run_step(environment, step)


async def _run_step(environment: Environment, step: Step) -> StepResult:
    request, expected = step.request, step.expected
    server = environment.navidrome_behind(request.entry_point)
    server.seen.clear()
    decision = None
    target, body = _fill_in(server, request)
    pending = _send(environment, replace(request, target=target), body)
    try:
        if request.entry_point is EntryPoint.EDGE_WITHOUT_SHIM:
            response = await pending
        else:
            response, decision = await environment.shim.send_and_follow(pending)
    except (httpx.HTTPError, DecisionNotFound) as error:
        response = Response(0, f"none: {str(error) or type(error).__name__}")
    # The shim itself sends requests to Navidrome, so not every request is the client's.
    sent = (request.method, target)
    seen_identity = next(
        (one for one in reversed(server.seen) if (one.method, one.target) == sent), None
    )
    identity = None if seen_identity is None else identity_fields(seen_identity.headers)
    accounts = tuple((name, _account(server, name)) for name, _ in expected.accounts)
    result = StepResult(step, response, decision, identity, accounts)
    return replace(result, faults=tuple(faults(result)))


def _fill_in(server: StandIn, request: RequestSpec) -> tuple[str, str]:
    """The target and the body of a request."""
    account = server.accounts.find(request.signed_in.username) if request.signed_in else None
    if not request.form or account is None:
        return request.target, ""
    record = server.accounts.as_json(account) | dict(request.form)
    return request.target.replace("{id}", account.id), json.dumps(record)


async def _send(environment: Environment, request: RequestSpec, body: str) -> Response:
    session = environment.outpost.admit(request.signed_in) if request.signed_in else None
    cookie = [("Cookie", f"{COOKIE}={session}")] if session else []
    transport = httpx.AsyncHTTPTransport(local_address=request.address)
    async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=_SECONDS) as client:
        url = environment.url(request.entry_point) + request.target
        headers = [*request.headers, *cookie]
        return read_response(
            await client.request(request.method, url, headers=headers, content=body)
        )


def faults(result: StepResult) -> Iterable[str]:
    """Return the unmet expectations."""
    expected, decision, response = result.step.expected, result.decision, result.response
    if expected.reason is not None and (decision is None or decision.reason is not expected.reason):
        found = "nothing" if decision is None else f"{decision.verdict} ({decision.reason})"
        yield f"the shim decided {found}, not {expected.reason}"
    elif decision and decision.verdict is not outcome(decision.reason, decision.path_class).verdict:
        yield f"the shim calls {decision.reason} {decision.verdict}"
    if result.seen_identity != expected.navidrome:
        yield (
            f"Navidrome saw {_format_fields(result.seen_identity)}, not "
            f"{_format_fields(expected.navidrome)}"
        )
    if response.status != expected.status:
        yield f"the response's status is {response.status}, not {expected.status}"
    yield from (
        f"the response does not contain {text!r}"
        for text in expected.contains
        if text not in response.summary
    )
    yield from (
        f"the response contains {text!r}" for text in expected.excludes if text in response.summary
    )
    for (name, found_account), (_, wanted) in zip(result.accounts, expected.accounts, strict=True):
        if found_account != wanted:
            yield f"the account {name} is {found_account}, not {wanted}"


def identity_fields(headers: Fields) -> Fields:
    """The fields in which Navidrome, or any normalizing parser, could read an identity."""
    normalized_fields = (
        (name, value, re.sub(r"[^a-z0-9]", "-", name.lower())) for name, value in headers
    )
    return tuple(
        (name, value)
        for name, value, normalized in normalized_fields
        if normalized.startswith("x-authentik-") or normalized == USER_HEADER.lower()
    )


def read_response(response: httpx.Response) -> Response:
    """The description of a response by its kind."""
    kind = response.headers.get("Content-Type", "").partition(";")[0]
    match kind:
        case "application/json":
            summary = _summarize_json(response.text)
        case "text/html":
            summary = _summarize_page(response.text)
        case _ if kind.startswith("text/"):
            summary = response.text
        case _:
            length = response.headers.get("Content-Range", f"{len(response.content)} bytes")
            summary = f"{kind or 'no content'}: {length}, beginning {response.content[:4]!r}"
    return Response(response.status_code, summary)


def _summarize_json(text: str) -> str:
    try:
        value: Any = json.loads(text)
    except ValueError:
        return text
    response_body = value.get("subsonic-response") if isinstance(value, dict) else None
    if response_body is None:
        return json.dumps(value, ensure_ascii=False)
    if "error" in response_body:
        return (
            f"Subsonic: error {response_body['error']['code']}, {response_body['error']['message']}"
        )
    remaining = {name: one for name, one in response_body.items() if name not in _SUBSONIC_FIELDS}
    details = f", {json.dumps(remaining, ensure_ascii=False)}" if remaining else ""
    return f"Subsonic: {response_body['status']}{details}"


def _summarize_page(page: str) -> str:
    title = _TITLE.search(page)
    summary = f"page “{title.group(1)}”" if title else "a page"
    config = _CONFIG.search(page)
    if config is None:
        contains = _PARAGRAPH.search(page)
        return f"{summary}: {html.unescape(contains.group(1))}" if contains else summary
    auth = json.loads(json.loads(config.group(1))).get("auth")
    if not auth:
        return f"{summary}, no user logged in"
    kind = "an admin" if auth["isAdmin"] else "a regular user"
    return f"{summary}, logged in as {auth['username']} ({auth['name']}), {kind}"


def _account(server: StandIn, user_name: str) -> AccountState | None:
    account = server.accounts.find(user_name)
    if account is None:
        return None
    return AccountState(account.name, account.email, account.is_admin)


def _format_fields(fields: Fields | None) -> str:
    if fields is None:
        return "no request"
    return ", ".join(f"{name}: {value}" for name, value in fields) or "no identity"
