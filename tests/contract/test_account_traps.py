"""Navidrome's traps around accounts that the recording does not show, on both servers."""

from __future__ import annotations

import pytest

from tests.contract.asking import ADMIN, Asker


def test_a_put_to_an_unknown_id_makes_an_account_that_an_empty_password_opens(asker: Asker) -> None:
    name = asker.new_name()
    asker.ask("PUT", f"/api/user/{name}-id", body={"userName": name, "name": "Ghost"})
    assert asker.subsonic_opens(name, "")


def test_a_put_to_a_deleted_admin_raises_an_admin_with_an_empty_password(asker: Asker) -> None:
    name = asker.new_name()
    account_id = asker.make(name, isAdmin=True)
    before = asker.read(account_id)
    asker.ask("DELETE", f"/api/user/{account_id}")
    risen = asker.ask("PUT", f"/api/user/{account_id}", body=before).json()
    assert risen["isAdmin"] is True
    assert risen["createdAt"] != before["createdAt"]
    assert asker.subsonic_opens(name, "")
    assert not asker.subsonic_opens(name, "pw")


def test_an_account_made_without_a_password_has_an_empty_one(asker: Asker) -> None:
    name = asker.new_name()
    asker.ask("POST", "/api/user", body={"userName": name})
    assert asker.subsonic_opens(name, "")


def test_a_post_with_the_id_of_an_account_overwrites_it(asker: Asker) -> None:
    name = asker.new_name()
    account_id = asker.make(name, email="a@example.com")
    made = asker.ask("POST", "/api/user", body={"id": account_id, "userName": name, "name": "N"})
    assert made.json() == {"id": account_id}
    assert asker.read(account_id)["email"] == ""
    assert asker.subsonic_opens(name, "pw")


@pytest.mark.parametrize("wrap", ["  {}", "{}\n", "{}'\"<b>", "{} \U0001f3b5", "{}" + "x" * 3000])
def test_names_are_not_checked(asker: Asker, wrap: str) -> None:
    name = wrap.format(asker.new_name())
    assert asker.read(asker.make(name))["userName"] == name


def test_names_compare_without_case_for_ascii_alone(asker: Asker) -> None:
    name = asker.new_name()
    asker.make(f"{name}\u00e9")
    again = asker.ask("POST", "/api/user", body={"userName": f"{name.upper()}\u00e9"})
    assert again.json() == {"errors": {"userName": "ra.validation.unique"}}
    asker.make(f"{name}\u00c9")


def test_what_was_read_and_written_back_stays_as_it_was(asker: Asker) -> None:
    account_id = asker.make(asker.new_name(), email="a@example.com")
    before = asker.read(account_id)
    asker.ask("PUT", f"/api/user/{account_id}", body=before)
    after = asker.read(account_id)
    before.pop("updatedAt")
    after.pop("updatedAt")
    assert after == before


def test_a_regular_user_can_write_his_own_creation_time(asker: Asker) -> None:
    name = asker.new_name()
    account_id = asker.make(name)
    written = {"userName": name, "createdAt": "2001-02-03T04:05:06Z"}
    asker.ask("PUT", f"/api/user/{account_id}", name, body=written)
    assert asker.read(account_id)["createdAt"].startswith("2001-02-03T04:05:06")


def test_a_form_of_another_site_makes_an_admin(asker: Asker) -> None:
    name = asker.new_name()
    headers = {"Content-Type": "text/plain", "Origin": "https://evil.example"}
    body = f'{{"userName":"{name}","isAdmin":true,"password":"x"}}'
    made = asker.ask("POST", "/api/user", headers=headers, body=body)
    assert made.status == 200
    assert asker.read(made.json()["id"])["isAdmin"] is True


def test_keys_are_taken_in_any_case(asker: Asker) -> None:
    name = asker.new_name()
    made = asker.ask("POST", "/api/user", body={"USERNAME": name, "PassWord": "pw"})
    assert asker.read(made.json()["id"])["userName"] == name


@pytest.mark.parametrize(
    "body", ['{"userName": 1}', '{"isAdmin": "yes"}', "[]", '{"createdAt": "now"}', ""]
)
def test_a_body_of_another_shape_is_refused(asker: Asker, body: str) -> None:
    refused = asker.ask("POST", "/api/user", body=body)
    assert (refused.status, refused.json()) == (422, {"error": "Invalid request payload"})


def test_a_list_is_filtered_by_the_beginning_of_a_name_and_by_id(asker: Asker) -> None:
    name = asker.new_name()
    account_id = asker.make(f"{name}-list", name=f"{name} Listed")
    asker.make(f"{name}-other", name="Other")
    by_name = asker.ask("GET", f"/api/user?name={name.upper()}%20li").json()
    by_id = asker.ask("GET", f"/api/user?id={account_id}").json()
    assert [row["id"] for row in by_name] == [row["id"] for row in by_id] == [account_id]


def test_a_list_is_filtered_by_columns_under_the_names_of_the_table(asker: Asker) -> None:
    name = asker.new_name()
    account_id = asker.make(name, email=f"{name}@example.com")
    for query in (f"user_name={name}", f"email={name}@"):
        assert account_id in [row["id"] for row in asker.ask("GET", f"/api/user?{query}").json()]
    assert asker.ask("GET", "/api/user?user_name=nobody-at-all").json() == []
    assert asker.ask("GET", "/api/user?password=x").json() == []


def test_without_a_range_all_are_listed(asker: Asker) -> None:
    asker.make(asker.new_name())
    for query in ("", "?_start=0&_end=0", "?_sort=nonsense"):
        listed = asker.ask("GET", f"/api/user{query}")
        assert len(listed.json()) == int(listed.headers["x-total-count"])


def test_libraries_need_an_account_and_a_list(asker: Asker) -> None:
    gone = asker.ask("PUT", "/api/user/none/library", body={"libraryIds": [1]})
    assert (gone.status, gone.body) == (404, b"User not found\n")
    account_id = asker.make(asker.new_name())
    refused = asker.ask("PUT", f"/api/user/{account_id}/library", body='{"libraryIds":["1"]}')
    assert (refused.status, refused.body) == (400, b"Invalid request body\n")


def test_the_header_names_nobody_on_the_api_whom_a_page_would_make(asker: Asker) -> None:
    name = asker.new_name()
    assert asker.ask("GET", "/api/song", name).status == 401
    assert b'"code":40' in asker.ask("GET", "/rest/ping?v=1&c=x&f=json", name).body
    asker.ask("HEAD", "/app/", name)
    assert asker.ask("GET", "/api/song", name).status == 200


def test_the_owner_of_a_page_made_account_sets_a_password_without_knowing_one(asker: Asker) -> None:
    name = asker.new_name()
    asker.ask("OPTIONS", "/app/", name)
    account_id = asker.ask("GET", f"/api/user?user_name={name}").json()[0]["id"]
    chosen = asker.ask("PUT", f"/api/user/{account_id}", name, body={"password": "mine"})
    assert chosen.status == 200
    assert asker.subsonic_opens(name, "mine")


def test_the_admin_must_know_his_own_password_to_change_it(asker: Asker) -> None:
    me = asker.ask("GET", f"/api/user?user_name={ADMIN}").json()[0]
    refused = asker.ask("PUT", f"/api/user/{me['id']}", body={**me, "password": "new"})
    assert refused.json() == {"errors": {"currentPassword": "ra.validation.passwordDoesNotMatch"}}
