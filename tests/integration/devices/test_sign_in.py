"""A device password signs an app in, in every way in which apps send it."""

from __future__ import annotations

import base64
import hashlib
from urllib.parse import urlencode

import httpx
import pytest
import pytest_asyncio

from shim.devices.models import NewDevice
from tests.integration.devices.conftest import VERSION, RunningShim, envelope, error_of, token

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def device(any_shim: RunningShim) -> NewDevice:
    return await any_shim.add("uid-alice")


def _ways(secret: str) -> dict[str, dict[str, str]]:
    return {
        "token": {"u": "alice", **token(secret, "c19b2d")},
        "token without salt": {"u": "alice", "t": hashlib.md5(secret.encode()).hexdigest()},
        "clear password": {"u": "alice", "p": secret},
        "hexadecimal password": {"u": "alice", "p": f"enc:{secret.encode().hex()}"},
        "API key": {"apiKey": secret},
        "other case of the name": {"u": "ALICE", **token(secret, "x")},
    }


async def test_each_way_signs_in_by_query_and_by_form(
    any_shim: RunningShim, device: NewDevice
) -> None:
    for way, parameters in _ways(device.secret).items():
        assert error_of(await any_shim.rest("ping", **parameters)) is None, way
        assert error_of(await any_shim.rest("getUser.view", username="alice", **parameters)) is None
        assert error_of(await any_shim.post("ping", parameters)) is None, way


async def test_a_form_counts_where_navidrome_reads_it(
    any_shim: RunningShim, device: NewDevice
) -> None:
    """Go reads the form of a POST, PUT or PATCH alone, by its media type without parameters."""
    right = str(httpx.QueryParams({**VERSION, "u": "alice", "p": device.secret}))
    form = "application/x-www-form-urlencoded"
    for method, media_type in (
        ("POST", form),
        ("PUT", form),
        ("PATCH", form),
        ("POST", f"{form}; charset=UTF-8"),
        ("POST", form.upper()),
    ):
        response = await any_shim.client.request(
            method, "/rest/ping", content=right, headers={"Content-Type": media_type}
        )
        assert error_of(response) is None, (method, media_type)
    for media_type in ("text/plain", "multipart/form-data; boundary=x"):
        response = await any_shim.client.post(
            "/rest/ping?v=1.16.1&c=x&f=json", content=right, headers={"Content-Type": media_type}
        )
        assert error_of(response) is not None, media_type
    for method in ("GET", "DELETE"):
        response = await any_shim.client.request(
            method, f"/rest/ping?{right}", content="u=bob&p=x", headers={"Content-Type": form}
        )
        assert error_of(response) is None, method


async def test_basic_counts_where_no_other_credentials_are_present(
    any_shim: RunningShim, device: NewDevice
) -> None:
    basic = base64.b64encode(f"alice:{device.secret}".encode()).decode()
    edge = base64.b64encode(b"edge:password of the edge").decode()
    alone = await any_shim.rest("ping", {"Authorization": f"Basic {basic}"})
    assert error_of(alone) is None
    beside = await any_shim.rest(
        "ping", {"Authorization": f"Basic {edge}"}, u="alice", **token(device.secret, "a")
    )
    assert error_of(beside) is None
    other = await any_shim.rest(
        "ping", {"Authorization": f"Basic {basic}"}, u="alice", **token("wrong", "a")
    )
    assert error_of(other) == 40


async def test_the_app_is_the_account_and_no_other(
    any_shim: RunningShim, device: NewDevice
) -> None:
    await any_shim.sign_in("bob")
    whose = await any_shim.rest("getUser", username="alice", u="alice", p=device.secret)
    assert envelope(whose)["user"]["username"] == "alice"
    assert error_of(await any_shim.rest("ping", u="bob", **token(device.secret, "a"))) == 40
    assert error_of(await any_shim.rest("ping", u="bob", p=device.secret)) == 40
    assert error_of(await any_shim.rest("ping", u="nobody", p=device.secret)) == 40


async def test_a_password_that_was_set_in_navidrome_still_works(
    any_shim: RunningShim, device: NewDevice
) -> None:
    await any_shim.harness.create("dave", "navidrome password")
    for secret, expected in (("navidrome password", None), (device.secret, 40)):
        response = await any_shim.rest("ping", u="dave", **token(secret, "s"))
        assert error_of(response) == expected


async def test_credentials_that_conflict_get_error_43(
    any_shim: RunningShim, device: NewDevice
) -> None:
    secret = device.secret
    good = {"u": "alice", "p": secret}
    for query in (
        f"apiKey={secret}&u=alice",
        f"apiKey={secret}&p=x",
        f"u=alice&u=alice&p={secret}",
        f"u=alice&p={secret}&%70={secret}",
        f"u=alice&p={secret}&jwt=a&jwt=b",
        f"apiKey={secret}&api%4Bey={secret}",
    ):
        target = f"/rest/ping?{query}&v=1.16.1&c=test&f=json"
        assert error_of(await any_shim.client.get(target)) == 43, query
    assert error_of(await any_shim.post("ping", good, query="u=bob")) == 43
    assert error_of(await any_shim.post("ping", good, query="p=other")) == 43
    assert error_of(await any_shim.post("ping", good, query="u=alice")) is None


async def test_an_unknown_api_key_gets_error_44(any_shim: RunningShim) -> None:
    assert error_of(await any_shim.rest("ping", apiKey="unknown")) == 44
    assert error_of(await any_shim.post("ping", {"apiKey": "unknown"})) == 44


