"""Streams, covers, shares and Subsonic calls that the recording does not cover, on both servers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.support.navidrome_client import UNTRUSTED, NavidromeClient

QUERY = "v=1.16.1&c=x&f=json"


def _song(client: NavidromeClient) -> str:
    song_id: str = client.request("GET", "/api/song?_start=0&_end=1&_sort=title").json()[0]["id"]
    return song_id


@pytest.mark.parametrize(
    ("wanted", "status", "length"),
    [
        ("bytes=0-0", 206, 1),
        ("bytes=-10", 206, 10),
        ("bytes=10-5", 416, 14),
        ("bytes=x", 416, 14),
        ("lines=1-2", 416, 14),
        ("bytes=99999999-", 416, 33),
        ("", 200, None),
    ],
)
def test_ranges_are_parsed_like_gos(
    client: NavidromeClient, wanted: str, status: int, length: int | None
) -> None:
    target = f"/rest/stream?{QUERY}&id={_song(client)}"
    whole = client.request("GET", target)
    reply = client.request("GET", target, headers={"Range": wanted})
    assert (reply.status, len(reply.body)) == (status, length or len(whole.body))


def test_a_range_is_that_part_of_the_whole(client: NavidromeClient) -> None:
    target = f"/rest/download?{QUERY}&id={_song(client)}"
    whole = client.request("GET", target).body
    for start, end in ((0, 50), (40, 48), (1001, 200_000), (len(whole) - 7, len(whole))):
        reply = client.request("GET", target, headers={"Range": f"bytes={start}-{end - 1}"})
        assert reply.body == whole[start:end]
        assert reply.headers["content-range"] == f"bytes {start}-{end - 1}/{len(whole)}"


def test_two_ranges_come_in_parts(client: NavidromeClient) -> None:
    target = f"/rest/stream?{QUERY}&id={_song(client)}"
    reply = client.request("GET", target, headers={"Range": "bytes=0-3,8-11"})
    boundary = reply.headers["content-type"].partition("boundary=")[2].encode()
    parts = [part.partition(b"\r\n\r\n")[2] for part in reply.body.split(b"--" + boundary)[1:-1]]
    assert reply.status == 206
    assert parts == [b"RIFF\r\n", b"WAVE\r\n"]


def test_a_range_of_another_version_is_ignored(client: NavidromeClient) -> None:
    target = f"/rest/stream?{QUERY}&id={_song(client)}"
    other = {"Range": "bytes=0-3", "If-Range": "Wed, 01 Jan 2020 00:00:00 GMT"}
    assert client.request("GET", target, headers=other).status == 200
    same = {**other, "If-Range": client.request("HEAD", target).headers["last-modified"]}
    assert client.request("GET", target, headers=same).status == 206


def test_a_cover_in_the_clients_cache_is_not_sent_again(client: NavidromeClient) -> None:
    target = f"/rest/getCoverArt?{QUERY}&id={_song(client)}&size=300"
    cover = client.request("GET", target)
    assert cover.headers["content-type"] == "image/jpeg"
    again = client.request("GET", target, headers={"If-None-Match": cover.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


def test_a_cover_matches_by_weak_comparison_and_a_placeholder_is_not_stored(
    client: NavidromeClient,
) -> None:
    target = f"/rest/getCoverArt?{QUERY}&id={_song(client)}&size=300"
    etag = client.request("GET", target).headers["etag"]
    for known, status in ((f"W/{etag}", 304), (f'"x", {etag}', 304), ("*", 304), ('"x"', 200)):
        reply = client.request("GET", target, headers={"If-None-Match": known})
        assert (reply.status, reply.headers["etag"]) == (status, etag), known
    placeholder = client.request("GET", f"/rest/getCoverArt?{QUERY}")
    assert (placeholder.status, placeholder.headers["cache-control"]) == (200, "no-store")
    assert placeholder.headers["content-type"].startswith("image/")


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("If-Modified-Since", "Fri, 01 Jan 2100 00:00:00 GMT", 304),
        ("If-Modified-Since", "Fri, 01 Jan 2010 00:00:00 GMT", 200),
        ("If-Unmodified-Since", "Fri, 01 Jan 2010 00:00:00 GMT", 412),
        ("If-None-Match", "*", 304),
        ("If-None-Match", '"x"', 200),
        ("If-Match", '"x"', 412),
    ],
)
def test_a_stream_has_conditions_by_its_time(
    client: NavidromeClient, name: str, value: str, status: int
) -> None:
    target = f"/rest/stream?{QUERY}&id={_song(client)}"
    reply = client.request("GET", target, headers={name: value})
    assert (reply.status, reply.body == b"") == (status, status != 200)


def test_each_get_creates_another_playlist(client: NavidromeClient) -> None:
    name = client.new_name()
    client.create(name)
    for _ in range(2):
        client.request("GET", f"/rest/createPlaylist?{QUERY}&name=mine", name)
    listed = client.request("GET", f"/rest/getPlaylists?{QUERY}", name).json()
    names = [p["name"] for p in listed["subsonic-response"]["playlists"]["playlist"]]
    assert names == ["mine", "mine"]


def test_subsonic_lists_every_user_to_admins_and_only_the_own_one_to_others(
    client: NavidromeClient,
) -> None:
    name = client.new_name()
    client.create(name)
    refused = client.request("GET", f"/rest/getUsers?{QUERY}", name).json()["subsonic-response"]
    assert refused["error"] == {
        "code": 50,
        "message": "User is not authorized for the given operation",
    }
    listed = client.request("GET", f"/rest/getUsers?{QUERY}").json()["subsonic-response"]
    assert [user["username"] for user in listed["users"]["user"]] == ["navidrome-shim"]


def test_a_missing_song_is_a_subsonic_error(client: NavidromeClient) -> None:
    for call in ("getSong", "stream"):
        reply = client.request("GET", f"/rest/{call}?{QUERY}&id=none")
        assert (reply.status, reply.json()["subsonic-response"]["error"]["code"]) == (200, 70)


def test_a_share_plays_without_sign_in_and_its_page_creates_the_headers_account(
    client: NavidromeClient,
) -> None:
    created = client.request("POST", "/api/share", body={"resourceIds": _song(client)}).json()
    name = client.new_name()
    page = client.request("GET", f"/share/{created['id']}", name).body.decode()
    assert client.request("GET", "/api/song", name).status == 200
    info = re.search(r"__SHARE_INFO__ = (\".*\")", page)
    assert info is not None
    track = json.loads(json.loads(info[1]))["tracks"][0]["id"]
    played = client.request(
        "GET", f"/share/s/{track}", None, source=UNTRUSTED, headers={"Range": "bytes=0-3"}
    )
    assert (played.status, played.body) == (206, b"RIFF")
    assert client.request("GET", f"/share/s/{track}x", None).status == 400


def test_events_start_at_once_and_have_a_name(client: NavidromeClient) -> None:
    import http.client

    connection = http.client.HTTPConnection(
        "127.0.0.1", client.port, timeout=10, source_address=("127.0.0.2", 0)
    )
    connection.request("GET", "/api/events", headers={"Remote-User": "navidrome-shim"})
    response = connection.getresponse()
    assert response.getheader("Content-Type") == "text/event-stream"
    assert response.getheader("X-Accel-Buffering") == "no"
    assert response.readline() == b"id: 0\n"
    assert response.readline() == b"event: serverStart\n"
    connection.close()


def _subsonic(client: NavidromeClient, call: str, user: str | None = "navidrome-shim") -> Any:
    return client.request("GET", f"/rest/{call}", user).json()["subsonic-response"]


def test_a_scrobble_needs_an_id_and_as_many_times_and_ignores_unknown_songs(
    client: NavidromeClient,
) -> None:
    song = _song(client)
    for parameters in (f"id={song}", f"id={song}&submission=false", "id=none", f"id={song}&time=1"):
        assert _subsonic(client, f"scrobble?{QUERY}&{parameters}")["status"] == "ok"
    assert _subsonic(client, f"scrobble?{QUERY}")["error"]["code"] == 10
    assert _subsonic(client, f"scrobble?{QUERY}&id={song}&time=1&time=2")["error"]["code"] == 0


@pytest.mark.parametrize("call", ["stream", "download", "getCoverArt"])
def test_head_gives_the_fields_of_get_without_the_body(client: NavidromeClient, call: str) -> None:
    target = f"/rest/{call}?{QUERY}&id={_song(client)}"
    whole, head = (client.request(method, target) for method in ("GET", "HEAD"))
    assert (head.status, head.body) == (200, b"")
    changing = {"date", "set-cookie", "transfer-encoding"}
    for name in set(whole.headers) - changing:
        assert head.headers[name] == whole.headers[name], name


def test_a_range_of_a_head_request_has_its_length(client: NavidromeClient) -> None:
    target = f"/rest/stream?{QUERY}&id={_song(client)}"
    reply = client.request("HEAD", target, headers={"Range": "bytes=5-14"})
    assert (reply.status, reply.headers["content-length"], reply.body) == (206, "10", b"")


def test_a_playlist_is_changed_and_deleted_by_its_owner(client: NavidromeClient) -> None:
    name, other = client.new_name(), client.new_name()
    client.create(name)
    client.create(other)
    song = _song(client)
    made = _subsonic(client, f"createPlaylist?{QUERY}&name=a&songId={song}&songId={song}", name)
    playlist = made["playlist"]["id"]
    assert made["playlist"]["songCount"] == 2
    changed = f"updatePlaylist?{QUERY}&playlistId={playlist}&songIndexToRemove=0&name=b"
    assert _subsonic(client, changed, other)["error"]["code"] in {50, 70}
    assert _subsonic(client, changed, name)["status"] == "ok"
    shown = _subsonic(client, f"getPlaylist?{QUERY}&id={playlist}", name)["playlist"]
    assert (shown["name"], shown["songCount"], shown["owner"]) == ("b", 1, name)
    assert _subsonic(client, f"deletePlaylist?{QUERY}&id={playlist}", name)["status"] == "ok"
    gone = _subsonic(client, f"getPlaylist?{QUERY}&id={playlist}", name)
    assert gone["error"]["code"] == 70


@pytest.mark.parametrize(
    ("callback", "wrapped"),
    [("cb", True), ("a.b", True), ("%24x", True), ("1a", False), ("a(", False), ("", False)],
)
@pytest.mark.parametrize(("user", "status"), [("navidrome-shim", "ok"), (None, "failed")])
def test_jsonp_is_wrapped_in_a_valid_callback(
    client: NavidromeClient, callback: str, wrapped: bool, user: str | None, status: str
) -> None:
    target = f"/rest/ping?v=1&c=x&f=jsonp&callback={callback}"
    reply = client.request("GET", target, user)
    text = reply.body.decode()
    if not wrapped:
        assert reply.headers["content-type"] == "application/json"
        error = {"code": 0, "message": "invalid callback parameter"}
        assert json.loads(text)["subsonic-response"]["error"] == error
        return
    assert reply.headers["content-type"] == "application/javascript"
    name = callback.replace("%24", "$")
    assert text.startswith(f"{name}(") and text.endswith(")")
    content = json.loads(text[len(name) + 1 : -1])
    assert content["subsonic-response"]["status"] == status


@pytest.mark.parametrize("query", ["a=%zz", "a=b;c=d", "%=1"], ids=["escape", "semicolon", "name"])
def test_a_query_or_form_that_go_rejects_is_error_0(client: NavidromeClient, query: str) -> None:
    right = "v=1&c=x&f=json&u=navidrome-shim&p=s3cret-one"
    by_query = client.request("GET", f"/rest/ping?{right}&{query}", None).json()
    assert by_query["subsonic-response"]["error"]["code"] == 0
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for method in ("POST", "PUT", "PATCH"):
        by_form = client.request(
            method, "/rest/ping?f=json", None, headers=form, body=f"{right}&{query}"
        ).json()
        assert by_form["subsonic-response"]["error"]["code"] == 0
    other = {"Content-Type": "application/x-www-form-urlencoded; ="}
    invalid = client.request("POST", f"/rest/ping?{right}", None, headers=other, body="").json()
    assert invalid["subsonic-response"]["error"]["code"] == 0


@pytest.mark.parametrize(("count", "code"), [(10_000, None), (10_001, 0)])
def test_a_query_has_10000_parameters_at_most(
    client: NavidromeClient, count: int, code: int | None
) -> None:
    query = QUERY + "&" * (count - 3)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    by_query = client.request("GET", f"/rest/ping?{query}")
    by_form = client.request("POST", "/rest/ping", headers=form, body=query)
    for reply in (by_query, by_form):
        # The format is a parameter too.
        assert (b'"status":"ok"' in reply.body) == (code is None)
        assert (f'code="{code}"'.encode() in reply.body) == (code is not None)


def test_a_query_and_a_form_have_10000_parameters_at_most_together(client: NavidromeClient) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for count, status in ((9_997, b'"status":"ok"'), (9_998, b'code="10"')):
        body = "&".join(["a=1"] * count)
        assert status in client.request("POST", f"/rest/ping?{QUERY}", headers=form, body=body).body


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "GET"])
def test_a_form_comes_before_the_query_where_it_is_read(
    client: NavidromeClient, method: str
) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    target = "/rest/ping?v=1&c=x&f=json&u=nobody"
    body = "u=navidrome-shim&p=s3cret-one"
    content = client.request(method, target, None, headers=form, body=body).json()
    is_read = method in {"POST", "PUT", "PATCH"}
    assert content["subsonic-response"]["status"] == ("ok" if is_read else "failed")


def test_calls_without_an_implementation_authenticate_first(client: NavidromeClient) -> None:
    for call, status in (("createUser", 501), ("jukeboxControl", 501), ("search", 410)):
        assert client.request("GET", f"/rest/{call}?{QUERY}").status == status
        unknown = client.request("GET", f"/rest/{call}?{QUERY}&u=nobody&p=x", None)
        assert unknown.json()["subsonic-response"]["error"]["code"] == 40
    assert client.request("GET", f"/rest/tokenInfo?{QUERY}").status == 404


def test_the_extensions_are_listed_without_credentials(client: NavidromeClient) -> None:
    for call in ("getOpenSubsonicExtensions", "getOpenSubsonicExtensions.view"):
        listed = _subsonic(client, f"{call}?f=json", None)["openSubsonicExtensions"]
        assert {"name": "formPost", "versions": [1]} in listed
        assert {"name": "songLyrics", "versions": [1, 2]} in listed
        assert "apiKeyAuthentication" not in {each["name"] for each in listed}


@pytest.mark.parametrize(
    ("method", "target", "status", "body"),
    [
        ("GET", "/share/", 400, b"missing parameter: ':id'\n"),
        ("GET", "/share", 400, b"missing parameter: ':id'\n"),
        ("GET", "/share/none", 404, b"Share not found\n"),
        ("HEAD", "/share/none", 404, b""),
        ("POST", "/share/none", 404, b"Share not found\n"),
        ("GET", "/share/none/m3u", 404, b"Share not found\n"),
        ("GET", "/share/d/none", 404, b"Share not found\n"),
        ("GET", "/share/s/none", 400, b"invalid request\n"),
        ("GET", "/share/img/none", 400, b"invalid request\n"),
    ],
)
def test_a_share_that_does_not_exist(
    client: NavidromeClient, method: str, target: str, status: int, body: bytes
) -> None:
    reply = client.request(method, target, None, source=UNTRUSTED)
    assert (reply.status, reply.body) == (status, body)


def test_a_share_belongs_to_its_owner_and_is_deleted(client: NavidromeClient) -> None:
    name, other = client.new_name(), client.new_name()
    client.create(name)
    client.create(other)
    created = client.request("POST", "/api/share", name, body={"resourceIds": _song(client)})
    share = created.json()["id"]
    assert [each["id"] for each in client.request("GET", "/api/share", name).json()] == [share]
    assert client.request("GET", "/api/share", other).json() == []
    assert client.request("GET", f"/share/d/{share}", None).status == 403
    assert client.request("DELETE", f"/api/share/{share}", name).status == 200
    assert client.request("DELETE", f"/api/share/{share}", name).status == 404
    assert client.request("GET", f"/api/share/{share}", name).status == 500
    assert client.request("GET", f"/share/{share}", None).status == 404
