"""Authorization in the control plane over real sockets: sessions, CSRF, DNS rebinding, the edge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.integration.control.conftest import TOKEN, Deployment, start_deployment
from tests.support.shim_settings import eventually

WRITES = {
    "/api/reload": None,
    "/api/edge-probe": {"prefix": "/rest/"},
    "/api/accounts/sync": {"account": "ada"},
    "/api/accounts/lock": {"account": "nobody"},
    "/api/accounts/unlock": {"account": "nobody"},
    "/api/accounts/unlink": {"account": "nobody"},
}
OPEN_TO_THIS_MACHINE = {"/api/reload", "/api/edge-probe"}
# Done, unknown account, or nothing to do: the request was authorized.
ADMITTED = {200, 404, 409}


@contextmanager
def signed_in(deployment: Deployment) -> Iterator[httpx.Client]:
    with deployment.client() as client:
        response = client.post("/sign-in", data={"token": TOKEN, "next": "/api/session"})
        assert response.status_code == 303, response.text
        assert response.headers["location"] == "/api/session"
        cookie = response.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "max-age=43200" in cookie
        assert "secure" not in cookie
        yield client


@pytest.mark.parametrize("path", WRITES)
def test_a_write_requires_the_token_or_a_session_with_its_csrf_token(
    deployment: Deployment, path: str
) -> None:
    body = WRITES[path]
    with deployment.client() as anonymous:
        assert anonymous.post(path, json=body).status_code == 401
    with deployment.operator() as operator:
        assert operator.post(path, json=body).status_code in ADMITTED
    with signed_in(deployment) as client:
        assert client.post(path, json=body).status_code == 403
        token = client.get("/api/session").json()["csrf_token"]
        header = {"X-CSRF-Token": token}
        assert client.post(path, json=body, headers=header).status_code in ADMITTED
        foreign = {**header, "Origin": "https://evil.example"}
        assert client.post(path, json=body, headers=foreign).status_code == 403
        same_site = {**header, "Sec-Fetch-Site": "same-site"}
        assert client.post(path, json=body, headers=same_site).status_code == 403


@pytest.mark.parametrize("path", WRITES)
def test_a_write_with_another_host_name_of_this_machine_is_rejected(
    deployment: Deployment, deployment_without_token: Deployment, path: str
) -> None:
    rebound = {"Host": "evil.example:4535", "Origin": "http://evil.example:4535"}
    with signed_in(deployment) as client:
        token = client.get("/api/session").json()["csrf_token"]
        headers = {**rebound, "X-CSRF-Token": token, "Cookie": cookie_of(client)}
        response = client.post(path, json=WRITES[path], headers=headers)
        assert response.status_code == 421
    with deployment_without_token.client() as local:
        assert local.post(path, json=WRITES[path], headers=rebound).status_code == 421


def cookie_of(client: httpx.Client) -> str:
    return "; ".join(f"{name}={value}" for name, value in client.cookies.items())


@pytest.mark.parametrize("path", WRITES)
def test_an_administrator_at_the_edge_can_write_with_a_csrf_token(
    deployment: Deployment, path: str
) -> None:
    body = WRITES[path]
    with deployment.edge("boss", "admins") as boss, deployment.edge("root", "admins") as root:
        assert boss.post(f"/_shim{path}", json=body).status_code == 403
        header = {"X-CSRF-Token": boss.get("/_shim/api/session").json()["csrf_token"]}
        assert boss.post(f"/_shim{path}", json=body, headers=header).status_code in ADMITTED
        # The token is bound to the uid.
        assert root.post(f"/_shim{path}", json=body, headers=header).status_code == 403
        foreign = {**header, "Sec-Fetch-Site": "cross-site"}
        assert boss.post(f"/_shim{path}", json=body, headers=foreign).status_code == 403
    with deployment.edge("eve", "users") as eve:
        assert eve.post(f"/_shim{path}", json=body, headers=header).status_code == 404


@pytest.mark.parametrize("path", ["/", "/metrics", "/readyz", "/api/session", "/api/accounts"])
def test_without_proof_an_admin_group_grants_no_access_at_the_edge(
    deployment: Deployment, path: str
) -> None:
    with deployment.edge("boss", "admins") as boss:
        del boss.headers["X-Shim-Proxy-Secret"]
        assert boss.get(f"/_shim{path}").status_code == 404


def test_the_session_endpoint_names_the_user(
    deployment: Deployment, deployment_without_token: Deployment
) -> None:
    with deployment.edge("zoe", "admins", uid="u-9") as zoe:
        zoe.headers.encoding = "utf-8"
        zoe.headers["X-authentik-username"] = "Zoë"
        session = zoe.get("/_shim/api/session").json()
    assert (session["actor"], session["uid"], session["may_write"]) == ("console:Zoë", "u-9", True)
    with deployment_without_token.client() as local:
        session = local.get("/api/session").json()
    assert session == {
        "actor": "loopback",
        "uid": None,
        "may_write": False,
        "may_reload": True,
        "csrf_token": None,
    }


@pytest.mark.parametrize("path", sorted(WRITES.keys() - OPEN_TO_THIS_MACHINE))
def test_without_a_token_this_machine_cannot_write(
    deployment_without_token: Deployment, path: str
) -> None:
    with deployment_without_token.client() as local:
        response = local.post(path, json=WRITES[path])
    assert response.status_code == 403
    assert "SHIM_CONTROL_TOKEN" in response.json()["detail"]


def test_without_a_token_this_machine_can_reload_and_a_browser_needs_csrf(
    deployment_without_token: Deployment,
) -> None:
    with deployment_without_token.client() as local:
        assert local.post("/api/reload").status_code == 200
        browser = {"Sec-Fetch-Site": "same-origin"}
        assert local.post("/api/reload", headers=browser).status_code == 403
        token = local.get("/api/session", headers=browser).json()["csrf_token"]
        allowed = {**browser, "X-CSRF-Token": token}
        assert local.post("/api/reload", headers=allowed).status_code == 200


def test_the_right_token_is_accepted_from_an_address_with_too_many_wrong_ones(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A proxy in front of the listener makes the address of all clients the same."""
    with start_deployment(tmp_path_factory.mktemp("limited")) as own:
        for number in range(8):
            with own.client(Authorization=f"Bearer wrong-{number}") as guesser:
                response = guesser.get("/api/session")
                assert response.status_code == (401 if number < 5 else 429)
                assert ("retry-after" in response.headers) == (number >= 5)
        with own.operator() as operator:
            assert operator.get("/api/session").status_code == 200
            assert operator.get("/healthz", headers={"Host": "evil.example"}).status_code == 200
        with own.client() as browser:
            page = browser.post("/sign-in", data={"token": "wrong-9"})
            assert page.status_code == 429
        with signed_in(own) as client:
            assert client.get("/api/session").status_code == 200


