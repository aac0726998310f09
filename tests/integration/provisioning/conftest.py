"""A harness for each server: most tests run on all of them, some on the stand-in only, some with each
database.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shim.provisioning import service
from shim.store import engine
from tests.support.harness import Harness
from tests.support.navidrome_servers import build_server

KINDS = ("stand-in tcp", "stand-in unix", "real tcp", "real unix")


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_MIN_PAUSE", 0.05)


@pytest.fixture
def unlimited_busy_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a transaction wait for the others without a limit."""
    monkeypatch.setattr(engine, "BUSY_SECONDS", 3600.0)


@pytest.fixture(params=KINDS)
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    """An empty server of each kind."""
    async for one in _harnesses(_require_binary(request.param), tmp_path):
        yield one


@pytest.fixture(params=["stand-in tcp", "real tcp"])
async def tcp_harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    """An empty server of each kind, on TCP only."""
    async for one in _harnesses(_require_binary(request.param), tmp_path):
        yield one


@pytest.fixture(params=["stand-in tcp", "stand-in tcp, postgresql", "real tcp"])
async def any_store_harness(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Harness]:
    """An empty server of each kind, with each kind of database."""
    kind, _, store = request.param.partition(", ")
    url = request.getfixturevalue("postgresql_url") if store else ""
    async for one in _harnesses(_require_binary(kind), tmp_path, url):
        yield one


@pytest.fixture
async def stand_in_harness(tmp_path: Path) -> AsyncIterator[Harness]:
    """An empty stand-in, which injects faults and counts its requests."""
    async for one in _harnesses("stand-in tcp", tmp_path):
        yield one


def _require_binary(kind: str) -> str:
    if kind.startswith("real") and "NAVIDROME_BIN" not in os.environ:
        pytest.skip("NAVIDROME_BIN names no binary")
    return kind


async def _harnesses(kind: str, folder: Path, database_url: str = "") -> AsyncIterator[Harness]:
    server = build_server(kind, folder, libraries=("Family", "Kids"))
    await server.start()
    harness = Harness(server, folder, database_url)
    try:
        yield harness
    finally:
        await harness.close()
