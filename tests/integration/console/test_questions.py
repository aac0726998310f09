"""An administrator's questions, answered by clicking; pages with and without scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from demo.environment import OUTSIDER
from tests.integration.console.conftest import EMOJI, FORMULA, IMAGE, SCRIPT
from tests.support.browser import observed_page
from tests.support.demo_run import FinishedDemo


@pytest.fixture
def page(browser: Browser, demo: FinishedDemo) -> Iterator[Page]:
    with observed_page(browser, demo.host, cookies=demo.cookies) as found:
        found.page.goto(f"{demo.url}/admin/")
        yield found.page
        assert not found.dialogs
        assert not found.foreign


@pytest.fixture
def plain(browser: Browser, demo: FinishedDemo) -> Iterator[Page]:
    """A browser without scripts."""
    with observed_page(browser, demo.host, cookies=demo.cookies, scripts=False) as found:
        found.page.goto(f"{demo.url}/admin/")
        yield found.page


def go(page: Page, name: str) -> None:
    page.get_by_role("navigation", name="Console").get_by_role("link", name=name).click()


# the three questions


def test_the_reason_of_a_rejected_user_is_found(page: Page) -> None:
    page.get_by_role("link", name=re.compile("Show the events: dirk got no account")).click()
    page.get_by_role("link", name="rejected dirk: GET").first.click()
    expect(page.locator(".outcome")).to_have_text(
        "The identity is in no group of SHIM_ALLOWED_GROUPS."
    )
    main = page.locator("main")
    expect(main).to_contain_text("Navidrome did not get the request")
    expect(main.get_by_role("heading", name="What to change")).to_be_visible()
    expect(main).to_contain_text("add them to a group of SHIM_ALLOWED_GROUPS")
    main.get_by_role("link", name="SHIM_ALLOWED_GROUPS").click()
    setting = page.locator("#SHIM_ALLOWED_GROUPS")
    expect(setting).to_contain_text("family,admins")
    expect(setting).to_contain_text("environment")


def test_the_origin_of_an_attack_is_found(page: Page) -> None:
    expect(page.locator("main")).to_contain_text(
        re.compile(r"\d+ requests claimed an identity without proof")
    )
    origins = page.locator("section", has=page.locator("#origins"))
    row = origins.locator("tr", has_text=OUTSIDER)
    expect(row).to_contain_text("untrusted_peer")
    row.get_by_role("link").click()
    events = page.locator(".event")
    assert events.count() >= 4
    for text in events.all_inner_texts():
        assert f"from {OUTSIDER}" in text


def test_the_shims_changes_in_navidrome_are_found(page: Page) -> None:
    page.get_by_role("link", name="30 days").click()
    page.get_by_role("link", name="All changes").click()
    page.get_by_label("Kind", exact=True).select_option("account_created")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator(".event")).to_contain_text(["The account carla.berg was created"])
    page.get_by_role("link", name=re.compile("^kind: account_created")).click()
    changes = page.locator(".events").inner_text()
    assert "carla" in changes
    assert "was linked to" in changes


# what the pages do


def test_try_this_request_gives_the_same_decision(page: Page) -> None:
    go(page, "Trail")
    page.get_by_label("Client").fill(OUTSIDER)
    page.get_by_role("button", name="Filter").click()
    page.get_by_role("link", name=f"stripped {FORMULA}").first.click()
    page.get_by_role("link", name="Try this request").click()
    expect(page.get_by_label("Headers")).to_have_value(
        re.compile(f"X-authentik-username: {re.escape(FORMULA)}")
    )
    page.get_by_role("button", name="Explain").click()
    decision = page.locator("section", has=page.locator("#decision"))
    expect(decision.locator(".outcome")).to_contain_text("stripped")
    expect(decision.locator(".steps > li").first).to_contain_text("Peer: not trusted")
    expect(decision.locator("pre")).to_contain_text("GET /")
    assert "X-authentik-username" not in decision.locator("pre").inner_text()


def test_the_trail_shows_who_locked_an_account(page: Page) -> None:
    go(page, "Accounts")
    page.get_by_role("link", name="Lock bert").click()
    expect(page.locator("main")).to_contain_text("The password of bert is replaced")
    page.get_by_role("button", name="Lock the account").click()
    expect(page.get_by_role("status").first).to_contain_text("bert is locked.")
    expect(page.locator("tr", has_text="bert").first).to_contain_text("locked")
    go(page, "Trail")
    page.get_by_role("link", name="Changes").click()
    expect(page.locator(".event").filter(has_text="users.lock").first).to_contain_text(
        "console:admin: users.lock bert, done"
    )


def test_the_settings_are_reloaded_and_the_trail_shows_by_whom(page: Page) -> None:
    go(page, "Configuration")
    page.get_by_role("button", name="Reload the settings").click()
    expect(page.get_by_role("status").first).to_contain_text("The settings are unchanged.")
    page.goto(page.url.replace("configuration", "trail?kind=admin_action&text=reload"))
    expect(page.locator(".event").first).to_contain_text("console:admin: reload")


def test_new_events_appear_while_the_trail_is_followed(page: Page, demo: FinishedDemo) -> None:
    go(page, "Trail")
    page.get_by_role("button", name="Follow new events").click()
    expect(page.locator("#live-note")).to_have_text("New events appear here as they happen.")
    transport = httpx.HTTPTransport(local_address=OUTSIDER)
    with httpx.Client(transport=transport, trust_env=False) as client:
        client.get(
            f"{demo.environment.shim.url}/app/live", headers={"X-authentik-username": "livia"}
        )
    expect(page.locator(".event.new", has_text="livia: GET /app/live")).to_be_visible(
        timeout=90_000
    )
    page.get_by_role("button", name="Stop following").click()
    expect(page.locator("#live-note")).to_have_text("")


def test_an_attackers_text_is_shown_and_has_no_effect(page: Page, demo: FinishedDemo) -> None:
    page.goto(f"{demo.url}/admin/trail?client={OUTSIDER}")
    shown = page.locator(".events").inner_text()
    for text in (SCRIPT, IMAGE.replace(" ", "%20"), FORMULA, EMOJI):
        assert text in shown, text
    assert not page.locator(".events script, .events img").count()
    assert not set(page.content()) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\x1b\x9b\x07")
    links = page.locator(".event a").all()
    assert links
    for link in links:
        address = link.get_attribute("href")
        assert address is not None
        inside = page.request.get(f"{demo.url}/admin/{address.removeprefix('../admin/')}")
        assert inside.status == 200
        assert SCRIPT not in inside.text()
        assert "\u202e" not in inside.text()


def test_times_are_in_the_readers_zone(page: Page, plain: Page, demo: FinishedDemo) -> None:
    times = []
    for each in (page, plain):
        each.goto(f"{demo.url}/admin/trail")
        first = each.locator(".event time").last
        times.append((first.get_attribute("datetime"), first.inner_text()))
    (moment, local), (same, utc) = times
    assert moment == same
    assert moment is not None
    assert utc == moment.replace("T", " ")[:19] + " UTC"
    hours = (int(local[11:13]) - int(utc[11:13])) % 24
    assert hours in (1, 2)  # Vienna
    expect(page.locator("#zone")).to_have_text("Times are in your zone, Europe/Vienna.")
    expect(plain.locator("#zone")).to_have_text("Times are in UTC.")


def test_without_scripts_filters_pages_and_changes_work(plain: Page) -> None:
    go(plain, "Trail")
    plain.get_by_label("Person").fill("DIRK")
    plain.get_by_role("button", name="Filter").click()
    assert "user=DIRK" in plain.url
    plain.get_by_role("link", name=re.compile("dirk got no account")).first.click()
    expect(plain.locator("main")).to_contain_text("In no group of SHIM_ALLOWED_GROUPS")
    expect(plain.get_by_role("button", name="Follow new events")).to_have_count(0)
    go(plain, "Accounts")
    plain.get_by_role("link", name="Lock alice").click()
    plain.get_by_role("button", name="Lock the account").click()
    expect(plain.get_by_role("status").first).to_contain_text("alice is locked.")


def test_the_keyboard_reaches_the_content_first(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="24 hours")).to_be_focused()


def test_on_this_machine_the_listener_is_read_only(browser: Browser, demo: FinishedDemo) -> None:
    host = demo.local.removeprefix("http://")
    with observed_page(browser, host) as found:
        found.page.goto(f"{demo.local}/")
        expect(found.page).to_have_title("Overview · navidrome-shim")
        go(found.page, "Accounts")
        expect(found.page.locator("main")).to_contain_text("Read only")
        expect(found.page.get_by_role("link", name="Lock carla.novak")).to_have_count(0)
        assert not found.foreign


def test_another_user_gets_no_console(browser: Browser, demo: FinishedDemo) -> None:
    with observed_page(browser, demo.host) as found:
        found.page.goto(f"{demo.environment.edge.url}/?user=alice")
        response = found.page.goto(f"{demo.url}/admin/")
        assert response is not None
        assert response.status == 404
        assert "Overview" not in found.page.content()
