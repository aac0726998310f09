"""Navidrome's quirks with accounts that the recording does not cover, on both servers."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.navidrome_client import ADMIN, NavidromeClient


def test_a_put_to_an_unknown_id_creates_an_account_with_an_empty_password(
    client: NavidromeClient,
) -> None:
    name = client.new_name()
    client.request("PUT", f"/api/user/{name}-id", body={"userName": name, "name": "Ghost"})
    assert client.subsonic_opens(name, "")


def test_a_put_to_a_deleted_admin_recreates_the_admin_with_an_empty_password(
    client: NavidromeClient,
) -> None:
    name = client.new_name()
    account_id = client.create(name, isAdmin=True)
    before = client.read(account_id)
    client.request("DELETE", f"/api/user/{account_id}")
    recreated = client.request("PUT", f"/api/user/{account_id}", body=before).json()
    assert recreated["isAdmin"] is True
    assert recreated["createdAt"] != before["createdAt"]
    assert client.subsonic_opens(name, "")
    assert not client.subsonic_opens(name, "pw")


def test_an_account_created_without_a_password_has_an_empty_one(client: NavidromeClient) -> None:
    name = client.new_name()
    client.request("POST", "/api/user", body={"userName": name})
    assert client.subsonic_opens(name, "")


def test_a_post_with_the_id_of_an_account_overwrites_it(client: NavidromeClient) -> None:
    name = client.new_name()
    account_id = client.create(name, email="a@example.com")
    created = client.request(
        "POST", "/api/user", body={"id": account_id, "userName": name, "name": "N"}
    )
    assert created.json() == {"id": account_id}
    assert client.read(account_id)["email"] == ""
    assert client.subsonic_opens(name, "pw")


@pytest.mark.parametrize("wrap", ["  {}", "{}\n", "{}'\"<b>", "{} \U0001f3b5", "{}" + "x" * 3000])
def test_names_are_not_validated(client: NavidromeClient, wrap: str) -> None:
    name = wrap.format(client.new_name())
    assert client.read(client.create(name))["userName"] == name


def test_names_compare_case_insensitively_for_ascii_only(client: NavidromeClient) -> None:
    name = client.new_name()
    client.create(f"{name}\u00e9")
    again = client.request("POST", "/api/user", body={"userName": f"{name.upper()}\u00e9"})
    assert again.json() == {"errors": {"userName": "ra.validation.unique"}}
    client.create(f"{name}\u00c9")


def test_a_record_that_is_written_back_is_unchanged(client: NavidromeClient) -> None:
    account_id = client.create(client.new_name(), email="a@example.com")
    before = client.read(account_id)
    client.request("PUT", f"/api/user/{account_id}", body=before)
    after = client.read(account_id)
    before.pop("updatedAt")
    after.pop("updatedAt")
    assert after == before


def test_a_regular_user_can_write_the_creation_time(client: NavidromeClient) -> None:
    name = client.new_name()
    account_id = client.create(name)
    written = {"userName": name, "createdAt": "2001-02-03T04:05:06Z"}
    client.request("PUT", f"/api/user/{account_id}", name, body=written)
    assert client.read(account_id)["createdAt"].startswith("2001-02-03T04:05:06")


def test_a_cross_site_form_creates_an_admin(client: NavidromeClient) -> None:
    name = client.new_name()
    headers = {"Content-Type": "text/plain", "Origin": "https://evil.example"}
    body = f'{{"userName":"{name}","isAdmin":true,"password":"x"}}'
    created = client.request("POST", "/api/user", headers=headers, body=body)
    assert created.status == 200
    assert client.read(created.json()["id"])["isAdmin"] is True


def test_json_keys_are_accepted_in_any_case(client: NavidromeClient) -> None:
    name = client.new_name()
    created = client.request("POST", "/api/user", body={"USERNAME": name, "PassWord": "pw"})
    assert client.read(created.json()["id"])["userName"] == name


@pytest.mark.parametrize(
    "body",
    [
        '{"userName": 1}',
        '{"isAdmin": "yes"}',
        "[]",
        '{"createdAt": "now"}',
        '{"createdAt": "2020-13-01T00:00:00Z"}',
        '{"createdAt": "2020-01-01 00:00:00Z"}',
        "",
    ],
)
def test_a_body_of_another_type_is_rejected(client: NavidromeClient, body: str) -> None:
    refused = client.request("POST", "/api/user", body=body)
    assert (refused.status, refused.json()) == (422, {"error": "Invalid request payload"})


def test_a_list_is_filtered_by_name_prefix_and_by_id(client: NavidromeClient) -> None:
    name = client.new_name()
    account_id = client.create(f"{name}-list", name=f"{name} Listed")
    client.create(f"{name}-other", name="Other")
    by_name = client.request("GET", f"/api/user?name={name.upper()}%20li").json()
    by_id = client.request("GET", f"/api/user?id={account_id}").json()
    assert [row["id"] for row in by_name] == [row["id"] for row in by_id] == [account_id]


def test_a_list_is_filtered_by_columns_with_the_names_of_the_table(
    client: NavidromeClient,
) -> None:
    name = client.new_name()
    account_id = client.create(name, email=f"{name}@example.com")
    for query in (f"user_name={name}", f"email={name}@"):
        assert account_id in [
            row["id"] for row in client.request("GET", f"/api/user?{query}").json()
        ]
    assert client.request("GET", "/api/user?user_name=nobody-at-all").json() == []
    assert client.request("GET", "/api/user?password=x").json() == []


def test_without_a_range_every_user_is_listed(client: NavidromeClient) -> None:
    client.create(client.new_name())
    for query in ("", "?_start=0&_end=0", "?_sort=nonsense"):
        listed = client.request("GET", f"/api/user{query}")
        assert len(listed.json()) == int(listed.headers["x-total-count"])


def test_libraries_require_an_account_and_a_list(client: NavidromeClient) -> None:
    missing = client.request("PUT", "/api/user/none/library", body={"libraryIds": [1]})
    assert (missing.status, missing.body) == (404, b"User not found\n")
    account_id = client.create(client.new_name())
    refused = client.request("PUT", f"/api/user/{account_id}/library", body='{"libraryIds":["1"]}')
    assert (refused.status, refused.body) == (400, b"Invalid request body\n")


def test_the_user_header_creates_an_account_on_a_page_but_not_on_the_api(
    client: NavidromeClient,
) -> None:
    name = client.new_name()
    assert client.request("GET", "/api/song", name).status == 401
    assert b'"code":40' in client.request("GET", "/rest/ping?v=1&c=x&f=json", name).body
    client.request("HEAD", "/app/", name)
    assert client.request("GET", "/api/song", name).status == 200


def test_the_owner_of_an_account_created_by_a_page_sets_a_password_without_the_old_one(
    client: NavidromeClient,
) -> None:
    name = client.new_name()
    client.request("OPTIONS", "/app/", name)
    account_id = client.request("GET", f"/api/user?user_name={name}").json()[0]["id"]
    chosen = client.request("PUT", f"/api/user/{account_id}", name, body={"password": "mine"})
    assert chosen.status == 200
    assert client.subsonic_opens(name, "mine")


def test_an_admin_needs_the_old_password_to_change_it(client: NavidromeClient) -> None:
    me = client.request("GET", f"/api/user?user_name={ADMIN}").json()[0]
    refused = client.request("PUT", f"/api/user/{me['id']}", body={**me, "password": "new"})
    assert refused.json() == {"errors": {"currentPassword": "ra.validation.passwordDoesNotMatch"}}


@pytest.mark.parametrize("length", [255, 256, 20_000])
def test_fields_have_no_limit(client: NavidromeClient, length: int) -> None:
    name = client.new_name() + "u" * length
    account_id = client.create(name, email="e" * length, password="p" * length)
    record = client.read(account_id)
    assert (record["userName"], len(record["email"])) == (name, length)
    assert client.subsonic_opens(name, "p" * length)
    cookie = client.request("GET", "/rest/ping?v=1&c=x", name).headers["set-cookie"]
    assert cookie.startswith(f"nd-player-{name.encode().hex()}=")


def test_a_name_is_taken_in_every_case_of_its_letters_and_not_with_blanks(
    client: NavidromeClient,
) -> None:
    name = client.new_name()
    first, second = client.create(name), client.create(f"{name}-second")
    taken = {"errors": {"userName": "ra.validation.unique"}}
    record = client.read(second)
    for other in (name, name.upper(), name.title()):
        refused = client.request("PUT", f"/api/user/{second}", body={**record, "userName": other})
        assert (refused.status, refused.json()) == (400, taken)
    for other in (f"{name} ", f" {name}"):
        written = client.request("PUT", f"/api/user/{second}", body={**record, "userName": other})
        assert written.json()["userName"] == other
    own = client.request("PUT", f"/api/user/{first}", body={"userName": name.upper()})
    assert own.json()["userName"] == name.upper()


def _plays(client: NavidromeClient, name: str) -> tuple[str, str]:
    """Create a playlist and a share of this user; returns the share's id, and its token for a song."""
    song = client.request("GET", "/api/song?_start=0&_end=1&_sort=title", name).json()[0]["id"]
    client.request("GET", f"/rest/createPlaylist?v=1&c=x&name=mine&songId={song}", name)
    share = client.request("POST", "/api/share", name, body={"resourceIds": song}).json()["id"]
    page = client.request("GET", f"/share/{share}", None).body.decode()
    found = re.search(r"__SHARE_INFO__ = (\".*\")", page)
    assert found is not None
    return share, json.loads(json.loads(found[1]))["tracks"][0]["id"]


