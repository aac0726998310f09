"""`make screenshot`: the console after the demo, as the README shows it.

It needs Debian's package chromium, and pngquant to make the file smaller, if it is installed.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.browser import chromium, observed_page
from tests.support.demo_run import run_demo

FILE = Path(__file__).parents[1] / "docs/console.png"
WIDTH, HEIGHT = 1100, 965


def main() -> None:
    """Write the file."""
    with (
        run_demo() as demo,
        chromium() as browser,
        observed_page(browser, demo.host, width=WIDTH, cookies=demo.cookies) as found,
    ):
        found.page.goto(f"{demo.url}/admin/")
        found.page.wait_for_load_state("networkidle")
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT}
        found.page.screenshot(path=FILE, full_page=True, clip=clip)  # type: ignore[arg-type]
    if shutil.which("pngquant"):
        subprocess.run(["pngquant", "--force", "--output", FILE, "64", FILE], check=True)
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
