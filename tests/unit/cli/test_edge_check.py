"""What `check` concludes from the responses to its requests through the edge."""

from __future__ import annotations

import json
from dataclasses import replace

import httpx
import pytest

from shim.cli.edge_check import (
    Arrived,
    NotReached,
    Result,
    RouteResults,
    SignIn,
    evaluate_results,
    read_response,
)
from shim.health import Check, State
from shim.proxy.edge_probe import EDGE_PROBE_MARK, MANIFEST, PROTECTED

URL = "https://music.example.org"
PROBE = f"{URL}/rest/0123456789abcdef"
NAVIDROME = {"Permissions_Policy": "autoplay=(), camera=(), microphone=(), usb=()"}
FINE = Arrived(peer="172.20.0.2", peer_trusted=True, forwarded=True)
ARRIVED = {
    EDGE_PROBE_MARK: 1,
    "peer": "172.20.0.2",
    "peer_trusted": True,
    "forwarded": True,
    "identity_headers": ["X-Authentik-Username"],
    "user_header": ["Remote-User"],
    "forged": False,
    "aliases": [],
    "secret": "absent",
}


def read(status: int, body: bytes | str = b"", **headers: str) -> Result:
    content = body.encode() if isinstance(body, str) else body
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return read_response(PROBE, status, httpx.Headers(names), content)


def checks_of(*results: RouteResults, prefixes: str = "/rest/ /share/") -> dict[str, Check]:
    found = evaluate_results(URL, dict(zip(prefixes.split(), results, strict=False)))
    return {check.name: check for check in found.checks}


def test_the_shims_response_is_read_with_the_edges_name() -> None:
    found = read(200, json.dumps(ARRIVED), Server="nginx/1.22.1")
    headers = ("X-Authentik-Username", "Remote-User")
    assert found == Arrived("172.20.0.2", True, True, headers, (), "absent", "nginx")


@pytest.mark.parametrize(
    ("status", "headers", "detail"),
    [
        (302, {"Location": "/outpost.goauthentik.io/start?rd=x"}, "music.example.org/outpost"),
        (307, {"Location": "https://auth.example.org/?rd=x"}, "https://auth.example.org/"),
        (401, {}, "HTTP 401"),
        (403, {}, "HTTP 403"),
    ],
)
def test_a_sign_in_of_the_edge_is_recognized(
    status: int, headers: dict[str, str], detail: str
) -> None:
    found = read(status, **headers)
    assert isinstance(found, SignIn)
    assert detail in found.detail
    assert "rd=" not in found.detail


@pytest.mark.parametrize(
    ("status", "body", "headers", "detail", "remedy"),
    [
        (301, "", {"Location": f"https://www.x.org{PROBE[25:]}"}, "redirects", "https://www.x.org"),
        (404, "404 page not found", {"Content_Type": "text/plain"}, "another server", "SHIM_PUBLIC_URL"),
        (200, "<html>", {"Content_Type": "text/html; charset=utf-8"}, "HTTP 200, text/html", "users"),
        (200, "[1]", {}, "no content type", "users"),
        (200, json.dumps({**ARRIVED, EDGE_PROBE_MARK: 2}), {}, "another server", "users"),
        (200, json.dumps({EDGE_PROBE_MARK: 1}), {}, "another server", "users"),
        (502, "", {}, "HTTP 502", "SHIM_LISTEN"),
        (401, '{"subsonic-response":{}}', {}, "Navidrome or another", "never to Navidrome itself"),
        (404, "404 page not found", NAVIDROME, "Navidrome or another", "never to Navidrome itself"),
        (302, "", {"Location": "/music/app/", **NAVIDROME}, "Navidrome or another", "to this shim"),
    ],
)  # fmt: skip
def test_another_servers_response_is_recognized(
    status: int, body: str, headers: dict[str, str], detail: str, remedy: str
) -> None:
    found = read(status, body, **headers)
    assert isinstance(found, NotReached)
    assert detail in found.detail
    assert remedy in found.remedy


