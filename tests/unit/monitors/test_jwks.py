"""The provider's key set over real sockets: fetched, kept through an outage, with a limited rate."""

from __future__ import annotations

import asyncio
import gzip
import math
from pathlib import Path

import pytest

from shim.monitors.jwks import MAX_WAITERS, JwksConfig, JwksMonitor
from tests.support.certificates import make_certificates
from tests.support.jwks_server import build_response, jwks_server
from tests.support.jwt_minting import jwk, key_set, rsa_key
from tests.support.recorded_sleeps import record_sleeps

ONE = key_set(jwk(rsa_key(), "one"))
TWO = key_set(jwk(rsa_key(), "one"), jwk(rsa_key(1), "two"))


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def kids(watch: JwksMonitor) -> list[str | None]:
    return [key.kid for key in watch.keys]


async def test_a_fetched_key_set_is_used_and_a_change_is_reported() -> None:
    reports: list[list[str | None]] = []
    async with jwks_server(build_response(ONE)) as end:
        watch = JwksMonitor(JwksConfig(url=end.url))
        watch.report_changes(lambda: reports.append(kids(watch)))
        assert (kids(watch), watch.state.fault) == ([], "not fetched yet")
        await watch.fetch()
        assert kids(watch) == ["one"]
        assert watch.state.fault is None
        await watch.fetch()
        assert reports == [["one"]], "an equal key set is not reported as a change"
        end.body = build_response(TWO)
        await watch.fetch()
        assert reports == [["one"], ["one", "two"]]


