"""The table of attacks in `docs/threat-model.md` matches the code, cell by cell."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from shim.trust.decision import decide
from shim.trust.jwks import read_key_set
from shim.trust.jwt import TokenRules
from shim.trust.policy import Policy
from shim.trust.reasons import Verdict
from tests.support.decisions import EDGE, UNTRUSTED, head, trusting
from tests.support.jwt_minting import AUDIENCE, ISSUER, NOW, claims, jwk, key_set, rsa_key, token

TEXT = (Path(__file__).parents[3] / "docs/threat-model.md").read_text()
SECRET = "of-the-edges-authenticated-route"
RULES = TokenRules(
    keys=read_key_set(key_set(jwk(rsa_key(), "rsa-0"))),
    fetched=True,
    issuer=ISSUER,
    audiences=frozenset({AUDIENCE}),
    required=True,
)
EDGE_ALONE = Policy(whitelist=trusting("127.0.0.2"))
SETUPS = {
    "everybody": Policy(whitelist=trusting("0.0.0.0/0")),
    "edge": EDGE_ALONE,
    "+ secret": replace(EDGE_ALONE, secrets=(SECRET.encode(),)),
    "+ token": replace(EDGE_ALONE, tokens=RULES),
    "both": replace(EDGE_ALONE, secrets=(SECRET.encode(),), tokens=RULES),
}
ADMIN = ("X-authentik-username: admin", "X-authentik-groups: admins")
REST = "GET /rest/getUsers?v=1.16.1&c=curl&f=json HTTP/1.1"
API = "GET /api/user HTTP/1.1"
# The edge's headers for ada, who is signed in.
SIGNED_IN = (
    "X-authentik-username: ada",
    f"X-Shim-Proxy-Secret: {SECRET}",
    f"X-authentik-jwt: {token(claims(groups=['family']))}",
)
FORGED = f"X-authentik-jwt: {token(claims(preferred_username='admin'), key=rsa_key(1))}"
EXPIRED = f"X-authentik-jwt: {token(claims(exp=NOW - 60))}"
ATTACKS = [
    ("the command above", EDGE, REST, ADMIN),
    ("the same on `/share/`", EDGE, "GET /share/x HTTP/1.1", ADMIN),
    ("a neighbor requests", UNTRUSTED, API, ADMIN),
    ("the name arrives through", EDGE, API, ADMIN),
    ("the same, with a forged", EDGE, API, (*ADMIN, FORGED)),
    ("the same, with the attacker's own", EDGE, API, (*ADMIN, EXPIRED)),
    ("a signed-in user adds `X-auth", EDGE, API, (*SIGNED_IN, "X-authentik-groups: admins")),
    ("a signed-in user adds `X_auth", EDGE, API, (*SIGNED_IN, "X_authentik_groups: admins")),
    ("the command above with `/restx`", EDGE, "GET /restx HTTP/1.1", ADMIN),
    ("the same with `/re%C5%BFt/x`", EDGE, "GET /re%C5%BFt/x HTTP/1.1", ADMIN),
    ("an attacker sends `Remote-User", EDGE, API, ("Remote-User: admin",)),
]


def rows() -> list[list[str]]:
    table = TEXT.partition("| attack |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.split("\n")[2:]]


def test_every_row_of_the_table_is_tested() -> None:
    assert len(rows()) == len(ATTACKS)
    heading = re.search(r"\| attack \|(.*)\|\n", TEXT)
    assert heading is not None
    assert [cell.strip() for cell in heading[1].split("|")] == list(SETUPS)


@pytest.mark.parametrize("number", range(len(ATTACKS)))
def test_each_attack_has_the_result_of_the_table(number: int) -> None:
    name, peer, line, fields = ATTACKS[number]
    attack, *cells = rows()[number]
    assert attack.startswith(name)
    for cell, policy in zip(cells, SETUPS.values(), strict=True):
        decision = decide(head(line, *fields), peer, policy, b"http", NOW)
        succeeds = decision.outcome.verdict is Verdict.AUTHENTICATED
        expected_cell = (
            f"**{decision.outcome.reason}**" if succeeds else str(decision.outcome.reason)
        )
        assert cell == expected_cell
