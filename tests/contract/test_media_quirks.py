"""Streams, covers, shares and Subsonic calls that the recording does not cover, on both servers."""

from __future__ import annotations

import json
import re

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
