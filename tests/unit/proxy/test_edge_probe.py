"""The one-time path on which the data plane itself responds with the names of the headers that arrived."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shim.proxy.edge_probe import (
    EDGE_PROBE_MARK,
    EDGE_PROBE_SECONDS,
    EDGE_PROBE_VALUE,
    MANIFEST,
    PROTECTED,
)
from shim.trust.path_zones import Paths
from shim.trust.policy import Policy, Proof
from tests.support.http_client import Response, build_request, get
from tests.support.running_proxy import EDGE, UNTRUSTED, RunningProxy, policy, start_proxy
from tests.support.scripted_navidrome import OK, Navidrome

ALICE = "X-authentik-username: alice-is-a-value"
SECRET = "X-Shim-Proxy-Secret: s3cret-s3cret"


def path_of(proxy: RunningProxy, prefix: str = "/rest/") -> str:
    return proxy.plane.start_edge_probe(prefix).target.decode()


def findings(response: Response) -> dict[str, Any]:
    assert response.status == 200
    assert response.get("cache-control") == "no-store"
    found: dict[str, Any] = json.loads(response.body)
    assert found.pop(EDGE_PROBE_MARK) == 1
    return found


async def forwarded(
    proxy: RunningProxy, navidrome: Navidrome, head: str, source: str = EDGE
) -> bool:
    """Whether the request reached Navidrome."""
    client = await proxy.client(source)
    await client.send(head.encode())
    end, seen = await navidrome.requests()
    await end.send(OK)
    response = await client.read_response(head.partition(" ")[0])
    client.close()
    return response.status == 200 and seen.startswith(head.encode().partition(b"\r\n")[0])


async def test_it_names_what_arrived_and_shows_no_value(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, by=policy(secrets=(b"s3cret-s3cret",))) as proxy:
        lines = (ALICE, "X_authentik_uid: hidden-1", "Remote-User: hidden-2", SECRET)
        response = await proxy.request(get(path_of(proxy), *lines), source=EDGE)
        assert findings(response) == {
            "peer": EDGE,
            "peer_trusted": True,
            "forwarded": False,
            "identity_headers": ["X-authentik-username"],
            "user_header": ["Remote-User"],
            "forged": False,
            "aliases": ["X_authentik_uid"],
            "secret": "valid",
        }
        for value in (b"alice-is-a-value", b"hidden", b"s3cret"):
            assert value not in response.head + response.body
        assert proxy.recorded.decided_as == []


async def test_an_untrusted_peer_is_named(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome) as proxy:
        head = get(path_of(proxy), ALICE, "X-Forwarded-For: 192.0.2.7")
        found = findings(await proxy.request(head, source=UNTRUSTED))
        assert (found["peer"], found["peer_trusted"], found["forwarded"]) == (
            UNTRUSTED,
            False,
            True,
        )


@pytest.mark.parametrize(
    "rules",
    [
        policy(reject_untrusted=True),
        policy(secrets=(b"another-secret",), public_path_proof=Proof.SECRET),
        policy(require_identity=True),
        policy(suspended=True),
        policy(user_header_obeyed=False),
        policy(audit_available=False),
    ],
)
async def test_it_responds_whatever_the_policy_decides(navidrome: Navidrome, rules: Policy) -> None:
    async with start_proxy(navidrome, by=rules) as proxy:
        for source in (UNTRUSTED, EDGE):
            found = findings(await proxy.request(get(path_of(proxy), ALICE), source=source))
            assert found["identity_headers"] == ["X-authentik-username"]


@pytest.mark.parametrize(
    ("secrets", "lines", "expected"),
    [
        ((b"s3cret-s3cret",), (), "absent"),
        ((b"s3cret-s3cret",), (SECRET,), "valid"),
        ((b"older", b"s3cret-s3cret"), (SECRET,), "valid"),
        ((b"another",), (SECRET,), "wrong"),
        ((b"s3cret-s3cret",), (SECRET, SECRET), "wrong"),
        ((), (SECRET,), "unexpected"),
    ],
)
async def test_the_state_of_the_secret(
    navidrome: Navidrome, secrets: tuple[bytes, ...], lines: tuple[str, ...], expected: str
) -> None:
    async with start_proxy(navidrome, by=policy(secrets=secrets)) as proxy:
        response = await proxy.request(get(path_of(proxy), *lines), source=EDGE)
        assert findings(response)["secret"] == expected


async def test_it_responds_once(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome) as proxy:
        head = get(path_of(proxy))
        findings(await proxy.request(head, source=EDGE))
        assert proxy.plane.edge_probe is None
        assert await forwarded(proxy, navidrome, head)


async def test_it_ends_after_its_time(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome) as proxy:
        head = get(path_of(proxy))
        proxy.plane.now += EDGE_PROBE_SECONDS + 1  # before the next sweep
        assert await forwarded(proxy, navidrome, head)
        proxy.pass_time(0)
        assert proxy.plane.edge_probe is None


async def test_a_new_probe_replaces_the_last_one(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome) as proxy:
        first, second = path_of(proxy), path_of(proxy)
        assert first != second
        assert await forwarded(proxy, navidrome, get(first))
        findings(await proxy.request(get(second), source=EDGE))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: get(path + "0"),
        lambda path: get(path[:-1]),
        lambda path: get(path + "?x=1"),
        lambda path: get(path.replace("/rest/", "/share/")),
        lambda path: build_request("HEAD", path),
        lambda path: build_request("POST", path, "Content-Length: 0"),
    ],
)
async def test_any_other_request_is_forwarded_and_leaves_the_probe(
    navidrome: Navidrome, change: Any
) -> None:
    async with start_proxy(navidrome) as proxy:
        path = path_of(proxy)
        assert await forwarded(proxy, navidrome, change(path))
        findings(await proxy.request(get(path), source=EDGE))


async def test_a_probe_with_a_body_is_forwarded(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome) as proxy:
        path = path_of(proxy)
        chunked = get(path, "Transfer-Encoding: chunked") + "0\r\n\r\n"
        assert await forwarded(proxy, navidrome, chunked)
        assert proxy.plane.edge_probe is not None


async def test_the_path_is_below_the_base_path_and_has_128_random_bits(
    navidrome: Navidrome,
) -> None:
    rules = policy(paths=Paths("/music", ("/rest/", "/")))
    async with start_proxy(navidrome, by=rules) as proxy:
        base, nonce = path_of(proxy).rsplit("/", 1)
        assert (base, len(nonce)) == ("/music/rest", 32)
        assert path_of(proxy, "/").rpartition("/")[0] == "/music"


async def test_the_manifest_has_its_exact_path_and_a_random_query(navidrome: Navidrome) -> None:
    async with start_proxy(navidrome, by=policy(paths=Paths("/music"))) as proxy:
        target = path_of(proxy, MANIFEST)
        path, nonce = target.split("?")
        assert (path, len(nonce)) == ("/music/app/manifest.webmanifest", 32)
        assert await forwarded(proxy, navidrome, get(path))
        assert findings(await proxy.request(get(target, ALICE), source=EDGE))["peer_trusted"]


@pytest.mark.parametrize("header", ["X-authentik-username", "X-authentik-groups", "Remote-User"])
async def test_it_says_if_an_identity_header_arrived_as_check_sends_it(
    navidrome: Navidrome, header: str
) -> None:
    for value, forged in ((EDGE_PROBE_VALUE, True), ("alice", False)):
        async with start_proxy(navidrome, by=policy(secrets=(b"s3cret-s3cret",))) as proxy:
            head = get(path_of(proxy, PROTECTED), f"{header}: {value}", SECRET)
            assert findings(await proxy.request(head, source=EDGE))["forged"] is forged
