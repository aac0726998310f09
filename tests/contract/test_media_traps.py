"""Streams, covers, shares and Subsonic calls as the recording does not show them, on both."""

from __future__ import annotations

import json
import re

import pytest

from tests.contract.asking import ANYONE, Asker

QUERY = "v=1.16.1&c=x&f=json"


def _song(asker: Asker) -> str:
    song_id: str = asker.ask("GET", "/api/song?_start=0&_end=1&_sort=title").json()[0]["id"]
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
def test_ranges_are_read_as_go_reads_them(
    asker: Asker, wanted: str, status: int, length: int | None
) -> None:
    target = f"/rest/stream?{QUERY}&id={_song(asker)}"
    whole = asker.ask("GET", target)
    reply = asker.ask("GET", target, headers={"Range": wanted})
    assert (reply.status, len(reply.body)) == (status, length or len(whole.body))


def test_a_range_is_a_slice_of_the_whole(asker: Asker) -> None:
    target = f"/rest/download?{QUERY}&id={_song(asker)}"
    whole = asker.ask("GET", target).body
    for start, end in ((0, 50), (40, 48), (1001, 200_000), (len(whole) - 7, len(whole))):
        reply = asker.ask("GET", target, headers={"Range": f"bytes={start}-{end - 1}"})
        assert reply.body == whole[start:end]
        assert reply.headers["content-range"] == f"bytes {start}-{end - 1}/{len(whole)}"


def test_two_ranges_come_in_parts(asker: Asker) -> None:
    target = f"/rest/stream?{QUERY}&id={_song(asker)}"
    reply = asker.ask("GET", target, headers={"Range": "bytes=0-3,8-11"})
    boundary = reply.headers["content-type"].partition("boundary=")[2].encode()
    parts = [part.partition(b"\r\n\r\n")[2] for part in reply.body.split(b"--" + boundary)[1:-1]]
    assert reply.status == 206
    assert parts == [b"RIFF\r\n", b"WAVE\r\n"]


def test_a_range_of_another_version_is_passed_over(asker: Asker) -> None:
    target = f"/rest/stream?{QUERY}&id={_song(asker)}"
    other = {"Range": "bytes=0-3", "If-Range": "Wed, 01 Jan 2020 00:00:00 GMT"}
    assert asker.ask("GET", target, headers=other).status == 200
    same = {**other, "If-Range": asker.ask("HEAD", target).headers["last-modified"]}
    assert asker.ask("GET", target, headers=same).status == 206


def test_a_cover_that_the_client_has_is_not_sent_again(asker: Asker) -> None:
    target = f"/rest/getCoverArt?{QUERY}&id={_song(asker)}&size=300"
    cover = asker.ask("GET", target)
    assert cover.headers["content-type"] == "image/jpeg"
    again = asker.ask("GET", target, headers={"If-None-Match": cover.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


def test_a_get_makes_another_playlist_each_time(asker: Asker) -> None:
    name = asker.new_name()
    asker.make(name)
    for _ in range(2):
        asker.ask("GET", f"/rest/createPlaylist?{QUERY}&name=mine", name)
    listed = asker.ask("GET", f"/rest/getPlaylists?{QUERY}", name).json()
    names = [p["name"] for p in listed["subsonic-response"]["playlists"]["playlist"]]
    assert names == ["mine", "mine"]


def test_subsonic_lists_users_to_admins_and_only_themselves(asker: Asker) -> None:
    name = asker.new_name()
    asker.make(name)
    refused = asker.ask("GET", f"/rest/getUsers?{QUERY}", name).json()["subsonic-response"]
    assert refused["error"] == {
        "code": 50,
        "message": "User is not authorized for the given operation",
    }
    listed = asker.ask("GET", f"/rest/getUsers?{QUERY}").json()["subsonic-response"]
    assert [user["username"] for user in listed["users"]["user"]] == ["navidrome-shim"]


def test_a_song_that_is_not_there_is_a_subsonic_error(asker: Asker) -> None:
    for call in ("getSong", "stream"):
        reply = asker.ask("GET", f"/rest/{call}?{QUERY}&id=none")
        assert (reply.status, reply.json()["subsonic-response"]["error"]["code"]) == (200, 70)


def test_a_share_plays_for_anyone_and_its_page_makes_the_header_s_account(asker: Asker) -> None:
    made = asker.ask("POST", "/api/share", body={"resourceIds": _song(asker)}).json()
    name = asker.new_name()
    page = asker.ask("GET", f"/share/{made['id']}", name).body.decode()
    assert asker.ask("GET", "/api/song", name).status == 200
    info = re.search(r"__SHARE_INFO__ = (\".*\")", page)
    assert info is not None
    track = json.loads(json.loads(info[1]))["tracks"][0]["id"]
    played = asker.ask(
        "GET", f"/share/s/{track}", None, source=ANYONE, headers={"Range": "bytes=0-3"}
    )
    assert (played.status, played.body) == (206, b"RIFF")
    assert asker.ask("GET", f"/share/s/{track}x", None).status == 400


def test_events_begin_at_once_and_carry_a_name(asker: Asker) -> None:
    import http.client

    connection = http.client.HTTPConnection(
        "127.0.0.1", asker.port, timeout=10, source_address=("127.0.0.2", 0)
    )
    connection.request("GET", "/api/events", headers={"Remote-User": "navidrome-shim"})
    answer = connection.getresponse()
    assert answer.getheader("Content-Type") == "text/event-stream"
    assert answer.getheader("X-Accel-Buffering") == "no"
    assert answer.readline() == b"id: 0\n"
    assert answer.readline() == b"event: serverStart\n"
    connection.close()