def test_an_edge_without_a_fault_has_only_good_checks() -> None:
    found = evaluate_results(
        URL, {"/rest/": RouteResults(FINE, FINE), "/share/": RouteResults(FINE, FINE)}
    )
    assert {check.state for check in found.checks} == {State.OK}
    assert [check.name for check in found.checks] == [
        "public_url",
        "public_routes",
        "edge_trusted",
        "edge_headers",
        "edge_aliases",
        "edge_secret",
    ]
    assert found.not_checked == ()


def arrived(
    *, trusted: bool = True, forwarded: bool = True, headers: str = "", secret: str = "absent"
) -> Arrived:
    return Arrived("172.20.0.2", trusted, forwarded, tuple(headers.split()), (), secret)


@pytest.mark.parametrize(
    ("result", "name", "state", "detail", "remedy"),
    [
        (
            arrived(trusted=False),
            "edge_trusted",
            State.FAILING,
            "172.20.0.2, which is not trusted",
            "Add 172.20.0.2 to SHIM_REVERSE_PROXY_WHITELIST",
        ),
        (
            arrived(trusted=False, forwarded=False),
            "edge_trusted",
            State.FAILING,
            "172.20.0.2",
            "SHIM_PUBLIC_URL leads to the edge",
        ),
        (
            arrived(headers="Remote-User"),
            "edge_headers",
            State.WARNING,
            "identity headers on /share/: Remote-User",
            "navidrome-no-identity",
        ),
        (
            arrived(secret="valid"),
            "edge_secret",
            State.FAILING,
            "the secret on /share/",
            "only on the edge's route with the sign-in",
        ),
        (arrived(secret="wrong"), "edge_secret", State.FAILING, "another value", "only on"),
        (arrived(secret="unexpected"), "edge_secret", State.FAILING, "is not set", "only on"),
    ],
)
def test_a_fault_of_one_route_is_named(
    result: Arrived, name: str, state: State, detail: str, remedy: str
) -> None:
    check = checks_of(RouteResults(FINE, FINE), RouteResults(result, FINE))[name]
    assert check.state is state
    assert check.remedy is not None
    assert detail in check.detail
    assert remedy in check.remedy


@pytest.mark.parametrize(
    ("aliases", "state", "detail"),
    [
        (("X_authentik_username", "X~authentik~username"), State.WARNING, "on /rest/: X_authentik"),
        (("X.authentik.username",), State.WARNING, "X.authentik.username arrived"),
        (("X~authentik~username",), State.OK, "those with ~ arrive"),
        ((), State.OK, "deletes header aliases"),
    ],
)
def test_aliases_that_programs_accept_are_a_fault(
    aliases: tuple[str, ...], state: State, detail: str
) -> None:
    passed = Arrived("172.20.0.2", True, True, (), aliases)
    check = checks_of(RouteResults(FINE, passed))["edge_aliases"]
    assert check.state is state
    assert detail in check.detail


@pytest.mark.parametrize(
    ("server", "remedy"), [("nginx", "underscores_in_headers"), ("Caddy", "request_header"), ("", "Traefik")]
)  # fmt: skip
def test_the_remedy_is_that_of_the_edge_if_it_shows_its_name(server: str, remedy: str) -> None:
    passed = Arrived("172.20.0.2", True, True, (), ("X_authentik_uid",), "absent", server)
    check = checks_of(RouteResults(FINE, passed))["edge_aliases"]
    assert check.remedy is not None
    assert remedy in check.remedy
    assert ("Traefik" in check.remedy) is (server == "")


def test_an_edge_that_rejects_aliases_lets_none_through() -> None:
    rejected = NotReached("another server responded (HTTP 400, text/html)", "")
    check = checks_of(RouteResults(FINE, rejected))["edge_aliases"]
    assert check.state is State.OK


def test_a_sign_in_on_the_subsonic_api_is_a_failure_and_nothing_else_is_claimed() -> None:
    closed = RouteResults(SignIn("redirect to https://auth.example.org/"))
    found = evaluate_results(URL, {"/rest/": closed, "/share/": closed})
    [check] = found.checks
    assert (check.name, check.state) == ("public_routes", State.FAILING)
    assert "/rest/ (redirect to https://auth.example.org/)" in check.detail
    assert "apps cannot sign in" in check.detail
    assert "no request reached this shim" in found.not_checked[0]


