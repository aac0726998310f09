"""The monitor of Navidrome: whether it is up, and whether its base path matches."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shim.monitors.upstream import UpstreamMonitor
from shim.settings import Upstream
from tests.support.certificates import make_certificates
from tests.support.scripted_navidrome import Navidrome, navidrome_on_a_socket, navidrome_with_tls


@asynccontextmanager
async def watching(
    navidrome: Navidrome, base_path: str = "/", *, ca: Path | None = None, probe_timeout: float = 5
) -> AsyncIterator[UpstreamMonitor]:
    address = navidrome.address
    upstream = Upstream("http" if ca is None else "https", address.host, address.port, address.path)
    tls = None if ca is None else ssl.create_default_context(cafile=ca)
    watch = UpstreamMonitor(upstream, tls, base_path, probe_timeout)
    try:
        yield watch
    finally:
        await watch.close()


def redirect(location: str) -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


async def probe_once(navidrome: Navidrome, watch: UpstreamMonitor, response: bytes) -> bytes:
    """Probe once, with this response; returns the head of the probe."""
    asking = asyncio.create_task(watch.probe())
    served, head = await navidrome.requests()
    await served.send(response.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    served.close()
    await asking
    return head


# (our base path, Navidrome's redirect, its base path, whether that is a mismatch)
REDIRECTS = [
    ("/", "/app/", "/", False),
    ("/", "/music/app/", "/music/", True),
    ("/music", "/music/app/", "/music/", False),
    ("/music/", "/music/app/", "/music/", False),
    ("/music", "/app/", "/", True),
    ("/music", "/Music/app/", "/Music/", True),
    ("/", "http://music.test/app/", "/", False),
    ("/", "https://music.test/a/b/app/?x#y", "/a/b/", True),
    ("/", "/login", None, False),
    ("/", "/app", None, False),
    ("/", "http://[", None, False),
]


@pytest.mark.parametrize(("base_path", "location", "named", "mismatch"), REDIRECTS)
async def test_the_redirect_to_the_web_app_shows_the_base_path(
    base_path: str, location: str, named: str | None, mismatch: bool
) -> None:
    async with navidrome_on_a_socket() as navidrome, watching(navidrome, base_path) as watch:
        head = await probe_once(navidrome, watch, redirect(location))
        below = base_path.rstrip("/") + "/"
        assert head.startswith(f"GET {below}navidrome-shim-probe HTTP/1.1\r\n".encode())
        assert (watch.state.base_path, watch.base_path_mismatch) == (named, mismatch)
        assert watch.state.reached


async def test_a_response_without_a_redirect_is_up_and_shows_no_base_path() -> None:
    async with navidrome_on_a_socket() as navidrome, watching(navidrome, "/music") as watch:
        before = watch.state.reached
        await probe_once(navidrome, watch, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        assert (before, watch.state.reached) == (False, True)
        assert not watch.base_path_mismatch


async def test_an_outage_does_not_clear_a_mismatch() -> None:
    async with navidrome_on_a_socket() as navidrome, watching(navidrome) as watch:
        await probe_once(navidrome, watch, redirect("/music/app/"))
        before = watch.state
        await navidrome.stop_listening()
        assert await watch.probe(), "the upstream is down, which is a change"
        assert (before.reached, watch.state.reached) == (True, False)
        assert before.base_path == watch.state.base_path == "/music/"
        assert watch.base_path_mismatch


async def test_a_matching_response_clears_a_mismatch() -> None:
    async with navidrome_on_a_socket() as navidrome, watching(navidrome) as watch:
        await probe_once(navidrome, watch, redirect("/music/app/"))
        await probe_once(navidrome, watch, redirect("/app/"))
        assert not watch.base_path_mismatch


@pytest.mark.parametrize(
    "response", [b"junk\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"]
)
async def test_an_invalid_response_is_down(response: bytes) -> None:
    async with navidrome_on_a_socket() as navidrome, watching(navidrome) as watch:
        await probe_once(navidrome, watch, response)
        assert not watch.state.reached
        assert watch.state.detail


async def test_a_server_that_does_not_respond_times_out() -> None:
    async with (
        navidrome_on_a_socket() as navidrome,
        watching(navidrome, probe_timeout=0.01) as watch,
    ):
        await watch.probe()
        assert not watch.state.reached
        assert "Timeout" in watch.state.detail


async def test_it_works_over_a_unix_socket(tmp_path: Path) -> None:
    async with (
        navidrome_on_a_socket(tmp_path / "navidrome.sock") as navidrome,
        watching(navidrome) as watch,
    ):
        await probe_once(navidrome, watch, redirect("/app/"))
        assert watch.state.base_path == "/"


async def test_an_unknown_tls_certificate_is_down(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    server, client = certificates.server(), certificates.client()
    async with navidrome_with_tls(server, client) as navidrome:
        async with watching(navidrome, ca=certificates.authority) as watch:
            await probe_once(navidrome, watch, redirect("/app/"))
            assert watch.state.reached
        upstream = Upstream("https", navidrome.address.host, navidrome.address.port)
        untrusting = UpstreamMonitor(upstream, None, "/")
        await untrusting.probe()
        assert not untrusting.state.reached
        await untrusting.close()


async def test_changes_are_reported_while_it_runs() -> None:
    async with navidrome_on_a_socket() as navidrome, watching(navidrome) as watch:
        changes: asyncio.Queue[bool] = asyncio.Queue()
        running = asyncio.create_task(
            watch.run(0, lambda: changes.put_nowait(watch.base_path_mismatch))
        )
        async with asyncio.timeout(5):
            for location, mismatch in (("/music/app/", True), ("/app/", False)):
                served, _ = await navidrome.requests()
                await served.send(
                    redirect(location).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
                )
                served.close()
                assert await changes.get() is mismatch
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
