"""Authorization and results of a configuration reload."""

from __future__ import annotations

from starlette.types import ASGIApp

from shim.audit.events import Operator
from shim.audit.performing import Performed
from shim.control.access import ADMIN_HEADER, CHANNEL_HEADER, USER_HEADER
from shim.settings.reload import ReloadResult
from tests.unit.control.test_app import SECRET, TOKEN, app_of, send

PATH = "/api/reload"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Reloads:
    """Records who reloads; `result` is the result of a reload, and `note` why it was not stored."""

    def __init__(self, result: ReloadResult, note: str | None = None) -> None:
        self.result = result
        self.note = note
        self.operators: list[Operator] = []

    async def __call__(self, operator: Operator) -> Performed[ReloadResult]:
        self.operators.append(operator)
        return Performed(self.result, self.note)


def served(reloads: Reloads, token: str | None = None) -> ASGIApp:
    return app_of(token=token, reload=reloads)


async def test_the_response_lists_applied_and_pending_settings() -> None:
    reloads = Reloads(ReloadResult((), ("SHIM_PROXY_SECRET",), ("SHIM_LISTEN",)))
    response = await send(served(reloads), PATH, method="POST")
    assert response.status_code == 200
    assert response.json() == {"changed": ["SHIM_PROXY_SECRET"], "pending_restart": ["SHIM_LISTEN"]}


async def test_the_response_has_the_reason_why_nothing_was_applied() -> None:
    reloads = Reloads(ReloadResult(("SHIM_X: no such setting",)))
    response = await send(served(reloads, TOKEN), PATH, method="POST", headers=BEARER)
    assert response.status_code == 409
    assert response.json() == {"faults": ["SHIM_X: no such setting"]}


async def test_a_reload_records_actor_and_origin_and_no_claim_of_the_client() -> None:
    reloads = Reloads(ReloadResult())
    claims = {"X-Shim-Command": "reload", "X-Shim-User": "root", "X-Forwarded-For": "192.0.2.9"}
    await send(served(reloads, TOKEN), PATH, method="POST", headers={**BEARER, **claims})
    del claims["X-Forwarded-For"]
    await send(served(reloads), PATH, method="POST", headers=claims)

    assert [(each.actor, each.origin, each.client) for each in reloads.operators] == [
        ("token", "api", "127.0.0.1"),
        ("loopback", "api", "127.0.0.1"),
    ]


async def test_a_reload_that_was_not_stored_has_a_note() -> None:
    reloads = Reloads(ReloadResult(), note="not recorded in the audit trail")
    response = await send(served(reloads), PATH, method="POST")
    assert response.status_code == 200
    assert response.json()["note"] == "not recorded in the audit trail"


async def test_a_reload_is_denied_to_everyone_else() -> None:
    reloads = Reloads(ReloadResult())
    for status, token, peer, method, headers in (
        (403, None, "192.0.2.7", "POST", {}),
        (401, TOKEN, "127.0.0.1", "POST", {}),
        (401, TOKEN, "127.0.0.1", "POST", {"Authorization": "Bearer x"}),
        (405, TOKEN, "127.0.0.1", "GET", BEARER),
        # A page in a browser, even on this machine.
        (403, None, "127.0.0.1", "POST", {"Origin": "http://127.0.0.1:4535"}),
        (403, None, "127.0.0.1", "POST", {"Sec-Fetch-Site": "same-origin"}),
        # Users through the edge: no administrator, and one without a CSRF token.
        (404, None, "127.0.0.1", "POST", {CHANNEL_HEADER: SECRET, USER_HEADER: "boss"}),
        (
            403,
            None,
            "127.0.0.1",
            "POST",
            {CHANNEL_HEADER: SECRET, USER_HEADER: "boss", ADMIN_HEADER: "1"},
        ),
        (404, None, "127.0.0.1", "POST", {CHANNEL_HEADER: "guessed", USER_HEADER: "boss"}),
    ):
        response = await send(
            served(reloads, token), PATH, method=method, peer=peer, headers=headers
        )
        assert response.status_code == status, (token, peer, method, headers)
    assert not reloads.operators
