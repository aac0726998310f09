"""Host names in the whitelist whose addresses change while the shim runs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.name_server import NameServer, name_server, resolver_namespace
from tests.support.recorder import Recorder
from tests.support.shim_process import build_request, run_shim
from tests.support.shim_settings import checks, eventually

EDGE, UNRESOLVED = "edge.home.arpa", "ghost.home.arpa"
APP = "GET /app/ HTTP/1.1"
ADA = "X-authentik-username: ada"


@pytest.fixture
def names(tmp_path: Path) -> Iterator[NameServer]:
    place = resolver_namespace(tmp_path)
    if not place or subprocess.run([*place, "true"], check=False, capture_output=True).returncode:
        pytest.skip("only root may put a name server of its own in place")
    try:
        with name_server() as server:
            yield server
    except PermissionError:
        pytest.skip("port 53 may not be listened on")


def test_the_new_address_of_an_edge_is_trusted_and_its_old_one_is_not(
    upstream: Recorder, names: NameServer, tmp_path: Path
) -> None:
    names.records = {EDGE: ["127.0.0.2"]}
    settings = {
        "REVERSE_PROXY_WHITELIST": f"{EDGE},{UNRESOLVED}",
        "DNS_REFRESH_SECONDS": "1",
        "DNS_STALE_SECONDS": "5",
        "LISTEN": "[::]:0",
    }
    place = resolver_namespace(tmp_path)
    with run_shim(upstream.port, tmp_path, before=place, **settings) as shim:

        def is_trusted(source: str) -> bool:
            upstream.clear()
            assert shim.request(build_request(APP, ADA), source).status == 200
            return upstream.requested[-1].values("Remote-User") == ["ada"]

        def trusted_addresses() -> list[str]:
            return [
                s for s in ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4") if is_trusted(s)
            ]

        assert trusted_addresses() == ["127.0.0.2"]
        whitelist = checks(shim)["whitelist"]
        assert whitelist["state"] == "warning" and UNRESOLVED in whitelist["detail"]
        assert shim.wait_for_line(kind="name_lookup_failed", host=UNRESOLVED)["severity"] == "error"

        names.records[EDGE] = ["127.0.0.3", "127.0.0.4", "::1", "fd00::1"]
        eventually(trusted_addresses, ["127.0.0.3", "127.0.0.4"])
        changed = shim.wait_for_line(kind="policy_changed", subject="whitelist")
        assert changed["removed"] == [f"{EDGE}=127.0.0.2"]
        assert set(changed["added"]) == {
            f"{EDGE}={address}" for address in ("127.0.0.3", "127.0.0.4", "::1", "fd00::1")
        }

        names.silent = True  # the last result stays valid for a while, with an event
        eventually(lambda: f"still used: {EDGE}" in checks(shim)["whitelist"]["detail"], True)
        assert trusted_addresses() == ["127.0.0.3", "127.0.0.4"]
        eventually(trusted_addresses, [])
        assert checks(shim)["whitelist"]["state"] == "failing"
        failed = [ln for ln in shim.lines if ln.get("kind") == "name_lookup_failed"]
        reported = [(line["host"], line["severity"]) for line in failed]
        assert reported == [(UNRESOLVED, "error"), (EDGE, "warning"), (EDGE, "error")]

        names.silent = False
        names.records = {UNRESOLVED: ["127.0.0.2"]}  # and the edge's own name is removed
        eventually(trusted_addresses, ["127.0.0.2"])
        assert shim.wait_for_line(kind="name_resolved", host=UNRESOLVED)["addresses"] == [
            "127.0.0.2"
        ]
