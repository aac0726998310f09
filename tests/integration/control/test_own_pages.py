"""A person's own pages through the data plane: what they show, what they change, and what nobody else can."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from shim.audit.events import Operator
from shim.devices.factory import build_device_service
from shim.settings import load
from shim.store.database import Database
from tests.integration.control.conftest import Deployment, start_deployment
from tests.support.shim_process import EDGE, run_shim

_FIELD = re.compile(r'name="(csrf_token|form_key)" value="([^"]+)"')
_SECRET = re.compile(r'id="secret" class="secret">([^<]+)<')
_DEVICE = re.compile(r'href="devices/([0-9a-f]+)/revoke"')
HTML = {"Accept": "text/html"}
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A shim with two people who have accounts."""
    sign_out = "https://sso.example.com/sign-out?a=b&c"
    with start_deployment(tmp_path_factory.mktemp("own"), SIGN_OUT_URL=sign_out) as running:
        running.visit("ada", "users")
        running.visit("bob", "users")
        yield running


def form_of(client: httpx.Client, path: str = "/_shim/") -> dict[str, str]:
    """Return the hidden fields of the form on a page."""
    response = client.get(path, headers=HTML)
    assert response.status_code == 200, response.text
    return dict(_FIELD.findall(response.text))


def add(client: httpx.Client, name: str, **fields: str) -> httpx.Response:
    return client.post("/_shim/devices/add", data={**form_of(client), "name": name, **fields})


def password(response: httpx.Response) -> str:
    found = _SECRET.search(response.text)
    assert found is not None, response.text
    return found[1]


def devices(client: httpx.Client) -> list[str]:
    """Return the ids of a person's devices, as its page lists them."""
    return _DEVICE.findall(client.get("/_shim/", headers=HTML).text)


def app_error(deployment: Deployment, user: str, secret: str) -> int | None:
    """Return the error of a Subsonic request with this password, None if it is accepted."""
    query = {"u": user, "p": secret, "v": "1.16.1", "c": "app", "f": "json"}
    with httpx.Client(transport=httpx.HTTPTransport(local_address=EDGE)) as client:
        url = f"http://{deployment.shim.host}:{deployment.shim.port}/rest/ping"
        content: dict[str, Any] = client.get(url, params=query).json()["subsonic-response"]
    return None if content["status"] == "ok" else int(content["error"]["code"])


def test_a_person_adds_a_device_renames_and_revokes_it(own: Deployment) -> None:
    with own.edge("ada") as ada:
        added = add(ada, "Ada’s phone", days="30")
        assert added.status_code == 200 and added.headers["cache-control"] == "no-store"
        secret = password(added)
        assert "music.example.com" in added.text and "<svg" in added.text
        assert app_error(own, "ada", secret) is None
        page = ada.get("/_shim/", headers=HTML).text
        assert "Ada’s phone" in page and secret not in page
        (device,) = devices(ada)
        path = f"/_shim/devices/{device}"
        renamed = ada.post(
            f"{path}/rename", data={**form_of(ada, f"{path}/rename"), "name": "Tablet"}
        )
        assert renamed.status_code == 303
        assert "Tablet" in ada.get("/_shim/", headers=HTML).text
        revoked = ada.post(f"{path}/revoke", data=form_of(ada, f"{path}/revoke"))
        assert revoked.status_code == 303
        following = revoked.headers["location"]
        assert following.startswith("../../?done=revoked&shown=")
        page = ada.get(f"/_shim/{following.removeprefix('../../')}", headers=HTML).text
        assert "The device is revoked." in page
        assert devices(ada) == []
        assert ada.post(f"{path}/revoke", data=form_of(ada)).status_code == 404
    assert app_error(own, "ada", secret) == 40
    for action in ("device.add", "device.rename", "device.revoke"):
        line = own.shim.wait_for_line(kind="admin_action", action=action)
        assert (line["actor"], line["origin"], line["target"]) == ("console:ada", "console", "ada")
    assert own.shim.wait_for_line(kind="device_added")["device_name"] == "Ada’s phone"
    with own.operator() as operator:
        stored = operator.get("/api/audit/events", params={"kind": "device_added"}).json()
    assert secret not in str(stored) and stored["events"]


def test_a_person_sees_who_the_shim_thinks_it_is(own: Deployment) -> None:
    with own.edge("ada", "users", "choir") as ada:
        page = ada.get("/_shim/", headers=HTML).text
    for text in ("uid-of-ada", "ada@example.com", "choir", "user of the music server", "Jellyfin"):
        assert text in page
    assert 'href="https://sso.example.com/sign-out?a=b&amp;c"' in page
    assert "admin/" not in page


