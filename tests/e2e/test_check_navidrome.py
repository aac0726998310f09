"""What `navidrome-shim check` finds at the real Navidrome, where `NAVIDROME_BIN` names one."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.servers import shim
from tests.support.real_navidrome import real_navidrome
from tests.support.shim_settings import command

BINARY = os.environ.get("NAVIDROME_BIN", "")
OWN = "127.0.0.1/32"
pytestmark = pytest.mark.skipif(not BINARY, reason="NAVIDROME_BIN names no Navidrome")


def check(
    folder: Path, port: int, **settings: str
) -> tuple[int, dict[str, dict[str, str]], list[str]]:
    settings_given = {
        "UPSTREAM": f"http://127.0.0.1:{port}",
        "REVERSE_PROXY_WHITELIST": "127.0.0.1",
        "PROVISIONING": "false",
        "DATABASE_URL": f"sqlite:///{folder}/shim.db",
        "CONTROL_LISTEN": "127.0.0.1:9",
        **settings,
    }
    done = command(folder, "check", "--json", settings=settings_given)
    assert not done.stderr, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, found["checks"], found["not_checked"]


@pytest.mark.parametrize(
    ("sources", "navidrome", "settings", "name", "detail", "remedy"),
    [
        (
            "192.0.2.1/32",
            {},
            {},
            "user_header",
            "does not obey Remote-User from the shim",
            "ND_EXTAUTH_TRUSTEDSOURCES to the shim's address 127.0.0.1/32",
        ),
        ("", {}, {}, "user_header", "does not obey Remote-User", "ND_EXTAUTH_TRUSTEDSOURCES"),
        (
            OWN,
            {"ND_EXTAUTH_USERHEADER": "X-WebAuth-User"},
            {},
            "user_header",
            "obeys X-WebAuth-User, but the shim sets Remote-User",
            "ND_EXTAUTH_USERHEADER to Remote-User",
        ),
        (
            OWN,
            {"ND_EXTAUTH_USERHEADER": "X-Of-Our-Own"},
            {},
            "user_header",
            "does not obey Remote-User",
            "ND_EXTAUTH_USERHEADER to Remote-User",
        ),
        (OWN, {"ND_BASEURL": "/music"}, {}, "base_path", "base path is /music/", "SHIM_BASE_PATH"),
        (OWN, {}, {"BASE_PATH": "/music"}, "base_path", "base path is /,", "SHIM_BASE_PATH"),
    ],
    ids=["wrong list", "empty list", "known header", "unknown header", "base at Navidrome", "base at shim"],
)  # fmt: skip
def test_a_navidrome_with_other_settings_is_a_failure_with_its_remedy(
    tmp_path: Path,
    sources: str,
    navidrome: dict[str, str],
    settings: dict[str, str],
    name: str,
    detail: str,
    remedy: str,
) -> None:
    with real_navidrome(BINARY, tmp_path / "nd", sources, **navidrome) as port:
        code, checks, not_checked = check(tmp_path, port, **settings)
    assert (code, checks[name]["state"]) == (1, "failing"), checks
    assert detail in checks[name]["detail"]
    assert remedy in checks[name]["remedy"]
    assert "SHIM_PROVISIONING is false" in not_checked[0]


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        (OWN, ""),
        (f"{OWN},192.0.2.7/32", "192.0.2.7/32"),
        ("127.0.0.0/8", "127.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_a_navidrome_that_trusts_more_than_the_shim_is_named(
    tmp_path: Path, sources: str, found: str
) -> None:
    with real_navidrome(BINARY, tmp_path / "nd", sources) as port:
        where = f"http://127.0.0.1:{port}"
        database = f"sqlite:///{tmp_path}/shim.db"
        # The shim makes its account, with which the list is read.
        with shim(tmp_path, where, SHIM_PROVISIONING="true", SHIM_DATABASE_URL=database) as running:
            end = time.monotonic() + 20
            while True:
                _, checks, not_checked = check(
                    tmp_path, port, PROVISIONING="true", CONTROL_LISTEN=running.control
                )
                if not any("ND_EXTAUTH_TRUSTEDSOURCES" in note for note in not_checked):
                    break
                assert time.monotonic() < end, not_checked
    header = checks["user_header"]
    assert header["state"] == ("warning" if found else "ok")
    assert (found in header["detail"]) if found else header["remedy"] is None


def test_a_url_that_leads_to_navidrome_past_the_shim_is_a_failure(tmp_path: Path) -> None:
    with real_navidrome(BINARY, tmp_path / "nd", OWN) as port:
        where = f"http://127.0.0.1:{port}"
        with shim(tmp_path, where) as running:
            code, checks, _ = check(
                tmp_path, port, CONTROL_LISTEN=running.control, PUBLIC_URL=where
            )
    assert (code, checks["public_url"]["state"]) == (1, "failing")
    assert "Navidrome or another instance" in checks["public_url"]["detail"]
    assert "never to Navidrome itself" in checks["public_url"]["remedy"]
