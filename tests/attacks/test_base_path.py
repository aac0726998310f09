"""A base path that Navidrome has and the shim does not, and the other way round."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks.recorder import recorder
from tests.attacks.running import an_edge, assert_stripped, request, shim_before

ADMIN = "X-authentik-username: admin"


@pytest.mark.parametrize("navidromes", ["/music/", "/Music/"])
@pytest.mark.parametrize("ours", ["/", "/other"])
def test_a_base_path_that_navidrome_contradicts_believes_nobody(
    tmp_path: Path, navidromes: str, ours: str
) -> None:
    with (
        recorder(navidromes) as upstream,
        shim_before(upstream.port, tmp_path, BASE_PATH=ours) as shim,
    ):
        for path in (f"{navidromes}rest/getUsers", f"{navidromes}app/", "/app/", "/other/app/"):
            upstream.forget()
            edge = an_edge()
            answer = shim.ask(request(f"GET {path} HTTP/1.1", ADMIN), edge)
            assert_stripped(shim, upstream, answer, edge)


def test_outside_the_base_path_nobody_is_believed(tmp_path: Path) -> None:
    with (
        recorder("/music/") as upstream,
        shim_before(upstream.port, tmp_path, BASE_PATH="/music") as shim,
    ):
        for path in ("/rest/getUsers", "/app/", "/api/user", "/MUSIC/app/", "/musical/app/", "/"):
            upstream.forget()
            edge = an_edge()
            answer = shim.ask(request(f"GET {path} HTTP/1.1", ADMIN), edge)
            assert_stripped(shim, upstream, answer, edge)
        for path in ("/music/rest/getUsers", "/music/REST", "/music/share/x"):
            upstream.forget()
            edge = an_edge()
            answer = shim.ask(request(f"GET {path} HTTP/1.1", ADMIN), edge)
            assert_stripped(shim, upstream, answer, edge)
        upstream.forget()
        shim.ask(request("GET /music/app/ HTTP/1.1", ADMIN), an_edge())
        (received,) = upstream.asked
        assert received.values("Remote-User") == ["admin"]