def test_a_form_that_is_sent_again_adds_nothing(own: Deployment) -> None:
    with own.edge("bob") as bob:
        form = {**form_of(bob), "name": "Player"}
        first = bob.post("/_shim/devices/add", data=form)
        again = bob.post("/_shim/devices/add", data=form, headers=HTML)
        assert (first.status_code, again.status_code) == (200, 409)
        assert password(first) not in again.text and "sent before" in again.text
        (device,) = devices(bob)
        bob.post(f"/_shim/devices/{device}/revoke", data=form_of(bob))
        assert bob.post("/_shim/devices/add", data=form).status_code == 409
        assert devices(bob) == []


def test_the_key_of_a_form_is_needed_and_belongs_to_one_person(own: Deployment) -> None:
    with own.edge("ada") as ada, own.edge("bob") as bob:
        form = form_of(ada)
        for key in ("", "1.2.3", form_of(bob)["form_key"]):
            response = ada.post("/_shim/devices/add", data={**form, "form_key": key, "name": "X"})
            assert response.status_code == 403
        assert devices(ada) == devices(bob) == []


def test_nobody_sees_or_changes_the_device_of_somebody_else(own: Deployment) -> None:
    with own.edge("ada") as ada, own.edge("bob") as bob:
        secret = password(add(ada, "Mine alone"))
        (device,) = devices(ada)
        assert "Mine alone" not in bob.get("/_shim/", headers=HTML).text
        for action in ("rename", "revoke"):
            path = f"/_shim/devices/{device}/{action}"
            assert bob.get(path, headers=HTML).status_code == 404
            assert bob.post(path, data={**form_of(bob), "name": "Taken"}).status_code == 404
        assert devices(ada) == [device]
        assert "Mine alone" in ada.get("/_shim/", headers=HTML).text
        assert app_error(own, "ada", secret) is None
        ada.post(f"/_shim/devices/{device}/revoke", data=form_of(ada))


def test_a_person_with_the_same_name_and_another_uid_sees_nothing(own: Deployment) -> None:
    with own.edge("ada") as ada, own.edge("ada", uid="another") as other:
        add(ada, "Mine alone")
        (device,) = devices(ada)
        page = other.get("/_shim/", headers=HTML).text
        assert "Mine alone" not in page and "form_key" not in page
        assert other.get(f"/_shim/devices/{device}/revoke").status_code == 404
        ada.post(f"/_shim/devices/{device}/revoke", data=form_of(ada))


def test_the_same_uid_of_another_provider_is_another_person(tmp_path: Path) -> None:
    with start_deployment(tmp_path) as first, first.edge("ada") as ada:
        first.visit("ada", "users")
        assert add(ada, "Phone").status_code == 200
        (device,) = devices(ada)
        port = int(first.settings["UPSTREAM"].rsplit(":", 1)[1])
        changed = {**first.settings, "UID_HEADER": "X-Sso-Uid"}
        del changed["UPSTREAM"]
        (tmp_path / "second").mkdir()
        with (
            run_shim(port, tmp_path / "second", **changed) as second,
            Deployment(second, tmp_path, changed).edge("ada") as other,
        ):
            other.headers["X-Sso-Uid"] = "uid-of-ada"
            assert devices(other) == []
            for action in ("rename", "revoke"):
                path = f"/_shim/devices/{device}/{action}"
                assert other.get(path).status_code == 404
                sent = {**form_of(ada), "name": "Mine"}  # Its token is valid for an equal uid.
                assert other.post(path, data=sent).status_code == 404
        assert devices(ada) == [device]


@pytest.mark.parametrize(
    "path",
    [
        "admin/",
        "admin/devices",
        "admin/accounts",
        "api/devices",
        "api/session",
        "metrics",
        "readyz",
        "without-slash",
        "sign-in",
        "devices/../admin/",
        "devices/%2e%2e/admin/",
        "static/../metrics",
    ],
)
def test_everything_else_is_not_there_for_a_person(own: Deployment, path: str) -> None:
    with own.edge("ada") as ada:
        # httpx would resolve `..` in the address.
        target = {"target": f"/_shim/{path}".encode()}
        response = ada.get("/_shim/", headers=HTML, extensions=target)
        assert response.status_code == (400 if ".." in path or "%2e" in path else 404)
        assert "Accounts" not in response.text and "shim_requests" not in response.text


