"""Explain the decision on one request that is not sent: for the command, the API and the console.

The steps are those of the data plane: `decide`, and then the account.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from shim.settings import Settings
from shim.trust.decision import Decision, decide, reject
from shim.trust.peers import parse_peer
from shim.trust.policy import Policy
from shim.trust.reasons import PathClass, Reason
from shim.trust.rejection import RequestRejected


class InvalidRequest(ValueError):
    """The request can't be explained; the message says what is wrong. `part`: `peer`, `method`, `path`,
    `header` or `secret`."""

    def __init__(self, part: str, message: str) -> None:
        super().__init__(message)
        self.part = part


@dataclass(frozen=True, slots=True)
class ExplainedRequest:
    """A request to explain: `peer` is the address that connects to the shim, or `@`; `headers` are lines
    `Name: value`. `with_secret` adds the first of SHIM_PROXY_SECRET."""

    peer: str
    path: str
    method: str = "GET"
    headers: Sequence[str] = ()
    with_secret: bool = False


async def explain(
    request: ExplainedRequest, settings: Settings, policy: Policy
) -> dict[str, object]:
    """Return the decision under this policy as `explain --json` prints it, with its `steps`. Raises
    `InvalidRequest`."""
    try:
        peer = parse_peer(request.peer)
    except ValueError:
        raise InvalidRequest("peer", f"{request.peer!r} is neither an IP address nor @") from None
    scheme = b"https" if settings.tls_cert else b"http"
    decision = decide(_head(request, settings), peer, policy, scheme, time.time())
    decision, user_name, steps = await _with_account(settings, decision)
    result = decision.explain()
    if user_name is not None:
        result["forwarded_headers"] = _with_user(result["forwarded_headers"], settings, user_name)
    result["steps"] = [
        {"step": name, "result": outcome, "why": explanation}
        for name, outcome, explanation in steps
    ]
    return result


def _head(request: ExplainedRequest, settings: Settings) -> bytes:
    headers = list(request.headers)
    for part, texts in (
        ("method", [request.method]),
        ("path", [request.path]),
        ("header", headers),
    ):
        for text in texts:
            if "\r" in text or "\n" in text:
                raise InvalidRequest(part, f"the {part} has a line break")
            try:
                text.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError:
                raise InvalidRequest(part, f"the {part} is not UTF-8") from None
    for text in headers:
        if ":" not in text:
            raise InvalidRequest("header", f"{text!r} is not a header: expected 'Name: value'")
    if request.with_secret:
        if not settings.proxy_secret:
            raise InvalidRequest("secret", "SHIM_PROXY_SECRET is not set")
        secret = settings.proxy_secret[0].get_secret_value()
        headers.append(f"{settings.proxy_secret_header}: {secret}")
    if not any(line.lower().startswith("host:") for line in headers):
        headers.append("Host: music.example.com")
    lines = (f"{request.method} {request.path} HTTP/1.1", *headers, "", "")
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")


async def _with_account(
    settings: Settings, decision: Decision
) -> tuple[Decision, str | None, list[tuple[str, str, str]]]:
    """Return the decision with the account checked, the account's name, and all steps in words."""
    source, outcome = decision.source, decision.outcome
    peer = "trusted" if source.trusted else "not trusted"
    on = "is" if source.trusted else "is not"
    explanation = outcome.reason.text + (f": {decision.detail}" if decision.detail else "")
    steps = [
        ("peer", peer, f"{source.peer.text} {on} on SHIM_REVERSE_PROXY_WHITELIST"),
        ("path", str(outcome.path_class), _PATH_TEXTS[outcome.path_class]),
        ("identity", str(outcome.verdict), explanation),
    ]
    identity = decision.identity
    if identity is None or outcome.path_class is PathClass.INTERNAL:
        return decision, None, steps
    if not settings.provisioning:
        steps.append(("account", "not checked", "SHIM_PROVISIONING is off"))
        return decision, None, steps
    # Import late: the database code is large, and is not loaded while provisioning is off.
    from shim.provisioning.preview import preview  # noqa: PLC0415

    verified = outcome.reason is Reason.VERIFIED_JWT
    found = await preview(settings, identity, verified=verified)
    steps += [(step.name, step.result, step.explanation) for step in found]
    last = found[-1]
    if last.reason is not None:
        refused = RequestRejected(last.reason, last.explanation)
        return reject(refused, source, decision.request_line, decision.block), None, steps
    return decision, last.user_name, steps


_PATH_TEXTS = {
    PathClass.PROTECTED: "the edge authenticates this path",
    PathClass.PUBLIC: "the edge leaves this path open (SHIM_PUBLIC_PATHS)",
    PathClass.INTERNAL: "the shim's own pages",
}


def _with_user(headers: object, settings: Settings, user_name: str) -> list[list[str]]:
    """Return the forwarded headers, with the account's name as Navidrome stores it."""
    assert isinstance(headers, list)
    user_header = settings.reverse_proxy_user_header.lower()
    return [[n, user_name if n.lower() == user_header else value] for n, value in headers]