def _playlists(client: NavidromeClient, name: str) -> list[tuple[str, str]]:
    reply = client.request("GET", "/rest/getPlaylists?v=1&c=x&f=json", name).json()
    listed = reply["subsonic-response"]["playlists"].get("playlist", [])
    return [(each["name"], each["owner"]) for each in listed]


def test_a_deleted_account_leaves_no_playlists_and_no_shares(client: NavidromeClient) -> None:
    name = client.new_name()
    account_id = client.create(name)
    share, token = _plays(client, name)
    head = {"Range": "bytes=0-3"}
    assert client.request("GET", f"/share/s/{token}", None, headers=head).body == b"RIFF"
    assert client.request("DELETE", f"/api/user/{account_id}").status == 200
    for target in (
        f"/share/{share}",
        f"/share/s/{token}",
        f"/share/d/{share}",
        f"/share/{share}/m3u",
    ):
        gone = client.request("GET", target, None)
        assert (gone.status, gone.body) == (404, b"Share not found\n"), target
    client.request("PUT", f"/api/user/{account_id}", body={"userName": name})
    assert _playlists(client, name) == []
    assert client.request("GET", "/api/share", name).json() == []


def test_a_renamed_account_keeps_its_playlists_and_shares(client: NavidromeClient) -> None:
    name = client.new_name()
    account_id = client.create(name)
    share, _ = _plays(client, name)
    client.request("PUT", f"/api/user/{account_id}", body={"userName": f"{name}-new"})
    assert _playlists(client, f"{name}-new") == [("mine", f"{name}-new")]
    assert client.request("GET", f"/share/{share}", None).status == 200
    assert ("mine", f"{name}-new") in _playlists(client, ADMIN)


