"""Headless Chromium from Debian, and a recorder of what a page does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Dialog, Page, Request, sync_playwright

Theme = Literal["light", "dark"]
# As root, as in CI, Chromium has no sandbox. The only pages are the shim's own.
_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run the browser. It has an event loop in this thread, so no asynchronous test may run meanwhile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=_ARGUMENTS
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class ObservedPage:
    """A page, and what it did: requests to other hosts, messages of the console, dialogs."""

    page: Page
    foreign: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    wire_bytes: int = 0

    @property
    def horizontal_overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        found: int = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        return found


@contextmanager
def observed_page(
    browser: Browser,
    host: str,
    *,
    theme: Theme = "light",
    width: int = 1280,
    scripts: bool = True,
    cookies: list[Any] | None = None,
    zone: str = "Europe/Vienna",
) -> Iterator[ObservedPage]:
    """Open an empty page in a context of its own. `host` is `name:port` of the pages under test."""
    context = browser.new_context(
        color_scheme=theme,
        viewport={"width": width, "height": 900},
        java_script_enabled=scripts,
        timezone_id=zone,
        locale="en-GB",
    )
    try:
        context.add_cookies(cookies or [])
        found = ObservedPage(context.new_page())

        def on_request(request: Request) -> None:
            address = urlsplit(request.url)
            if address.scheme in ("http", "https", "ws", "wss") and address.netloc != host:
                found.foreign.append(request.url)

        def on_dialog(dialog: Dialog) -> None:
            found.dialogs.append(dialog.message)
            dialog.dismiss()

        found.page.on("request", on_request)
        found.page.on("console", lambda message: found.messages.append(message.text))
        found.page.on("pageerror", lambda error: found.messages.append(str(error)))
        found.page.on("dialog", on_dialog)
        session = context.new_cdp_session(found.page)
        session.send("Network.enable")

        def on_finished(event: dict[str, Any]) -> None:
            found.wire_bytes += int(event["encodedDataLength"])

        session.on("Network.loadingFinished", on_finished)
        yield found
    finally:
        context.close()