def test_a_sign_in_on_another_public_path_is_a_warning() -> None:
    found = evaluate_results(
        URL, {"/rest/": RouteResults(FINE, FINE), "/share/": RouteResults(SignIn("x"))}
    )
    states = {check.name: check.state for check in found.checks}
    assert states["public_routes"] is State.WARNING
    assert states["public_url"] is State.OK
    assert found.not_checked == ("what the edge lets through on /share/",)


def test_a_route_to_another_server_is_a_warning() -> None:
    lost = RouteResults(NotReached("another server responded (HTTP 404, text/plain)", ""))
    check = checks_of(RouteResults(FINE, FINE), lost)["public_routes"]
    assert check.state is State.WARNING
    assert "/share/: another server" in check.detail


@pytest.mark.parametrize(("connected", "state"), [(True, State.FAILING), (False, State.WARNING)])
def test_a_url_that_leads_elsewhere_is_one_check_with_its_remedy(
    connected: bool, state: State
) -> None:
    found = evaluate_results(
        URL, {"/rest/": RouteResults(NotReached("why", "what to do", connected))}
    )
    [check] = found.checks
    assert check == Check(
        "public_url", state, f"{URL} does not lead to this shim: why", "what to do"
    )
    assert found.not_checked


FORGED = Arrived("172.20.0.2", True, True, ("Remote-User",), (), "valid", forged=True)


def protected(result: Result, proof: str = "secret") -> Check | None:
    """Return the check of the routes with a sign-in, if there is one."""
    found = evaluate_results(
        URL, {"/rest/": RouteResults(FINE, FINE), PROTECTED: RouteResults(result)}, proof
    )
    assert PROTECTED not in "".join(c.detail for c in found.checks if c.name != "protected_routes")
    return {check.name: check for check in found.checks}.get("protected_routes")


@pytest.mark.parametrize(
    ("result", "proof", "state", "detail"),
    [
        (SignIn("HTTP 401"), "secret", State.OK, "asks for a sign-in on /api/ (HTTP 401)"),
        (FORGED, "secret", State.FAILING, "everybody can be any user"),
        (FORGED, "none", State.FAILING, "everybody can be any user"),
        (replace(FORGED, secret="absent"), "none", State.FAILING, "everybody can be any user"),
        (replace(FORGED, secret="unexpected"), "none", State.FAILING, "everybody can be any user"),
        (FORGED, "token", State.WARNING, "arrived there"),
        (replace(FORGED, secret="absent"), "secret", State.WARNING, "arrived there"),
        (replace(FORGED, secret="wrong"), "secret", State.WARNING, "arrived there"),
        (replace(FORGED, peer_trusted=False), "secret", State.WARNING, "arrived there"),
        (FINE, "secret", State.WARNING, "are removed there"),
        (replace(FINE, secret="valid"), "secret", State.WARNING, "Navidrome's own login"),
        (replace(FINE, headers=("Tailscale-User-Login",)), "none", State.OK, "for this machine"),
    ],
)
def test_a_request_without_a_session_to_a_route_with_a_sign_in(
    result: Result, proof: str, state: State, detail: str
) -> None:
    check = protected(result, proof)
    assert check is not None
    assert (check.state, detail in check.detail) == (state, True), check
    assert (check.remedy is None) is (state is State.OK)


def test_a_route_with_a_sign_in_that_leads_to_navidrome_itself_is_a_failure() -> None:
    found = read(401, '{"subsonic-response":{}}')
    check = protected(found)
    assert check is not None
    assert check.state is State.FAILING
    assert "gets around this shim" in check.detail
    assert check.remedy is not None and "never to Navidrome itself" in check.remedy


def test_a_sign_in_page_with_status_200_is_no_finding() -> None:
    assert protected(read(200, "<html>", Content_Type="text/html")) is None


def test_a_sign_in_on_the_manifest_is_a_warning_that_names_its_effect() -> None:
    found = evaluate_results(
        URL, {"/rest/": RouteResults(FINE, FINE), MANIFEST: RouteResults(SignIn("x"))}
    )
    check = {check.name: check for check in found.checks}["public_routes"]
    assert check.state is State.WARNING
    assert "cannot be installed" in check.detail
    assert check.remedy is not None
    assert "SHIM_PUBLIC_PATHS" not in check.remedy
