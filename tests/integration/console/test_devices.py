"""A person adds a device in a browser, types its password into an app, and revokes it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from libopensonic import AsyncConnection
from libopensonic.errors import CredentialError
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import observed_page
from tests.support.demo_run import FinishedDemo

NAME = "<img src=x onerror=alert(1)> phone"


@pytest.fixture(params=[True, False], ids=["with scripts", "without scripts"])
def person(request: pytest.FixtureRequest, browser: Browser, demo: FinishedDemo) -> Iterator[Page]:
    """The own page of somebody who is no administrator."""
    cookies = demo.cookies_of("alice")
    with observed_page(browser, demo.host, cookies=cookies, scripts=request.param) as found:
        found.page.goto(f"{demo.url}/")
        yield found.page
        assert not found.dialogs
        assert not found.foreign


def use(server: str, user: str, password: str) -> bool:
    """Sign in with py-opensonic as an app does, and return whether the server accepts it."""

    async def visit() -> bool:
        address = urlsplit(server)
        app = AsyncConnection(f"http://{address.hostname}", user, password, address.port)
        try:
            albums = await app.get_album_list2("alphabeticalByName", size=5)
        except CredentialError:
            return False
        else:
            return bool(albums)
        finally:
            await app.cleanup()

    # The browser has an event loop in this thread.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, visit()).result(30)


def test_a_person_adds_a_device_uses_it_in_an_app_and_revokes_it(
    person: Page, demo: FinishedDemo
) -> None:
    page = person
    expect(page.get_by_role("navigation", name="Console")).to_have_count(0)
    page.get_by_label("Name").fill(NAME)
    page.get_by_label("The password works").select_option("30 days")
    page.get_by_role("button", name="Add the device").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{NAME} was added")
    server, user, password = (
        page.locator(f"#{each}").inner_text() for each in ("server", "user", "secret")
    )
    assert (server, user) == (demo.environment.edge.url, "alice")
    expect(page.get_by_role("img", name="QR code of the password")).to_be_visible()
    assert use(server, user, password)
    assert not use(server, user, password[:-1] + ("a" if password[-1] != "a" else "b"))

    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("sent before")
    assert password not in page.content()
    page.goto(f"{demo.url}/")
    row = page.get_by_role("row").filter(has_text=NAME)
    expect(row).to_have_count(1)
    expect(row).to_contain_text("from 127.")
    row.get_by_role("link", name="Revoke").click()
    page.get_by_role("button", name="Revoke the device").click()
    expect(page.get_by_role("status")).to_contain_text("revoked")
    expect(page.get_by_text(NAME)).to_have_count(0)
    assert not use(server, user, password)


def test_the_button_copies_the_password(browser: Browser, demo: FinishedDemo) -> None:
    with observed_page(browser, demo.host, cookies=demo.cookies_of("alice")) as found:
        page = found.page
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.goto(f"{demo.url}/")
        page.get_by_label("Name").fill("To copy")
        page.get_by_role("button", name="Add the device").click()
        page.get_by_role("button", name="Copy the password").click()
        expect(page.get_by_role("button", name="Copied the password")).to_be_visible()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == page.locator("#secret").inner_text()


def test_an_administrator_revokes_the_device_of_somebody_else(
    browser: Browser, demo: FinishedDemo
) -> None:
    with observed_page(browser, demo.host, cookies=demo.cookies_of("alice")) as theirs:
        theirs.page.goto(f"{demo.url}/")
        theirs.page.get_by_label("Name").fill("Lost phone")
        theirs.page.get_by_role("button", name="Add the device").click()
        password = theirs.page.locator("#secret").inner_text()
    assert use(demo.environment.edge.url, "alice", password)
    with observed_page(browser, demo.host, cookies=demo.cookies) as found:
        page = found.page
        page.goto(f"{demo.url}/admin/accounts")
        page.get_by_role("row", name="alice").get_by_role("link", name="Devices").click()
        expect(page.get_by_role("button", name="Add")).to_have_count(0)
        page.get_by_role("row").filter(has_text="Lost phone").get_by_role(
            "link", name="Revoke"
        ).click()
        page.get_by_role("button", name="Revoke the device").click()
        expect(page.get_by_role("status")).to_contain_text("revoked")
        page.goto(f"{demo.url}/admin/trail?kind=admin_action")
        expect(page.locator(".event").first).to_contain_text("device.revoke")
    assert not use(demo.environment.edge.url, "alice", password)