WRITES = ("add", "{device}/rename", "{device}/revoke")


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ({}, ""),
        ({}, "1.abc"),
        ({"Sec-Fetch-Site": "cross-site"}, None),
        ({"Sec-Fetch-Site": "same-site"}, None),
        ({"Origin": "https://evil.example"}, None),
        ({"Origin": "null"}, None),
    ],
)
def test_no_other_site_can_make_a_browser_write(
    own: Deployment, write: str, headers: dict[str, str], token: str | None
) -> None:
    with own.edge("ada") as ada:
        add(ada, "Kept")
        (device,) = devices(ada)
        form = {**form_of(ada), "name": "Changed"}
        if token is not None:
            form["csrf_token"] = token
        path = f"/_shim/devices/{write.format(device=device)}"
        response = ada.post(path, data=form, headers=headers)
        assert response.status_code == 403
        assert devices(ada) == [device]
        assert "Changed" not in ada.get("/_shim/", headers=HTML).text
        ada.post(f"/_shim/devices/{device}/revoke", data=form_of(ada))
        assert devices(ada) == []


@pytest.mark.parametrize("write", ["/devices/add", "/devices/0011223344556677/revoke"])
def test_the_listener_has_no_pages_of_a_person(own: Deployment, write: str) -> None:
    with own.operator() as operator:
        assert operator.get("/", headers=HTML).headers["location"] == "/admin/"
        assert operator.post(write, data={"name": "X"}).status_code == 404
    with own.client(Host="evil.example") as rebound:
        assert rebound.get("/", headers=HTML).status_code == 421
        assert rebound.post(write, data={"name": "X"}).status_code == 421
        assert rebound.post("/api/devices/revoke", json={"id": "1"}).status_code == 421


def test_texts_of_attackers_are_text_or_are_rejected(own: Deployment) -> None:
    with own.edge("ada") as ada, own.edge("root", "admins") as root:
        root.get("/app/")
        assert add(ada, SCRIPT).status_code == 200
        page = ada.get("/_shim/", headers=HTML).text
        assert SCRIPT not in page and "&lt;script&gt;" in page
        assert SCRIPT not in root.get("/_shim/admin/devices", headers=HTML).text
        (device,) = devices(ada)
        for name in ("", "   ", "x" * 65, "a\nb", "\u202egnp.exe", "\x1b[31m"):
            refused = add(ada, name)
            assert refused.status_code == 400 and 'role="alert"' in refused.text
        assert add(ada, "Phone", days="3650").status_code == 400
        assert add(ada, "Phone", days="-1").status_code == 400
        assert devices(ada) == [device]
        ada.post(f"/_shim/devices/{device}/revoke", data=form_of(ada))


def test_somebody_without_an_account_adds_nothing(own: Deployment) -> None:
    with own.edge("newcomer") as client, own.edge("ada") as ada:
        page = client.get("/_shim/", headers=HTML)
        assert page.status_code == 200 and "no account" in page.text
        assert "form_key" not in page.text and "newcomer" in page.text
        assert client.get("/_shim", headers=HTML).headers["location"] == "/_shim/"
        form = {**form_of(ada), "name": "X"}
        assert client.post("/_shim/devices/add", data=form).status_code == 403


def test_a_locked_account_shows_why_it_has_no_devices(own: Deployment) -> None:
    own.visit("carol", "users")
    with own.edge("carol") as carol, own.operator() as operator:
        form, secret = form_of(carol), password(add(carol, "Phone"))
        assert app_error(own, "carol", secret) is None
        assert operator.post("/api/accounts/lock", json={"account": "carol"}).status_code == 200
        page = carol.get("/_shim/", headers=HTML).text
        assert "Your account is locked. Open the music server once" in page
        refused = carol.post("/_shim/devices/add", data={**form, "name": "Again"})
        assert refused.status_code == 409 and "locked" in refused.text
    assert app_error(own, "carol", secret) == 40