def test_an_admin_deletes_the_own_account(client: NavidromeClient) -> None:
    name = client.new_name()
    account_id = client.create(name, isAdmin=True)
    assert client.request("DELETE", f"/api/user/{account_id}", name).json() == {}
    assert client.request("GET", f"/api/user/{account_id}").status == 404
    assert client.request("GET", "/api/song", name).status == 401


def test_an_admin_has_all_libraries_and_keeps_them_as_a_regular_user(
    client: NavidromeClient,
) -> None:
    account_id = client.create(client.new_name())
    for admin in (True, False):
        record = {**client.read(account_id), "isAdmin": admin}
        written = client.request("PUT", f"/api/user/{account_id}", body=record).json()
        assert [library["id"] for library in written["libraries"]] == [1]
    target = f"/api/user/{account_id}/library"
    for body in ({"libraryIds": [1, 1]}, {"libraryIds": [1, 99]}):
        refused = client.request("PUT", target, body=body)
        text = b"validation error: one or more library IDs are invalid\n"
        assert (refused.status, refused.body) == (400, text)
    for empty in ("null", '{"libraryIds":null}', "{} x"):
        refused = client.request("PUT", target, body=empty)
        assert refused.body.startswith(b"validation error: at least one library"), empty
    assert client.request("PUT", target, body='{"libraryIds":[1]} x').status == 200


def test_the_libraries_of_a_user_are_for_admins_only(client: NavidromeClient) -> None:
    name = client.new_name()
    target = f"/api/user/{client.create(name)}/library"
    for method in ("GET", "PUT"):
        refused = client.request(method, target, name, body={"libraryIds": [1]})
        text = b"Access denied: admin privileges required\n"
        assert (refused.status, refused.body) == (403, text)
    assert client.request("GET", "/api/user/none/library").status == 404
    assert client.request("GET", "/api/library/99").json() == {"error": "data not found"}


_REQUIRED = "ra.validation.required"
_WRONG = "ra.validation.passwordDoesNotMatch"


@pytest.mark.parametrize(
    ("sent", "errors"),
    [
        ({"password": "new"}, {"currentPassword": _WRONG}),
        ({"password": "new", "currentPassword": ""}, {"currentPassword": _WRONG}),
        ({"password": "new", "currentPassword": "PW"}, {"currentPassword": _WRONG}),
        ({"currentPassword": "pw"}, {"password": _REQUIRED}),
        ({"currentPassword": "no"}, {"password": _REQUIRED, "currentPassword": _WRONG}),
        ({"password": "new", "currentPassword": "pw"}, None),
        ({"password": ""}, None),
    ],
)
def test_a_user_changes_the_own_password_with_the_current_one(
    client: NavidromeClient, sent: dict[str, str], errors: dict[str, str] | None
) -> None:
    name = client.new_name()
    account_id = client.create(name)
    reply = client.request("PUT", f"/api/user/{account_id}", name, body=sent)
    assert (reply.status, reply.json().get("errors")) == (400 if errors else 200, errors)
    changed = errors is None and bool(sent.get("password"))
    assert client.subsonic_opens(name, "new" if changed else "pw")


