"""Every page in both themes: accessible, on one host, small, and no wider than a phone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from tests.support.browser import Theme, observed_page
from tests.support.demo_run import FinishedDemo

MAX_WIRE_BYTES = 100_000


def click(*selectors: str) -> Callable[[Page], None]:
    def steps(page: Page) -> None:
        for selector in selectors:
            page.locator(selector).first.click()

    return steps


# The path of each page, and what to click there.
PAGES: dict[str, tuple[str, Callable[[Page], None]]] = {
    "overview": ("/admin/", click()),
    "overview of a year, with its table": ("/admin/?range=1y", click("main details summary")),
    "trail": ("/admin/trail", click()),
    "trail with filters": (
        "/admin/trail?verdict=stripped,rejected&since=2h",
        click("form details summary"),
    ),
    "trail without events": ("/admin/trail?user=nobody", click()),
    "trail with a wrong filter": ("/admin/trail?since=nonsense", click()),
    "event": ("/admin/trail?verdict=rejected", click(".event a", "main details summary")),
    "change": ("/admin/trail?kind=account_created", click(".event a")),
    "accounts": ("/admin/accounts", click()),
    "devices": ("/admin/devices", click()),
    "ended devices": ("/admin/devices?all=1", click()),
    "lock": ("/admin/accounts/lock?account=bert", click()),
    "sync": ("/admin/accounts/sync", click()),
    "unknown account": ("/admin/accounts/lock?account=nobody", click()),
    "explain": ("/admin/explain", click()),
    "explained": (
        "/admin/explain?peer=203.0.113.9&path=/app/&headers=X-authentik-username:%20admin",
        click("form[action=explain] button"),
    ),
    "configuration": ("/admin/configuration", click()),
    "no page": ("/admin/nothing", click()),
    "own page without an account": ("/", click()),
}


def add_a_device(page: Page) -> None:
    page.get_by_label("Name").fill("Phone")
    page.get_by_role("button", name="Add the device").click()


def open_first(action: str) -> Callable[[Page], None]:
    """Add a device, and open the page of an action on it."""

    def steps(page: Page) -> None:
        add_a_device(page)
        page.get_by_role("link", name="I have entered it").click()
        page.get_by_role("link", name=action).first.click()

    return steps


# The pages of a person who is no administrator, and has an account.
PERSON = "alice"
OWN_PAGES: dict[str, tuple[str, Callable[[Page], None]]] = {
    "own page": ("/", click()),
    "device added": ("/", add_a_device),
    "rename a device": ("/", open_first("Rename")),
    "revoke a device": ("/", open_first("Revoke")),
    "no device": ("/devices/0011/revoke", click()),
}
PAGES |= OWN_PAGES
THEMES: tuple[tuple[Theme, int], ...] = (("light", 1280), ("dark", 360))


@dataclass(frozen=True)
class Visit:
    """The result of one visit."""

    violations: str
    horizontal_overflow: int
    foreign: list[str]
    messages: list[str]
    dialogs: list[str]
    wire_bytes: int


@pytest.fixture(
    scope="package",
    params=[(name, *theme) for name in PAGES for theme in THEMES],
    ids=lambda each: f"{each[0]}-{each[1]}-{each[2]}",
)
def visit(request: pytest.FixtureRequest, browser: Browser, demo: FinishedDemo) -> Visit:
    name, theme, width = request.param
    path, steps = PAGES[name]
    cookies = demo.cookies_of(PERSON) if name in OWN_PAGES else demo.cookies
    with observed_page(browser, demo.host, theme=theme, width=width, cookies=cookies) as found:
        found.page.goto(demo.url + path)
        wire_bytes = found.wire_bytes
        steps(found.page)
        found.page.wait_for_load_state("networkidle")
        checked = Axe().run(found.page)
        violations = checked.generate_report() if checked.violations_count else ""
        return Visit(
            violations,
            found.horizontal_overflow,
            found.foreign,
            [text for text in found.messages if "status of 4" not in text],
            found.dialogs,
            wire_bytes,
        )


def test_axe_reports_no_violation(visit: Visit) -> None:
    assert not visit.violations, visit.violations


def test_nothing_is_loaded_from_another_host(visit: Visit) -> None:
    assert not visit.foreign


def test_the_browser_console_has_no_errors(visit: Visit) -> None:
    assert not visit.messages
    assert not visit.dialogs


def test_a_page_with_all_its_files_is_small(visit: Visit) -> None:
    assert 0 < visit.wire_bytes <= MAX_WIRE_BYTES


def test_a_page_is_no_wider_than_the_window(visit: Visit) -> None:
    assert visit.horizontal_overflow <= 0
