"""Navidrome's quirks with accounts that the recording does not cover, on both servers."""

from __future__ import annotations

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
    "body", ['{"userName": 1}', '{"isAdmin": "yes"}', "[]", '{"createdAt": "now"}', ""]
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
