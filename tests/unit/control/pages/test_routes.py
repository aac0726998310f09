"""The pages over HTTP: authorization, headers, and the proof that a browser needs for a change."""

from __future__ import annotations

import gzip
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from shim.audit.admin_actions import NotStored
from shim.audit.events import Operator
from shim.audit.performing import Performed
from shim.audit.store.reader import TrailReader
from shim.control.access import (
    ADMIN_HEADER,
    CHANNEL_HEADER,
    IDENTITY_HEADER,
    USER_HEADER,
    Access,
)
from shim.control.app import create_app
from shim.control.explain import ExplainedRequest, InvalidRequest
from shim.control.metrics import build_registry
from shim.control.pages.accounts import ACTIONS
from shim.control.pages.rendering import HEADERS
from shim.control.services import ControlServices
from shim.provisioning.administration import AccountList
from shim.provisioning.operations import AccountRow, Change, OperationError, UnknownAccount
from shim.proxy.counters import Counters
from shim.settings import load
from shim.settings.reload import ReloadResult
from shim.trust.identity import Identity
from tests.support.trail_records import START, refused, store, trail
from tests.unit.control.test_app import PASSING, SECRET, TOKEN, Health

ADMIN = {CHANNEL_HEADER: SECRET, USER_HEADER: "ada", ADMIN_HEADER: "1"}
HTML = {"Accept": "text/html"}
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PAGES = (
    "/admin/",
    "/admin/trail",
    "/admin/accounts",
    "/admin/devices",
    "/admin/explain",
    "/admin/configuration",
)
WRITES = (
    "/admin/accounts/sync",
    "/admin/accounts/lock",
    "/admin/accounts/unlock",
    "/admin/accounts/unlink",
    "/admin/configuration",
)
CSRF = re.compile(r'name="csrf_token" value="([^"]+)"')


class Accounts:
    """Accounts that record the actions on them. `refusal` is raised by each action."""

    def __init__(self) -> None:
        self.done: list[tuple[str, Operator, str | None]] = []
        self.refusal: Exception | None = None
        self.note: str | None = None

    async def accounts(self, _operator: Operator) -> AccountList:
        row = AccountRow("bob & co", "1", "u-1", START / 1e6, False, "active", user="bob")
        return AccountList((row,))

    async def sync_plan(self, _operator: Operator, _name: str | None) -> list[Change]:
        return [Change("bob & co", "name", "Bob", "Robert")]

    def lock_plan(self, _operator: Operator, name: str) -> list[str]:
        if name != "bob & co":
            raise UnknownAccount(f"Navidrome has no account {name}")
        return [f"The password of {name} is replaced."]

    unlink_plan = unlock_plan = lock_plan

    async def lock(self, operator: Operator, name: str | None) -> Performed[Any]:
        if self.refusal is not None:
            raise self.refusal
        self.done.append(("lock", operator, name))
        return Performed(None, self.note)

    sync = unlock = unlink = lock


class Console:
    """The application, and a client of it."""

    def __init__(self, reader: TrailReader | None, token: str | None = TOKEN) -> None:
        self.accounts = Accounts()
        self.reloaded_by: list[Operator] = []
        self.reload_result = ReloadResult(changed=("SHIM_ADMIN_GROUPS",))

        async def reload(operator: Operator) -> Performed[ReloadResult]:
            self.reloaded_by.append(operator)
            return Performed(self.reload_result)

        async def explain(request: ExplainedRequest) -> dict[str, object]:
            raise InvalidRequest("peer", f"{request.peer!r} is neither an IP address nor @")

        settings = load(
            {"SHIM_REVERSE_PROXY_WHITELIST": "192.0.2.1", "SHIM_PROXY_SECRET": "s3cret-" * 5}
        )
        services = ControlServices(
            health=Health(PASSING),
            metrics=build_registry(Counters(), version="9"),
            settings=lambda: settings,
            pending_restart=tuple,
            reload=reload,
            explain=explain,
            accounts=self.accounts,  # type: ignore[arg-type]
            trail=reader,
        )
        access = Access(channel_secret=SECRET, token=token, hosts=["127.0.0.1"])
        self.app: FastAPI = create_app(services, access)

    async def send(
        self,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        form: Mapping[str, str] | None = None,
        peer: str = "127.0.0.1",
    ) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, client=(peer, 1), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:4535") as each:
            method = "GET" if form is None else "POST"
            return await each.request(method, path, headers={**HTML, **(headers or {})}, data=form)

    async def csrf(self, path: str, headers: Mapping[str, str]) -> str:
        found = CSRF.search((await self.send(path, headers)).text)
        assert found is not None
        return found[1]


