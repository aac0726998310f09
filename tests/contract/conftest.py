"""The two servers that the quirks are tested on: the stand-in, and the real one where it is
configured.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from demo.navidrome import StandInOptions, StandInThread
from tests.support.navidrome_client import ADMIN, ADMIN_PASSWORD, EDGE, NavidromeClient
from tests.support.real_navidrome import real_navidrome


@pytest.fixture(scope="module", params=["stand-in", "real"])
def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NavidromeClient]:
    """A server with one admin; tests use names of their own, since they share it."""
    if request.param == "stand-in":
        with StandInThread(StandInOptions(trusted_sources=f"{EDGE}/32")) as stand_in:
            yield _with_admin(stand_in.port)
        return
    if "NAVIDROME_BIN" not in os.environ:
        pytest.skip("NAVIDROME_BIN names no binary")
    folder = tmp_path_factory.mktemp("navidrome")
    with real_navidrome(os.environ["NAVIDROME_BIN"], folder, f"{EDGE}/32") as port:
        yield _with_admin(port)


def _with_admin(port: int) -> NavidromeClient:
    client = NavidromeClient(port)
    admin = {"username": ADMIN, "password": ADMIN_PASSWORD}
    assert client.request("POST", "/auth/createAdmin", None, body=admin).status == 200
    return client