@pytest.mark.parametrize(
    ("response", "fault"),
    [
        (build_response(b"<html>sign in</html>", "text/html"), "text/html"),
        (build_response(ONE, "text/html"), "text/html"),
        (build_response(ONE, "text/plain"), "text/plain"),
        (build_response(b"<html>sign in</html>"), "not JSON"),
        (build_response(b"[]"), "not a key set"),
        (build_response(b'{"keys": []}'), "the key set is empty"),
        (build_response(b'{"keys": [{"kty": "oct", "k": "AAAA"}]}'), "can be used"),
        (build_response(b"", "text/html", "302 Found", "Location: /elsewhere"), "302"),
        (build_response(ONE, status="500 Oops"), "500"),
        (build_response(ONE, status="404 Not Found"), "404"),
        (build_response(b" " * 5000 + ONE), "more than"),
        (build_response(gzip.compress(ONE), "application/json", "200 OK", "Content-Encoding: gzip"), "compr"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n{", "peer"),
        (b"nonsense\r\n\r\n", "Error"),
        (b"", "disconnected"),
    ],
    ids=[
        "HTML", "HTML type", "wrong type", "HTML as JSON", "a list", "empty", "unusable", "redirect",
        "500", "404", "huge", "compressed", "cut", "no HTTP", "nothing",
    ],
)  # fmt: skip
async def test_an_invalid_key_set_changes_nothing_and_is_reported(
    response: bytes, fault: str
) -> None:
    async with jwks_server(build_response(ONE)) as end:
        watch = JwksMonitor(JwksConfig(url=end.url, max_bytes=4096))
        await watch.fetch()
        end.body = response
        await watch.fetch()
        assert kids(watch) == ["one"]
        assert fault in str(watch.state.fault)
        end.body = build_response(TWO)
        await watch.fetch()
        assert kids(watch) == ["one", "two"] and watch.state.fault is None


async def test_a_server_without_a_response_times_out() -> None:
    async with jwks_server(None) as end:
        watch = JwksMonitor(JwksConfig(url=end.url, timeout=0.1))
        await watch.fetch()
        assert watch.state.fault == "no complete response in time"


async def test_a_slow_response_times_out_as_a_whole() -> None:
    client_left = asyncio.Event()

    async def send_slowly(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{")
        try:
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            writer.close()
            client_left.set()

    server = await asyncio.start_server(send_slowly, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    watch = JwksMonitor(JwksConfig(url=f"http://127.0.0.1:{port}/", timeout=0.3))
    async with asyncio.timeout(10.0):
        await watch.fetch()
    assert watch.state.fault == "no complete response in time"
    server.close()
    await client_left.wait()


async def test_a_refused_connection_is_reported() -> None:
    async with jwks_server(b"") as end:
        url = end.url
    watch = JwksMonitor(JwksConfig(url=url))
    await watch.fetch()
    assert watch.keys == () and "Connect" in str(watch.state.fault)


async def test_keys_outlive_an_outage_for_a_limited_time() -> None:
    clock = Clock()
    reports: list[tuple[list[str | None], bool]] = []
    async with jwks_server(build_response(ONE)) as end:
        watch = JwksMonitor(JwksConfig(url=end.url, max_age=100.0), clock=clock)
        watch.report_changes(lambda: reports.append((kids(watch), watch.state.fault is None)))
        assert watch.state.age == math.inf
        await watch.fetch()
        end.body = build_response(b"", status="503 Away")
        for passed in (50, 50):
            clock.now += passed
            await watch.fetch()
            assert kids(watch) == ["one"]
        assert (watch.state.failing_for, watch.state.age) == (50, 100)
        clock.now += 1
        await watch.fetch()
        assert watch.keys == ()
        end.body = build_response(ONE)
        await watch.fetch()
        assert kids(watch) == ["one"]
    assert reports == [(["one"], True), (["one"], False), ([], False), (["one"], True)]


async def test_a_thousand_unknown_keys_cost_one_fetch_per_interval() -> None:
    clock = Clock()
    async with jwks_server(build_response(ONE)) as end:
        watch = JwksMonitor(JwksConfig(url=end.url, min_interval=30.0), clock=clock)
        await watch.fetch()
        end.hold.clear()
        waiting = [watch.request_refresh() for _ in range(1000)]
        waited = [each for each in waiting if each is not None]
        assert len(waited) == MAX_WAITERS, "the rest is refused at once"
        waited[0].cancel()
        await asyncio.sleep(0)
        assert not any(each.done() for each in waited[1:]), (
            "a client that disconnects does not affect the others"
        )
        end.body = build_response(TWO)
        end.hold.set()
        await asyncio.gather(*waited[1:])
        assert end.requests == 2
        assert kids(watch) == ["one", "two"]
        for _ in range(100):
            assert watch.request_refresh() is None
        clock.now += 29.9
        assert watch.request_refresh() is None
        clock.now += 0.1
        again = watch.request_refresh()
        assert again is not None
        await again
        assert end.requests == 3


async def test_fetched_keys_are_used_before_waiting_requests_continue() -> None:
    order: list[str] = []
    async with jwks_server(build_response(ONE)) as end:
        watch = JwksMonitor(JwksConfig(url=end.url))
        watch.report_changes(lambda: order.append("reported"))
        waiter = watch.request_refresh()
        assert waiter is not None
        waiter.add_done_callback(lambda _: order.append("waiter"))
        await waiter
        await asyncio.sleep(0)
    assert order == ["reported", "waiter"]


async def test_it_is_fetched_periodically_and_sooner_while_there_is_no_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with jwks_server(build_response(b"", status="503 Away")) as end:
        watch = JwksMonitor(JwksConfig(url=end.url, min_interval=30.0))
        await watch.fetch()
        pauses = record_sleeps(monkeypatch, "shim.monitors.jwks", 3)
        responses = iter(
            [build_response(ONE), build_response(b"", status="503 Away"), build_response(ONE)]
        )
        watch.report_changes(lambda: setattr(end, "body", next(responses, b"")))
        end.body = next(responses)
        with pytest.raises(asyncio.CancelledError):
            await watch.run(3600.0)
    assert pauses == [5.0, 3600.0, 30.0, 3600.0]


async def test_the_tls_certificate_is_verified(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    async with jwks_server(build_response(ONE), certificates.server()) as end:
        distrusting = JwksMonitor(JwksConfig(url=end.url))
        await distrusting.fetch()
        assert distrusting.keys == () and "certificate" in str(distrusting.state.fault).lower()
        named = JwksMonitor(JwksConfig(url=end.url.replace("127.0.0.1", "localhost"),
                                   ca=str(certificates.authority)))  # fmt: skip
        await named.fetch()
        assert named.keys == (), "the certificate is for another host"
        trusting = JwksMonitor(JwksConfig(url=end.url, ca=str(certificates.authority)))
        await trusting.fetch()
        assert kids(trusting) == ["one"]


async def test_a_renewed_ca_file_is_used_once_it_is_read_again(
    tmp_path: Path,
) -> None:
    own_folder, other_folder = tmp_path / "ours", tmp_path / "others"
    own_folder.mkdir()
    other_folder.mkdir()
    certificates, authority = (
        make_certificates(own_folder),
        make_certificates(other_folder).authority,
    )
    async with jwks_server(build_response(ONE), certificates.server()) as end:
        watch = JwksMonitor(JwksConfig(url=end.url, ca=str(authority)))
        await watch.fetch()
        authority.write_bytes(certificates.authority.read_bytes())
        await watch.fetch()
        assert watch.keys == ()
        await watch.refetch()
        assert kids(watch) == ["one"]


@pytest.mark.parametrize("text", ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
async def test_an_invalid_ca_file_is_reported_and_no_key_is_accepted(
    tmp_path: Path, text: str
) -> None:
    authority = tmp_path / "authority.pem"
    authority.write_text(text)
    watch = JwksMonitor(JwksConfig(url="https://127.0.0.1:9/", ca=str(authority)))
    await watch.fetch()
    assert watch.keys == () and "authority.pem contains no certificate" in str(watch.state.fault)


async def test_proxy_variables_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with jwks_server(build_response(ONE)) as end:
        watch = JwksMonitor(JwksConfig(url=end.url))
        await watch.fetch()
        assert kids(watch) == ["one"]


async def test_closing_cancels_a_fetch_in_progress() -> None:
    async with jwks_server(None) as end:
        watch = JwksMonitor(JwksConfig(url=end.url, timeout=60.0))
        waiter = watch.request_refresh()
        assert waiter is not None
        await end.wait_for_requests(1)
        await watch.close()
        await asyncio.wait({waiter}, timeout=5.0)
        assert waiter.cancelled()
