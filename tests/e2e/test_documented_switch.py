"""The steps of docs/traefik-authentik.md do what the page says, on the guide's setup and on the shim's."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import ADMIN_GROUP, Deployment
from tests.support.documentation import ROOT, blocks

PAGE = ROOT / "docs/traefik-authentik.md"


def block(text: str) -> list[str]:
    """The words of the page's block that contains this text."""
    found = [b.text for b in blocks(PAGE) if text in b.text]
    return shlex.split(found[0].replace("\\\n", " "))


def attack(deployment: Deployment) -> str:
    """Send the page's test for the takeover, and return the response."""
    words = block("curl -s -H")
    name, _, value = words[words.index("-H") + 1].partition(": ")
    url = urlsplit(next(word for word in words if word.startswith("https://")))
    with deployment.client() as untrusted_client:
        return untrusted_client.get(f"{url.path}?{url.query}", headers={name: value}).text


def test_the_command_that_shows_if_you_are_affected_succeeds_in_the_guides_setup(
    guide_without_shim: Deployment,
) -> None:
    assert 'status="ok"' in attack(guide_without_shim)


def test_the_command_that_shows_if_you_are_affected_fails_with_the_shim(
    deployment: Deployment,
) -> None:
    assert 'status="failed"' in attack(deployment)


@pytest.fixture
def preview(guide_without_shim: Deployment, tmp_path: Path) -> dict[str, tuple[str, str]]:
    """What the command of step 0 prints about each account: without an admin group, and with one."""
    words = block("docker run")
    environment = dict(words[at + 1].split("=", 1) for at, w in enumerate(words) if w == "--env")
    assert set(environment) >= {"SHIM_UPSTREAM", "SHIM_ADMIN_GROUPS"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "shim",
            *words[words.index("navidrome-auth-shim", 9) + 1 :],
            "--json",
        ],
        cwd=tmp_path,
        env={
            "PATH": os.defpath,
            "PYTHONPATH": str(ROOT),
            **environment,
            "SHIM_UPSTREAM": guide_without_shim.stand_in.url,
            "SHIM_ADMIN_GROUPS": ADMIN_GROUP,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        line["account"]: (line["outcome"], line["with_admin_group"])
        for line in json.loads(done.stdout)["accounts"]
    }


def test_step_0_shows_the_outcomes_that_the_page_lists(
    preview: dict[str, tuple[str, str]],
) -> None:
    table = re.findall(r"^\| ([^|]+) \| ([^|]+) \| \*\*([^*]+)\*\*", PAGE.read_text(), re.MULTILINE)
    listed = {
        (account, "in `SHIM_ADMIN_GROUPS`" in user): result for account, user, result in table
    }
    assert {name: text.split(":")[0] for name, (text, _) in preview.items()}["admin"] == "rejected"
    assert listed["admin account", False] == "rejected"
    assert preview["admin"][1].startswith("linked to this account, keeps its password")
    assert listed["admin account", True] == "linked."
    assert preview["alice"][0].startswith("linked to this account, keeps its password")
    assert listed["regular account", False] == "linked."
    assert "becomes admin; its password is replaced" in preview["alice"][1]
    assert listed["regular account", True] == "linked, and becomes admin."


def test_step_0_changes_nothing(
    guide_without_shim: Deployment, preview: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    assert "navidrome-shim" not in preview
    assert {seen.method for seen in guide_without_shim.stand_in.seen} == {"GET"}
    assert list(tmp_path.iterdir()) == []
