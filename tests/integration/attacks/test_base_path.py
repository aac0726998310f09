"""A base path that only Navidrome has, or only the shim."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recorder import recorder
from tests.support.shim_process import assert_stripped, build_request, edge_address, run_shim

ADMIN = "X-authentik-username: admin"


@pytest.mark.parametrize("navidrome_base_path", ["/music/", "/Music/"])
@pytest.mark.parametrize("base_path", ["/", "/other"])
def test_no_identity_is_trusted_while_navidromes_base_path_differs(
    tmp_path: Path, navidrome_base_path: str, base_path: str
) -> None:
    with (
        recorder(navidrome_base_path) as upstream,
        run_shim(upstream.port, tmp_path, BASE_PATH=base_path) as shim,
    ):
        for path in (
            f"{navidrome_base_path}rest/getUsers",
            f"{navidrome_base_path}app/",
            "/app/",
            "/other/app/",
        ):
            upstream.clear()
            edge = edge_address()
            response = shim.request(build_request(f"GET {path} HTTP/1.1", ADMIN), edge)
            assert_stripped(shim, upstream, response, edge)


def test_no_identity_is_trusted_outside_the_base_path(tmp_path: Path) -> None:
    with (
        recorder("/music/") as upstream,
        run_shim(upstream.port, tmp_path, BASE_PATH="/music") as shim,
    ):
        for path in ("/rest/getUsers", "/app/", "/api/user", "/MUSIC/app/", "/musical/app/", "/"):
            upstream.clear()
            edge = edge_address()
            response = shim.request(build_request(f"GET {path} HTTP/1.1", ADMIN), edge)
            assert_stripped(shim, upstream, response, edge)
        for path in ("/music/rest/getUsers", "/music/REST", "/music/share/x"):
            upstream.clear()
            edge = edge_address()
            response = shim.request(build_request(f"GET {path} HTTP/1.1", ADMIN), edge)
            assert_stripped(shim, upstream, response, edge)
        upstream.clear()
        shim.request(build_request("GET /music/app/ HTTP/1.1", ADMIN), edge_address())
        (received,) = upstream.requested
        assert received.values("Remote-User") == ["admin"]