def test_a_generated_password_is_replaced_whatever_current_password_is_sent(
    client: NavidromeClient,
) -> None:
    name = client.new_name()
    account_id = client.create(name, password="__NAVIDROME_AUTOGEN__abc")
    missing = client.request("PUT", f"/api/user/{account_id}", name, body={"currentPassword": "x"})
    assert missing.json() == {"errors": {"password": _REQUIRED}}
    chosen = {"password": "mine", "currentPassword": "x"}
    assert client.request("PUT", f"/api/user/{account_id}", name, body=chosen).status == 200
    assert client.subsonic_opens(name, "mine")


def test_a_creation_reads_the_first_json_value_and_an_update_the_whole_body(
    client: NavidromeClient,
) -> None:
    name = client.new_name()
    body = f'{{"userName":"{name}"}} and more'
    created = client.request("POST", "/api/user", body=body)
    assert client.read(created.json()["id"])["userName"] == name
    account_id = created.json()["id"]
    assert client.request("PUT", f"/api/user/{account_id}", body=body).status == 422


def test_text_that_is_not_utf_8_is_replaced_in_names(client: NavidromeClient) -> None:
    name = client.new_name()
    created = client.request("POST", "/api/user", body=f'{{"userName":"\\ud800{name}"}}')
    assert client.read(created.json()["id"])["userName"] == f"\ufffd{name}"
    utf_16 = f'{{"userName":"{name}"}}'.encode("utf-16").decode("latin-1")
    assert client.request("POST", "/api/user", body=utf_16).status == 422


def test_a_scrobble_filter_must_be_a_rule(client: NavidromeClient) -> None:
    name = client.new_name()
    account_id = client.create(name)
    wrong = {"errors": {"scrobbleFilter": "resources.user.validation.invalidScrobbleFilter"}}
    for text in ("junk", "{}", "[]", '{"all":[],"any":[]}'):
        body = {"userName": name, "scrobbleFilter": text}
        refused = client.request("PUT", f"/api/user/{account_id}", body=body)
        assert (refused.status, refused.json()) == (400, wrong), text
    rule = '{"all":[{"is":{"genre":"Rock"}}]}'
    body = {"userName": name, "scrobbleFilter": f" {rule} "}
    assert (
        client.request("PUT", f"/api/user/{account_id}", body=body).json()["scrobbleFilter"] == rule
    )


def test_a_list_from_an_offset_needs_an_end(client: NavidromeClient) -> None:
    for query in ("_start=1&_end=1", "_start=5&_end=2", "_start=1"):
        assert client.request("GET", f"/api/user?{query}").status == 500, query
    assert client.request("GET", "/api/user?_start=9999&_end=10000").json() == []


def test_the_last_access_is_noted_once_a_minute_for_each_api(client: NavidromeClient) -> None:
    name = client.new_name()
    account_id = client.create(name)
    noted = [client.read(account_id)["lastAccessAt"]]
    for target in ("/app/", "/api/song?_end=1", "/api/song?_end=1", "/rest/ping?v=1&c=x"):
        client.request("GET", target, name)
        noted.append(client.read(account_id)["lastAccessAt"])
    assert noted[:2] == [None, None]
    assert noted[2] is not None and noted[2] == noted[3] != noted[4]


def test_an_update_takes_its_id_from_the_path_and_a_users_own_name_and_rights_stay(
    client: NavidromeClient,
) -> None:
    name, other = client.new_name(), client.new_name()
    account_id, other_id = client.create(name), client.create(other)
    body = {"id": other_id, "userName": "renamed", "isAdmin": True, "email": "a@example.com"}
    written = client.request("PUT", f"/api/user/{account_id}", name, body=body).json()
    assert (written["id"], written["userName"], written["isAdmin"]) == (account_id, name, False)
    assert written["email"] == "a@example.com"
    assert client.read(other_id)["email"] == ""
    refused = client.request("PUT", "/api/user/none", name, body={"userName": name})
    assert refused.json() == {"error": "Updating user: Permission denied"}


def test_names_that_differ_beyond_the_case_of_ascii_letters_are_different(
    client: NavidromeClient,
) -> None:
    name = client.new_name()
    for suffix in ("", "\0x", "\u212a", "k", "\u0131", "i", "\u00df", "e\u0301", "\u00e9"):
        client.create(name + suffix)
    assert client.subsonic_opens(name, "pw")
