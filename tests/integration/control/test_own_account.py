"""An administrator changes the own account: the response arrives, and says what it means for the console."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.integration.control.conftest import Deployment

HTML = {"Accept": "text/html"}
_CSRF = re.compile(r'name="csrf_token" value="([^"]+)"')


def csrf(client: httpx.Client, path: str) -> tuple[str, str]:
    """Return the text of a page and the CSRF token in it."""
    page = client.get(path, headers=HTML)
    assert page.status_code == 200, page.text
    found = _CSRF.search(page.text)
    assert found is not None
    return page.text, found[1]


@pytest.mark.parametrize("action", ["lock", "unlink"])
def test_the_console_says_that_the_own_account_is_changed(
    deployment: Deployment, action: str
) -> None:
    name = f"boss-{action}"
    deployment.visit(name, "admins")
    with deployment.edge(name, "admins") as boss:
        path = f"/_shim/admin/accounts/{action}"
        plan, token = csrf(boss, f"{path}?account={name}")
        assert "This is your own account." in plan
        done = boss.post(path, data={"account": name, "csrf_token": token}, headers=HTML)
        assert done.status_code == 303, done.text
        page = boss.get(f"/_shim/admin/accounts/{done.headers['location']}", headers=HTML)
        assert page.status_code == 200
        assert re.search(rf"{name} is (locked|unlinked)\.", page.text)
        assert "This is your own account." in page.text


def test_the_api_responds_to_a_lock_of_the_own_account(deployment: Deployment) -> None:
    deployment.visit("boss-api", "admins")
    with deployment.edge("boss-api", "admins") as boss:
        header = {"X-CSRF-Token": boss.get("/_shim/api/session").json()["csrf_token"]}
        body = {"account": "boss-api"}
        done = boss.post("/_shim/api/accounts/lock", json=body, headers=header)
        assert (done.status_code, done.json()) == (200, {"account": "boss-api", "locked": True})


def test_another_persons_account_is_not_called_the_own_one(deployment: Deployment) -> None:
    deployment.visit("other-person")
    with deployment.edge("boss", "admins") as boss:
        plan, _ = csrf(boss, "/_shim/admin/accounts/lock?account=other-person")
    assert "own account" not in plan