def test_signing_out_ends_the_session(deployment: Deployment) -> None:
    with signed_in(deployment) as client:
        old_cookie = cookie_of(client)
        token = client.get("/api/session").json()["csrf_token"]
        assert client.post("/sign-out").status_code == 403
        response = client.post("/sign-out", data={"csrf_token": token})
        assert response.status_code == 303
        assert "max-age=0" in response.headers["set-cookie"].lower()
    with deployment.client(Cookie=old_cookie) as copy:
        assert copy.get("/api/session").status_code == 401


@pytest.mark.parametrize(
    "target", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:1", "\t/x"]
)
def test_a_sign_in_redirects_to_no_other_site(deployment: Deployment, target: str) -> None:
    with deployment.client() as client:
        response = client.post("/sign-in", data={"token": TOKEN, "next": target})
    assert response.headers["location"] == "/"


def test_the_session_key_is_in_the_database(deployment: Deployment) -> None:
    import sqlite3

    def keys() -> int:
        connection = sqlite3.connect(deployment.folder / "shim.db")
        try:
            row = connection.execute("SELECT count(*) FROM control_keys").fetchone()
            return int(row[0])
        finally:
            connection.close()

    eventually(keys, 1)


def test_no_response_names_the_server_program(deployment: Deployment) -> None:
    deployment.visit("root", "admins")
    with deployment.client() as anonymous, deployment.operator() as operator:
        responses = [anonymous.get("/healthz"), operator.get("/metrics"), operator.get("/admin/")]
    with deployment.edge("root", "admins") as root:
        responses += [root.get("/_shim/"), root.get("/_shim/api/session")]
    assert [response.status_code for response in responses] == [200, 200, 200, 200, 200]
    assert not [
        response.headers["server"] for response in responses if "server" in response.headers
    ]


def test_a_long_body_is_rejected(deployment: Deployment) -> None:
    with deployment.operator() as operator:
        response = operator.post("/api/explain", content=b"x" * 40_000)
    assert response.status_code == 413
    with deployment.client() as anonymous:
        response = anonymous.post("/sign-in", data={"token": "x" * 40_000})
    assert response.status_code == 413