@pytest.fixture
async def console(tmp_path: Path) -> AsyncIterator[Console]:
    url = f"sqlite:///{tmp_path}/audit.db"
    with trail(url) as database:
        store(database, "requests", refused(START))
        reader = TrailReader(url)
        yield Console(reader)
        reader.close()


# how pages are sent


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_has_the_policy_and_is_not_cached(console: Console, path: str) -> None:
    response = await console.send(path, ADMIN)
    assert response.status_code == 200, response.text
    policy = response.headers["content-security-policy"]
    assert policy == HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"\sstyle=|\son[a-z]+=|<style|<script>", response.text)


@pytest.mark.parametrize("path", PAGES)
async def test_every_link_of_a_page_is_relative(console: Console, path: str) -> None:
    text = (await console.send(path, ADMIN)).text
    links = re.findall(r'(?:href|src|action|hx-get|data-stream)="([^"]*)"', text)
    assert len(links) > 8
    assert not [link for link in links if link.startswith("/") or "://" in link]


async def test_a_static_file_is_cached_indefinitely_and_compressed(console: Console) -> None:
    text = (await console.send("/sign-in")).text
    files = re.findall(r'(?:href|src)="\./(static/[^"]+)"', text)
    assert len(files) == 4
    for name in files:
        response = await console.send(f"/{name}", {"Accept-Encoding": "gzip"})
        assert response.status_code == 200
        assert "immutable" in response.headers["cache-control"]
        assert response.headers["content-encoding"] == "gzip"
        plain = await console.send(f"/{name}", {"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.content == response.content
    assert (await console.send("/static/console.css")).status_code == 404


async def test_a_page_is_compressed_only_for_a_client_that_accepts_it(console: Console) -> None:
    plain = await console.send("/admin/trail", {**ADMIN, "Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    packed = await console.send("/admin/trail", {**ADMIN, "Accept-Encoding": "br, gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.text.count("</li>") == plain.text.count("</li>")
    assert len(gzip.compress(plain.content)) < len(plain.content) / 2


# authorization


@pytest.mark.parametrize("path", PAGES)
async def test_pages_require_a_sign_in_which_redirects_back(console: Console, path: str) -> None:
    response = await console.send(f"{path}?user=a%26b")
    assert response.status_code == 303
    assert response.headers["location"].endswith(
        f"sign-in?next={path.replace('/', '%2F')}%3Fuser%3Da%2526b"
    )
    assert (await console.send(path, BEARER)).status_code == 200


@pytest.mark.parametrize("path", [*PAGES, "/api/devices", "/metrics", "/sign-in"])
async def test_a_user_who_is_not_an_administrator_gets_404(console: Console, path: str) -> None:
    person = {CHANNEL_HEADER: SECRET, USER_HEADER: "eve"}
    assert (await console.send(path, person)).status_code == 404


@pytest.mark.parametrize("path", [*PAGES, "/", "/sign-in", "/static/x.css"])
async def test_another_host_name_is_rejected(console: Console, path: str) -> None:
    response = await console.send(path, {"Host": "evil.example"})
    assert response.status_code == 421
    assert "csrf_token" not in response.text


async def test_without_a_token_only_this_machine_can_read_and_there_is_no_sign_in() -> None:
    console = Console(None, token=None)
    assert (await console.send("/admin/accounts")).status_code == 200
    assert "Read only" in (await console.send("/admin/accounts")).text
    assert (await console.send("/admin/accounts", peer="192.0.2.7")).status_code == 403
    assert (await console.send("/sign-in")).status_code == 404


async def test_a_persons_own_page_works_without_provisioning(console: Console) -> None:
    identity = Identity("eve", "Eve <b>", groups=("a|b",), uid="u-2").as_json().decode()
    person = {CHANNEL_HEADER: SECRET, USER_HEADER: "eve", IDENTITY_HEADER: identity}
    response = await console.send("/", person)
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
    assert "Eve &lt;b&gt;" in response.text and "a|b" in response.text
    assert "SHIM_PROVISIONING" in response.text and "form_key" not in response.text
    assert "admin/" not in response.text
    assert "admin/trail" in (await console.send("/", ADMIN)).text
    for path in ("/devices/1/revoke", "/devices/1/rename"):
        assert (await console.send(path, person)).status_code == 404


async def test_the_root_redirects_to_the_console_on_the_listener(console: Console) -> None:
    assert (await console.send("/", BEARER)).headers["location"] == "/admin/"
    assert (await console.send("/")).headers["location"] == "./sign-in?next=%2F"
    assert (await console.send("/without-slash", ADMIN)).headers["location"] == "/_shim/"


async def test_a_sign_in_with_the_token_and_signing_out(console: Console) -> None:
    wrong = await console.send("/sign-in", form={"token": "guess", "next": "/admin/trail"})
    assert wrong.status_code == 401
    assert 'role="alert"' in wrong.text
    assert 'value="/admin/trail"' in wrong.text
    response = await console.send("/sign-in", form={"token": TOKEN, "next": "/admin/trail"})
    assert (response.status_code, response.headers["location"]) == (303, "/admin/trail")
    session = {"Cookie": response.headers["set-cookie"].partition(";")[0]}
    assert (await console.send("/admin/", session)).status_code == 200
    token = await console.csrf("/admin/", session)
    assert (await console.send("/sign-out", session, form={})).status_code == 403
    left = await console.send("/sign-out", session, form={"csrf_token": token})
    assert left.status_code == 303
    assert (await console.send("/admin/", session)).status_code == 303


async def test_too_many_wrong_tokens_give_a_page_with_the_time_to_wait(
    console: Console,
) -> None:
    for number in range(5):
        wrong = {"token": f"guess {number}"}
        assert (await console.send("/sign-in", form=wrong)).status_code == 401
    response = await console.send("/sign-in", form={"token": "guess 5"})
    assert response.status_code == 429
    assert "try again in" in response.text.lower()
    assert "retry-after" in response.headers


# writes


@pytest.mark.parametrize("path", WRITES)
async def test_a_write_requires_the_csrf_token_of_the_same_user(
    console: Console, path: str
) -> None:
    other = await console.csrf("/admin/configuration", {**ADMIN, USER_HEADER: "mallory"})
    for form in ({}, {"csrf_token": ""}, {"csrf_token": "1.2"}, {"csrf_token": other}):
        response = await console.send(path, ADMIN, form={"account": "bob & co", **form})
        assert response.status_code == 403
    assert not console.accounts.done
    assert not console.reloaded_by


@pytest.mark.parametrize("path", [*WRITES, "/admin/explain"])
@pytest.mark.parametrize(
    "foreign",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
    ids=lambda each: str(*each.values()),
)
async def test_a_cross_site_write_is_rejected(
    console: Console, path: str, foreign: Mapping[str, str]
) -> None:
    token = await console.csrf("/admin/configuration", ADMIN)
    form = {"account": "bob & co", "csrf_token": token}
    assert (await console.send(path, {**ADMIN, **foreign}, form=form)).status_code == 403
    assert not console.accounts.done
    assert not console.reloaded_by


@pytest.mark.parametrize("action", ["sync", "lock", "unlink"])
async def test_a_change_is_shown_then_applied_and_reported(console: Console, action: str) -> None:
    path = f"/admin/accounts/{action}"
    shown = await console.send(f"{path}?account=bob+%26+co", ADMIN)
    assert shown.status_code == 200
    assert "bob &amp; co" in shown.text
    assert not console.accounts.done
    found = CSRF.search(shown.text)
    assert found is not None
    form = {"account": "bob & co", "csrf_token": found[1]}
    response = await console.send(path, ADMIN, form=form)
    assert response.status_code == 303
    location = response.headers["location"]
    assert location.startswith(f"../accounts?done={action}&account=bob+%26+co&shown=")
    ((_, operator, name),) = console.accounts.done
    assert (operator.actor, operator.origin, name) == ("console:ada", "console", "bob & co")
    following = f"/admin/{location.removeprefix('../')}"
    assert 'role="status"' in (await console.send(following, ADMIN)).text
    # The link works for nobody else, and for no other account.
    other = {**ADMIN, USER_HEADER: "eve"}
    assert 'role="status"' not in (await console.send(following, other)).text
    altered = following.replace("bob", "ada")
    assert 'role="status"' not in (await console.send(altered, ADMIN)).text


@pytest.mark.parametrize(
    "path",
    [
        *(f"/admin/accounts?done={action}&account=CALL-555" for action in ACTIONS),
        "/admin/accounts?done=lock&account=CALL-555&own=1&shown=9999999999.00",
        *(f"/admin/accounts/{action}?account=CALL-555" for action in ACTIONS if action != "sync"),
        "/admin/devices?done=revoked",
        "/?done=revoked",
        "/?done=renamed",
    ],
)
async def test_no_link_makes_a_page_claim_something(console: Console, path: str) -> None:
    identity = Identity("ada", uid="u-1").as_json().decode()
    response = await console.send(path, {**ADMIN, IDENTITY_HEADER: identity})
    assert response.status_code in (200, 404)
    assert 'role="status"' not in response.text
    assert "CALL-555" not in response.text


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (NotStored("refused, because the audit trail can't be written"), 503),
        (OperationError("the account can't be unlinked"), 409),
    ],
)
async def test_a_refused_change_shows_the_reason(
    console: Console, refusal: Exception, status: int
) -> None:
    console.accounts.refusal = refusal
    token = await console.csrf("/admin/configuration", ADMIN)
    form = {"account": "bob & co", "csrf_token": token}
    response = await console.send("/admin/accounts/unlink", ADMIN, form=form)
    assert response.status_code == status
    assert str(refusal).replace("'", "&#39;") in response.text


async def test_a_change_that_could_not_be_recorded_shows_a_note(console: Console) -> None:
    console.accounts.note = "not recorded in the audit trail, only in the log: disk full"
    token = await console.csrf("/admin/configuration", ADMIN)
    form = {"account": "bob & co", "csrf_token": token}
    response = await console.send("/admin/accounts/lock", ADMIN, form=form)
    assert response.status_code == 200
    assert "disk full" in response.text


async def test_an_unknown_account_or_action_is_not_changed(console: Console) -> None:
    assert (await console.send("/admin/accounts/lock?account=x", ADMIN)).status_code == 404
    assert (await console.send("/admin/accounts/lock", ADMIN)).status_code == 400
    assert (await console.send("/admin/accounts/delete?account=x", ADMIN)).status_code == 404


@pytest.mark.parametrize(
    ("result", "status", "text"),
    [
        (ReloadResult(changed=("SHIM_ADMIN_GROUPS",)), 200, "SHIM_ADMIN_GROUPS"),
        (ReloadResult(pending_restart=("SHIM_LISTEN",)), 200, "takes effect after a restart"),
        (ReloadResult(faults=("SHIM_X: wrong",)), 409, "SHIM_X: wrong"),
        (ReloadResult(), 200, "The settings are unchanged."),
    ],
)
async def test_a_reload_shows_its_result(
    console: Console, result: ReloadResult, status: int, text: str
) -> None:
    console.reload_result = result
    token = await console.csrf("/admin/configuration", ADMIN)
    response = await console.send("/admin/configuration", ADMIN, form={"csrf_token": token})
    assert response.status_code == status
    assert text in response.text
    (operator,) = console.reloaded_by
    assert (operator.actor, operator.origin) == ("console:ada", "console")


# invalid input


@pytest.mark.parametrize(
    "path",
    [
        "/admin/?range=for-ever",
        "/admin/trail?since=nonsense",
        "/admin/trail?cursor=nonsense",
        "/admin/trail?cursor=d.9.9.9&user=%00",
        "/admin/trail?colour=red",
        "/admin/trail?kind=%27%20OR%201=1",
        "/admin/trail?client=300.1.2.3/99",
    ],
)
async def test_invalid_input_is_a_message_with_400(console: Console, path: str) -> None:
    response = await console.send(path, ADMIN)
    if "%00" in path:
        assert response.status_code == 200
        return
    assert response.status_code == 400
    assert re.search(r"<p>(<bdi>)?[^<]*\w+ [^<]*<", response.text)


async def test_an_unknown_event_is_404(console: Console) -> None:
    for name in ("nothing", "%3Cscript%3E", "..%2f..%2f", "x" * 5000):
        response = await console.send(f"/admin/trail/{name}", ADMIN)
        assert response.status_code == 404
        assert "<script>" not in response.text


async def test_a_request_that_cannot_be_explained_shows_the_reason(console: Console) -> None:
    form = {"peer": "<b>", "path": "/", "headers": "a"}
    response = await console.send("/admin/explain", ADMIN, form=form)
    assert response.status_code == 400
    assert "&lt;b&gt;" in response.text
    assert "is neither an IP address nor @" in response.text


async def test_secrets_are_masked(console: Console) -> None:
    text = (await console.send("/admin/configuration", ADMIN)).text
    assert "SHIM_PROXY_SECRET" in text
    assert "s3cret" not in text


async def test_without_a_stored_trail_the_other_parts_are_shown() -> None:
    console = Console(None)
    response = await console.send("/admin/", ADMIN)
    assert response.status_code == 200
    assert "events are only in the log" in response.text
    assert (await console.send("/admin/trail", ADMIN)).status_code == 503


async def test_an_internal_error_is_a_page_without_details(console: Console) -> None:
    console.accounts.accounts = None  # type: ignore[assignment,method-assign]
    response = await console.send("/admin/accounts", ADMIN)
    assert response.status_code == 500
    assert "see the log" in response.text
    assert "TypeError" not in response.text
    assert response.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
