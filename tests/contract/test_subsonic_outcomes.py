"""The shim's reading of Subsonic responses, by the bytes that each server sends."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, field

import pytest

from shim.proxy.subsonic_responses import ExtensionListFilter, LoginOutcomeFilter
from tests.support.navidrome_client import ADMIN, ADMIN_PASSWORD, UNTRUSTED, NavidromeClient

FORMATS = ["xml", "json", "jsonp&callback=cb"]
CODINGS = ["identity", "gzip", "deflate"]


@dataclass
class Outcome:
    """An attempt that keeps what it is told."""

    reports: list[str] = field(default_factory=list)

    def failed(self) -> None:
        self.reports.append("failed")

    def succeeded(self) -> None:
        self.reports.append("succeeded")

    def ended(self) -> None:
        pass


def _receive(client: NavidromeClient, target: str, coding: str, method: str = "GET") -> bytes:
    lines = (f"{method} {target} HTTP/1.1", "Host: x", f"Accept-Encoding: {coding}")
    address = ("127.0.0.1", client.port)
    with socket.create_connection(address, timeout=10, source_address=(UNTRUSTED, 0)) as connection:
        connection.sendall("\r\n".join((*lines, "Connection: close", "", "")).encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


def _outcome(received: bytes, *, head_only: bool = False) -> list[str]:
    outcome = Outcome()
    response_filter = LoginOutcomeFilter(outcome, head_only=head_only)
    middle = len(received) // 2
    written = (
        response_filter.feed(received[:middle])
        + response_filter.feed(received[middle:])
        + response_filter.finish()
    )
    assert written == received
    return outcome.reports


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("password", "outcome"), [(ADMIN_PASSWORD, "succeeded"), ("no", "failed")])
def test_the_outcome_of_credentials_is_read(
    client: NavidromeClient, form: str, coding: str, password: str, outcome: str
) -> None:
    target = f"/rest/ping?v=1&c=x&f={form}&u={ADMIN}&p={password}"
    assert _outcome(_receive(client, target, coding)) == [outcome]


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("form", FORMATS)
def test_a_failure_is_read_from_a_head_request(
    client: NavidromeClient, form: str, coding: str
) -> None:
    target = f"/rest/ping?v=1&c=x&f={form}&u={ADMIN}&p=no"
    received = _receive(client, target, coding, "HEAD")
    assert _outcome(received, head_only=True) == ["failed"]


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("call", ["stream", "download", "getCoverArt"])
def test_a_stream_shows_that_the_credentials_are_right(
    client: NavidromeClient, call: str, coding: str
) -> None:
    song = client.request("GET", "/api/song?_start=0&_end=1&_sort=title").json()[0]["id"]
    credentials = f"v=1&c=x&u={ADMIN}&p={ADMIN_PASSWORD}"
    received = _receive(client, f"/rest/{call}?{credentials}&id={song}", coding)
    assert _outcome(received) == ["succeeded"]


@pytest.mark.parametrize("parameters", ["u=navidrome-shim&p=no&v=1", "c=x&v=1", "a=%zz"])
def test_a_response_without_a_check_of_credentials_is_no_success(
    client: NavidromeClient, parameters: str
) -> None:
    received = _receive(client, f"/rest/ping?f=json&{parameters}", "identity")
    assert _outcome(received) == []


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("form", FORMATS)
def test_the_extension_for_api_keys_is_added(
    client: NavidromeClient, form: str, coding: str
) -> None:
    received = _receive(client, f"/rest/getOpenSubsonicExtensions?f={form}", coding)
    response_filter = ExtensionListFilter()
    written = response_filter.feed(received) + response_filter.finish()
    head, _, body = written.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head.lower()
    assert b"content-encoding" not in head.lower()
    if form == "xml":
        assert body.count(b'<openSubsonicExtensions name="') == 8
        assert b'name="apiKeyAuthentication"><versions>1</versions>' in body
        return
    content = json.loads(body.removeprefix(b"cb(").removesuffix(b")"))
    names = [each["name"] for each in content["subsonic-response"]["openSubsonicExtensions"]]
    assert len(names) == 8 and names[0] == "apiKeyAuthentication"
