"""The API of accounts, explain, settings and the trail, over real sockets."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.control.conftest import TOKEN, Deployment, start_deployment
from tests.support.shim_settings import command, eventually


def get(deployment: Deployment, path: str, **parameters: Any) -> Any:
    with deployment.operator() as operator:
        response = operator.get(path, params=parameters)
    assert response.status_code == 200, response.text
    return response.json()


def events(deployment: Deployment, **parameters: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get(deployment, "/api/audit/events", **parameters)["events"]
    return found


def account(deployment: Deployment, name: str) -> dict[str, Any]:
    rows = get(deployment, "/api/accounts")["accounts"]
    (found,) = [row for row in rows if row["account"] == name]
    return dict(found)


# accounts


def test_the_accounts_have_identity_rights_libraries_and_state(deployment: Deployment) -> None:
    found = account(deployment, "ada")
    expected = {
        "uid": "uid-of-ada",
        "user": "ada",
        "display_name": "ada",
        "email": "ada@example.com",
        "groups": ["users"],
        "admin": False,
        "state": "active",
        "locked": False,
    }
    assert {name: found[name] for name in expected} == expected
    assert found["libraries"]
    assert found["last_seen"].endswith("Z")
    assert account(deployment, "navidrome-shim")["state"] == "reserved"


def test_a_lock_is_effective_when_the_response_arrives_and_is_recorded(
    deployment: Deployment,
) -> None:
    deployment.visit("bob")
    with deployment.operator() as operator:
        plan = operator.post("/api/accounts/lock", json={"account": "bob", "preview": True})
        assert "replaced by a random one" in plan.json()["plan"][0]
        assert not account(deployment, "bob")["locked"]
        done = operator.post("/api/accounts/lock", json={"account": "bob"})
    assert done.json() == {"account": "bob", "locked": True}
    assert account(deployment, "bob")["locked"]
    (action,) = [e for e in events(deployment, kind="admin_action") if e["target"] == "bob"]
    assert (action["action"], action["actor"], action["origin"]) == ("users.lock", "token", "api")
    assert (action["result"], action["client"]) == ("done", "127.0.0.1")
    (locked,) = [e for e in events(deployment, kind="account_locked") if e["account"] == "bob"]
    assert (locked["actor"], locked["trigger"]) == ("token", "admin_action")
    # The running shim gives the user access again.
    deployment.visit("bob")
    assert not account(deployment, "bob")["locked"]


def test_a_sync_shows_its_changes_first(deployment: Deployment) -> None:
    deployment.visit("carl")
    with deployment.operator() as operator:
        preview = operator.post("/api/accounts/sync", json={"account": "carl", "preview": True})
        assert preview.json() == {"changes": [], "applied": False}
        done = operator.post("/api/accounts/sync", json={"account": "carl"})
        assert done.json() == {"changes": [], "applied": True}
        missing = operator.post("/api/accounts/sync", json={"account": "nobody"})
    assert missing.status_code == 404
    assert "nobody" in missing.json()["detail"]
    failed = [e for e in events(deployment, kind="admin_action") if e["target"] == "nobody"]
    assert failed[0]["result"] == "failed"


def test_an_unlinked_account_has_no_identity(deployment: Deployment) -> None:
    deployment.visit("dora")
    with deployment.edge("boss", "admins") as boss:
        header = {"X-CSRF-Token": boss.get("/_shim/api/session").json()["csrf_token"]}
        body = {"account": "dora"}
        done = boss.post("/_shim/api/accounts/unlink", json=body, headers=header)
    assert done.json() == {"account": "dora", "unlinked": True, "locked": True}
    found = account(deployment, "dora")
    assert (found["uid"], found["state"], found["locked"]) == (None, "unlinked", True)
    (action,) = [e for e in events(deployment, kind="admin_action") if e["target"] == "dora"]
    assert (action["actor"], action["client"]) == ("console:boss", "127.0.0.2")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 5000,
        b'{"account": 1}',
        b'{"account": ""}',
        b'{"account": "a", "x": 1}',
        b'{"account": "\\ud800"}',
    ],
)
def test_an_invalid_body_is_rejected_with_a_message(deployment: Deployment, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    with deployment.operator() as operator:
        response = operator.post("/api/accounts/lock", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["detail"]


# explain, settings, reload


def test_explain_gives_the_same_result_as_the_command(deployment: Deployment) -> None:
    request: dict[str, Any] = {
        "peer": "127.0.0.2",
        "path": "/app/",
        "headers": ["X-authentik-username: ada", "X-authentik-uid: uid-of-ada"],
        "with_secret": True,
    }
    headers = ["X-authentik-groups: users"]
    with deployment.operator() as operator:
        response = operator.post(
            "/api/explain", json={**request, "headers": [*request["headers"], *headers]}
        )
    command_output = response.json()
    assert command_output["verdict"] == "authenticated"
    assert ["Remote-User", "ada"] in command_output["forwarded_headers"]
    assert "swordfish" not in response.text
    options = ["--peer", "127.0.0.2", "--path", "/app/", "--with-secret", "--json"]
    for line in (*request["headers"], *headers):
        options += ["-H", line]
    ran = command(deployment.folder, "explain", *options, settings=settings_of(deployment))
    assert json.loads(ran.stdout) == command_output


def settings_of(deployment: Deployment) -> dict[str, str]:
    return {**deployment.settings, "REVERSE_PROXY_WHITELIST": "127.0.0.2,127.2.0.0/16"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"peer": "nonsense"}, "neither an IP address nor @"),
        ({"headers": ["no header"]}, "expected 'Name: value'"),
        ({"headers": ["A: b\r\nX-authentik-username: root"]}, "line break"),
        ({"path": "/\r\nHost: evil"}, "line break"),
        ({"unknown": 1}, "unknown"),
        ({"path": "/\ud800"}, "not UTF-8"),
        ({"headers": ["X: \ud800"]}, "not UTF-8"),
    ],
)
def test_explain_rejects_invalid_input(
    deployment: Deployment, change: dict[str, Any], sentence: str
) -> None:
    with deployment.operator() as operator:
        response = operator.post(
            "/api/explain",
            content=json.dumps({"peer": "@", "path": "/", **change}),
            headers={"Content-Type": "application/json"},
        )
    assert response.status_code == 400
    assert sentence in response.json()["detail"]


def test_the_settings_have_their_sources_and_no_secret(deployment: Deployment) -> None:
    with deployment.operator() as operator:
        response = operator.get("/api/config")
    assert TOKEN not in response.text
    assert "swordfish" not in response.text
    rows = {row["name"]: row for row in response.json()["settings"]}
    assert (rows["SHIM_CONTROL_TOKEN"]["value"], rows["SHIM_CONTROL_TOKEN"]["secret"]) == (
        "***",
        True,
    )
    assert rows["SHIM_ADMIN_GROUPS"]["source"] == "environment"
    assert rows["SHIM_MAX_HEADERS"]["source"] == "default"
    assert any("Console at /_shim/: members of admins" in s for s in response.json()["summary"])


def test_a_reload_is_recorded_with_its_result(deployment: Deployment) -> None:
    with deployment.operator() as operator:
        assert operator.post("/api/reload").json() == {"changed": [], "pending_restart": []}
    reloads = [e for e in events(deployment, kind="admin_action") if e["action"] == "reload"]
    assert reloads[0]["result"] == "done"


# the trail


def test_pages_are_contiguous(deployment: Deployment) -> None:
    every = events(deployment, limit=1000)
    assert len(every) > 5
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = get(deployment, "/api/audit/events", limit=3, cursor=cursor, until=every[0]["time"])
        found += page["events"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    ids = [event["id"] for event in found]
    assert len(set(ids)) == len(ids)
    known = [event["id"] for event in every if event["time"] < every[0]["time"]]
    assert set(known) <= set(ids)


def test_one_event_has_its_position_in_the_chain(deployment: Deployment) -> None:
    first = events(deployment, kind="started")[0]
    found = get(deployment, f"/api/audit/events/{first['id'].upper()}")
    assert found["event"]["id"] == first["id"]
    assert len(found["integrity"]["hash"]) == 64
    with deployment.operator() as operator:
        unknown = operator.get("/api/audit/events/00000000-0000-7000-8000-000000000000")
        assert unknown.status_code == 404
        assert operator.get("/api/audit/events/nonsense").status_code == 400


@pytest.mark.parametrize(
    "query",
    [
        "since=nonsense",
        "since=9999999w",
        "since=2026-13-01",
        "since=2h&until=3h",
        "until=%00",
        "kind=nonsense",
        "verdict=maybe",
        "reason='%20OR%201=1",
        "stream=both",
        "path_class=x",
        "severity=loud",
        "peer=nonsense/33",
        "client=" + "1" * 300,
        "text=" + "x" * 300,
        "cursor=nonsense",
        "cursor=a.1.1.1",
        "cursor=d.99999999999999999999.1.1",
        "limit=0",
        "limit=1001",
        "limit=x",
        "order=random",
        "format=xml",
        "zone=Mars/Olympus",
        "nonsense=1",
        "since=2h;drop",
    ],
)
def test_an_invalid_query_is_rejected_with_a_message(deployment: Deployment, query: str) -> None:
    with deployment.operator() as operator:
        response = operator.get(f"/api/audit/events?{query}")
    assert response.status_code == 400, response.text
    assert len(response.json()["detail"]) > 10


@pytest.mark.parametrize(
    "query", ["since=x", "bucket=week", "kind=started", "since=2000w&bucket=minute", "since=now"]
)
def test_an_invalid_summary_range_is_rejected(deployment: Deployment, query: str) -> None:
    with deployment.operator() as operator:
        assert operator.get(f"/api/audit/summary?{query}").status_code == 400


def test_a_summary_counts_by_kind_verdict_and_reason(deployment: Deployment) -> None:
    with httpx.Client(
        base_url=f"http://{deployment.shim.host}:{deployment.shim.port}"
    ) as untrusted:
        untrusted.get("/app/", headers={"Remote-User": "admin"})
    eventually(lambda: bool(events(deployment, reason="untrusted_peer")), True)
    found = get(deployment, "/api/audit/summary", bucket="hour")
    counted = [cell for cell in found["cells"] if cell["reason"] == "untrusted_peer"]
    assert sum(cell["count"] for cell in counted) >= 1
    assert found["bucket_seconds"] == 3600


ATTACK = '=HYPERLINK("http://evil.example","x")'


def test_csv_and_ndjson_disarm_an_attackers_texts(deployment: Deployment) -> None:
    with deployment.edge("mallory") as mallory:
        del mallory.headers["X-Shim-Proxy-Secret"]
        mallory.headers.encoding = "utf-8"
        mallory.headers["X-authentik-username"] = ATTACK
        mallory.headers["User-Agent"] = "\u202e<script>"
        assert mallory.get("/app/").status_code == 401
    eventually(lambda: bool(events(deployment, user=ATTACK)), True)
    with deployment.operator() as operator:
        query = {"user": ATTACK, "format": "csv"}
        response = operator.get("/api/audit/events", params=query)
        assert response.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(response.text)))
        assert rows[0]["claimed_user"] == "'" + ATTACK
        for row in rows:
            assert not [cell for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]
        assert "\u202e" not in response.text
        lines = operator.get("/api/audit/events", params={**query, "format": "ndjson"}).text
    assert "\u202e" not in lines
    (event, *_) = map(json.loads, lines.splitlines())
    assert event["claimed_user"] == ATTACK


def test_a_stream_has_new_events_and_continues_where_it_ended(deployment: Deployment) -> None:
    with deployment.operator() as operator:
        with operator.stream("GET", "/api/audit/stream?kind=admin_action") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = response.iter_lines()
            begin = next(line for line in lines if line.startswith("id: "))
            with deployment.operator() as other:
                other.post("/api/reload")
            (first,) = [json.loads(line[6:]) for line in _until_data(lines)]
        assert first["action"] == "reload"
        resumed = {"Last-Event-ID": begin[4:]}
        with operator.stream("GET", "/api/audit/stream?kind=admin_action", headers=resumed) as two:
            (again,) = [json.loads(line[6:]) for line in _until_data(two.iter_lines())]
    assert again["id"] == first["id"]


def _until_data(lines: Any) -> list[str]:
    return [next(line for line in lines if line.startswith("data: "))]


def test_an_administrator_follows_the_trail_through_the_edge(deployment: Deployment) -> None:
    with (
        deployment.edge("boss", "admins") as boss,
        boss.stream("GET", "/_shim/api/audit/stream?kind=admin_action") as response,
    ):
        lines = response.iter_lines()
        assert any(line.startswith("id: ") for line in lines)
        with deployment.operator() as operator:
            operator.post("/api/reload")
        (event,) = [json.loads(line[6:]) for line in _until_data(lines)]
    assert event["action"] == "reload"


def test_a_stream_from_an_invalid_position_is_rejected(deployment: Deployment) -> None:
    with deployment.operator() as operator:
        bad = operator.get("/api/audit/stream", headers={"Last-Event-ID": "nonsense"})
        assert bad.status_code == 400
        assert operator.get("/api/audit/stream?since=2h").status_code == 400


def test_a_shim_stops_with_sixteen_open_streams_and_accepts_no_more(
    tmp_path: Path,
) -> None:
    with start_deployment(tmp_path) as deployment, deployment.operator() as operator:
        streams = [operator.stream("GET", "/api/audit/stream") for _ in range(16)]
        for each in streams:
            each.__enter__()
        refused = operator.get("/api/audit/stream")
        assert refused.status_code == 429
        assert refused.headers["retry-after"]
        started = time.monotonic()
        deployment.shim.process.terminate()
        deployment.shim.process.wait(10)
        assert time.monotonic() - started < 8
        for each in streams:
            each.__exit__(None, None, None)


def test_the_openapi_document_names_every_route(deployment: Deployment) -> None:
    document = get(deployment, "/api/openapi.json")
    assert document["openapi"].startswith("3.")
    assert {
        "/api/audit/events",
        "/api/audit/events/{event_id}",
        "/api/audit/summary",
        "/api/audit/stream",
        "/api/explain",
        "/api/accounts",
        "/api/accounts/sync",
        "/api/accounts/lock",
        "/api/accounts/unlock",
        "/api/accounts/unlink",
        "/api/config",
        "/api/reload",
        "/readyz",
    } <= document["paths"].keys()
    named = document["paths"]["/api/audit/events"]["get"]["parameters"]
    assert {"since", "kind", "text", "cursor", "format"} <= {each["name"] for each in named}
    assert set(document["components"]["securitySchemes"]) == {"token", "session"}
    written = json.dumps(document)
    names = set(re.findall(r"#/components/schemas/(\w+)", written))
    assert names == set(document["components"]["schemas"])
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], path
            responses = operation["responses"]
            assert "422" not in responses, path
            assert path == "/healthz" or {"401", "403", "429"} <= responses.keys(), path
            named = [each["name"] for each in operation.get("parameters", ())]
            assert ("X-CSRF-Token" in named) == (method == "post"), path
            assert len(set(named)) == len(named), path
    content = document["paths"]["/api/audit/events"]["get"]["responses"]["200"]["content"]
    for form in ("json", "ndjson", "csv"):
        with deployment.operator() as operator:
            response = operator.get("/api/audit/events", params={"format": form, "limit": 1})
        assert response.headers["content-type"].partition(";")[0] in content
    wrong = {"limit": "0"}
    with deployment.operator() as operator:
        response = operator.get("/api/audit/events", params=wrong)
    assert response.status_code == 400
    assert set(response.json()) == set(document["components"]["schemas"]["Error"]["required"])


# a trail that cannot be written


def test_without_a_writable_trail_a_lock_is_done_and_granting_a_right_is_refused(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/missing/audit.db"
    with (
        start_deployment(tmp_path, AUDIT_DATABASE_URL=url) as deployment,
        deployment.operator() as operator,
    ):
        deployment.visit("ada")
        for action in ("sync", "unlink", "unlock"):
            refused = operator.post(f"/api/accounts/{action}", json={"account": "ada"})
            assert refused.status_code == 503, action
            assert "the audit trail can't be written" in refused.json()["detail"]
        assert account(deployment, "ada")["uid"] == "uid-of-ada"
        done = operator.post("/api/accounts/lock", json={"account": "ada"})
        assert done.status_code == 200
        assert "only in the log" in done.json()["note"]
        assert account(deployment, "ada")["locked"]
        reloaded = operator.post("/api/reload")
        assert "only in the log" in reloaded.json()["note"]
        logged = deployment.shim.wait_for_line(kind="admin_action", action="users.lock")
        assert logged["result"] == "done"
        assert deployment.shim.wait_for_line(
            kind="admin_action", action="users.unlink", result="refused"
        )
        assert operator.get("/api/audit/events").status_code == 503


def test_without_a_stored_trail_or_accounts_their_api_is_absent(
    tmp_path: Path,
) -> None:
    settings = {"AUDIT_DATABASE_URL": "none", "PROVISIONING": "false"}
    with start_deployment(tmp_path, **settings) as deployment, deployment.operator() as operator:
        assert operator.get("/api/audit/events").status_code == 404
        assert operator.get("/api/accounts").status_code == 404
        assert operator.post("/api/reload").status_code == 200