async def test_token_info_and_the_extension(any_shim: RunningShim, device: NewDevice) -> None:
    for call in ("tokenInfo", "tokenInfo.view"):
        content = envelope(await any_shim.rest(call, apiKey=device.secret))
        assert content["tokenInfo"] == {"username": "alice"}
    as_xml = await any_shim.rest("tokenInfo", apiKey=device.secret, f="xml")
    assert '<tokenInfo username="alice"/>' in as_xml.text
    called = await any_shim.rest("tokenInfo", apiKey=device.secret, f="jsonp", callback="app.on")
    assert called.text.startswith('app.on({"subsonic-response"')
    by_form = await any_shim.post("tokenInfo", {"apiKey": device.secret})
    assert envelope(by_form)["tokenInfo"] == {"username": "alice"}
    by_form = await any_shim.post(
        "tokenInfo", {"apiKey": device.secret, "f": "jsonp", "callback": "app.on"}
    )
    assert by_form.text.startswith('app.on({"subsonic-response"')
    for headers in ({}, {"Accept-Encoding": "identity"}):
        listed = await any_shim.rest("getOpenSubsonicExtensions", headers)
        assert {"name": "apiKeyAuthentication", "versions": [1]} in envelope(listed)[
            "openSubsonicExtensions"
        ]
        as_xml = await any_shim.rest("getOpenSubsonicExtensions.view", headers, f="xml")
        assert (
            '<openSubsonicExtensions name="apiKeyAuthentication"><versions>1</versions>'
            in as_xml.text
        )


@pytest.mark.parametrize(
    ("format_", "callback"), [("xml", ""), ("json", ""), ("jsonp", "a.b"), ("jsonp", "a(b")]
)
async def test_the_shims_own_errors_have_the_format_and_the_headers_of_navidromes(
    any_shim: RunningShim, format_: str, callback: str
) -> None:
    """Compared with Navidrome's error 40 for a page of another origin."""
    origin = {"Origin": "https://player.example.org"}
    more = {"f": format_, "callback": callback}
    theirs = await any_shim.rest("ping", origin, u="alice", p="wrong", **more)
    for response in (
        await any_shim.rest("ping", origin, apiKey="unknown", **more),
        await any_shim.post("ping", {"apiKey": "unknown", **more}, **origin),
    ):
        assert response.status_code == 200
        assert response.headers["content-type"] == theirs.headers["content-type"]
        for name in ("access-control-allow-origin", "access-control-expose-headers"):
            assert response.headers[name] == theirs.headers[name]
        assert "origin" in response.headers["vary"].lower()
    if format_ == "xml":
        assert 'error code="44"' in response.text
    else:
        assert '"code":44' in response.text.replace(" ", "")
    if callback == "a.b":
        assert response.text.startswith("a.b({") and response.text.endswith("})")


async def test_credentials_do_not_reach_navidrome(shim: RunningShim) -> None:
    device = await shim.add("uid-alice")
    secret = device.secret
    await shim.rest("ping", u="alice", p=secret)
    basic = base64.b64encode(f"alice:{secret}".encode()).decode()
    await shim.rest("ping", {"Authorization": f"Basic {basic}", "Cookie": "jwt=x.y.z; a=b"})
    await shim.post("ping", {"u": "alice", "p": secret, "id": "7"}, query="jwt=a.b.c&size=3")
    await shim.rest("ping", apiKey=secret)
    seen = [
        each
        for each in shim.harness.stand_in.stand_in.seen
        if each.target.startswith("/rest/ping")
        and "python-httpx" in str(each.headers)
        and "navidrome-shim" not in str(each)
    ]
    assert len(seen) >= 4
    for request in seen:
        names = {name.lower(): value for name, value in request.headers}
        assert names.get("remote-user") == "alice", request
        assert "authorization" not in names and "jwt" not in names.get("cookie", "")
        query = httpx.QueryParams(request.target.partition("?")[2])
        assert not {"u", "p", "t", "s", "apiKey", "jwt"} & set(query)
        assert query.get("c", "test") == VERSION["c"]
        assert secret not in str(request)
    lengths = [length for each in seen for length in each.values("Content-Length")]
    assert lengths == [str(len(urlencode({**VERSION, "id": "7"})))]


async def test_the_log_names_the_device_and_no_secret(
    any_shim: RunningShim, device: NewDevice
) -> None:
    response = await any_shim.rest("ping", u="alice", **token(device.secret, "salt"))
    assert error_of(response) is None
    await any_shim.rest("ping", u="alice", p=device.secret)
    found = any_shim.logged(kind="access", reason="device_password", device=device.device.id)
    assert found
    assert {line["verdict"] for line in found} == {"authenticated"}
    assert {line["device_name"] for line in found} == {"Phone"}
    assert {line["account"] for line in found} == {"alice"}
    assert device.secret not in str(any_shim.lines)


async def test_another_site_may_use_a_device_password(
    any_shim: RunningShim, device: NewDevice
) -> None:
    """The cross-site rule protects the edge's cookie, which such a request does not need."""
    origin = {"Origin": "https://player.example.org", "Sec-Fetch-Site": "cross-site"}
    response = await any_shim.post("ping", {"u": "alice", "p": device.secret}, **origin)
    assert error_of(response) is None