def test_an_administrator_lists_and_revokes_everybodys_and_adds_none(own: Deployment) -> None:
    own.visit("root", "admins")
    with own.edge("ada") as ada, own.edge("root", "admins") as root, own.operator() as operator:
        first, second = password(add(ada, "One")), password(add(ada, "Two"))
        listed = operator.get("/api/devices", params={"account": "ada"}).json()["devices"]
        ids = {each["name"]: each["id"] for each in listed}
        assert set(ids) == {"One", "Two"} and first not in str(listed)
        page = root.get("/_shim/admin/devices", headers=HTML).text
        assert "One" in page and "Two" in page and "form_key" not in page and first not in page
        assert "SHIM_DEVICE_SIGN_IN_DAYS" in page
        assert "SHIM_DEVICE_SIGN_IN_DAYS" in root.get("/_shim/admin/accounts", headers=HTML).text
        path = f"/_shim/admin/devices/{ids['One']}/revoke"
        assert root.post(path).status_code == 403
        done = root.post(path, data=form_of(root, path))
        assert done.status_code == 303
        following = done.headers["location"].removeprefix("../../devices")
        page = root.get(f"/_shim/admin/devices{following}", headers=HTML).text
        assert "The device is revoked." in page
        assert "The device is revoked." not in ada.get(f"/_shim/{following}", headers=HTML).text
        assert app_error(own, "ada", first) == 40
        body = {"id": ids["Two"]}
        assert operator.post("/api/devices/revoke", json=body).json() == {**body, "revoked": True}
        assert app_error(own, "ada", second) == 40
        assert operator.post("/api/devices/revoke", json=body).status_code == 404
        assert root.post(path, data=form_of(root, "/_shim/admin/configuration")).status_code == 404
        assert operator.post("/api/devices", json={"account": "ada"}).status_code == 405
        unknown = operator.get("/api/devices", params={"account": "nobody"})
        assert unknown.status_code == 404
        assert "No account named nobody is linked to a user" in unknown.json()["detail"]
    assert own.shim.wait_for_line(kind="device_revoked", reason="api")["actor"] == "token"


def test_twenty_devices_are_enough(own: Deployment) -> None:
    own.visit("dora", "users")
    with own.edge("dora") as dora:
        spare = form_of(dora)
        for number in range(20):
            assert add(dora, f"Device {number}").status_code == 200
        page = dora.get("/_shim/", headers=HTML).text
        assert "Revoke one before you add another" in page
        refused = dora.post("/_shim/devices/add", data={**spare, "name": "One more"})
        assert refused.status_code == 400 and "20 devices already" in refused.text
        assert len(devices(dora)) == 20


@contextmanager
def locked_trail(folder: Path) -> Iterator[None]:
    """Keep the shim from writing to the trail's database."""
    with closing(sqlite3.connect(folder / "audit.db", timeout=10, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


async def _added(deployment: Deployment, uid: str) -> str:
    """Add a device in a process beside the shim's, and return its password."""
    settings = load({f"SHIM_{name}": value for name, value in deployment.settings.items()})
    database = Database(deployment.settings["DATABASE_URL"])
    try:
        service = build_device_service(settings, lambda _: None, database)
        await service.load()
        return (await service.add(uid, "Phone", Operator("command:test", "command"))).secret
    finally:
        await asyncio.to_thread(database.close)


def test_while_nothing_can_be_recorded_devices_are_revoked_and_not_added(tmp_path: Path) -> None:
    trail = f"sqlite:///{tmp_path}/missing/audit.db"
    with start_deployment(tmp_path, AUDIT_DATABASE_URL=trail) as deployment:
        deployment.visit("ada", "users")
        secret = asyncio.run(_added(deployment, "uid-of-ada"))
        deadline = time.monotonic() + 20
        while app_error(deployment, "ada", secret) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with deployment.edge("ada") as ada:
            refused = add(ada, "Another")
            assert refused.status_code == 503
            assert "the audit trail can" in refused.text and 'value="Another"' in refused.text
            (device,) = devices(ada)
            assert app_error(deployment, "ada", secret) is None
            path = f"/_shim/devices/{device}/revoke"
            done = ada.post(path, data=form_of(ada, path))
            assert done.status_code == 200 and "only in the log" in done.text
            assert devices(ada) == []
        assert app_error(deployment, "ada", secret) == 40
        line = deployment.shim.wait_for_line(kind="admin_action", action="device.add")
        assert line["result"] == "refused"


def test_with_fail_mode_closed_no_device_is_accepted_while_nothing_can_be_stored(
    tmp_path: Path,
) -> None:
    with start_deployment(tmp_path, AUDIT_FAIL_MODE="closed") as deployment:
        deployment.visit("ada", "users")
        with deployment.edge("ada") as ada:
            secret = password(add(ada, "Phone"))
            assert app_error(deployment, "ada", secret) is None
            with locked_trail(tmp_path):
                deadline = time.monotonic() + 30
                while ada.get("/app/").status_code != 503:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                assert ada.get("/_shim/", headers=HTML).status_code == 503
                assert app_error(deployment, "ada", secret) == 0
                assert app_error(deployment, "ada", "wrong") == 40
        refused = deployment.shim.wait_for_line(kind="request_decision", reason="audit_unavailable")
        assert refused["verdict"] == "rejected"
