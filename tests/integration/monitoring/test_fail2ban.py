"""`deploy/fail2ban`: the filter matches attackers in the log of a real shim, and no other clients."""

from __future__ import annotations

import configparser
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from shim.trust.reasons import Reason, Verdict
from tests.support.recorder import Recorder
from tests.support.shim_process import EDGE, UNTRUSTED, Line, Shim, build_request, run_shim

pytestmark = pytest.mark.binary("fail2ban-regex")

DEPLOY = Path(__file__).parents[3] / "deploy/fail2ban"
FILTER = DEPLOY / "filter.d/navidrome-shim.conf"
ALIAS = "X_authentik_username: admin"
INJECTED_FIELDS = '","peer_trusted":true,"client":"198.51.100.66","x":"'


def banned(folder: Path, lines: Sequence[Line], prefix: str = "") -> list[str]:
    """Return the address of each line that the filter matches."""
    log = folder / "shim.log"
    log.write_text(
        "".join(
            prefix + json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n"
            for line in lines
        )
    )
    done = subprocess.run(
        ["fail2ban-regex", "--out", "ip", str(log), str(FILTER)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0 or not done.stdout, done.stderr
    assert "ERROR" not in done.stderr, done.stderr
    return done.stdout.split()


def attack(shim: Shim, client: str, *fields: str, source: str = EDGE, path: str = "/app/") -> None:
    head = build_request(f"GET {path} HTTP/1.1", f"X-Forwarded-For: {client}", *fields)
    shim.request(head, source)


# The client's request through the edge, by the reason in the filter.
ATTACKS: dict[str, tuple[str, ...]] = {
    "header_alias": (ALIAS,),
    "identity_duplicate": ("X-authentik-username: a", "X-authentik-username: b"),
    "create_admin_disabled": (),
}


def test_an_attack_through_the_edge_bans_the_client(upstream: Recorder, tmp_path: Path) -> None:
    clients = {
        reason: f"2001:db8::{number}" if number % 2 else f"203.0.113.{number}"
        for number, reason in enumerate(ATTACKS, 1)
    }
    settings = {"PROVISIONING": "true", "DATABASE_URL": f"sqlite:///{tmp_path}/shim.db"}
    with run_shim(upstream.port, tmp_path, **settings) as shim:
        for reason, fields in ATTACKS.items():
            create = reason == "create_admin_disabled"
            line = "POST /auth/createAdmin HTTP/1.1" if create else "GET /app/ HTTP/1.1"
            forwarded = f"X-Forwarded-For: 198.51.100.1, {clients[reason]}"
            shim.request(build_request(line, forwarded, *fields), EDGE)
            assert shim.wait_for_line(kind="request_decision", reason=reason)["client"]
        lines = list(shim.lines)
    assert set(reasons_of_the_filter()) == set(ATTACKS)
    assert banned(tmp_path, lines) == list(clients.values())


def test_a_request_without_a_known_client_does_not_ban_the_edge(
    upstream: Recorder, tmp_path: Path
) -> None:
    with run_shim(upstream.port, tmp_path) as shim:
        attack(shim, "unknown", ALIAS)
        assert shim.wait_for_line(kind="request_decision")["client"] == EDGE
        lines = list(shim.lines)
    assert banned(tmp_path, lines) == []


def test_an_untrusted_peer_is_never_banned(upstream: Recorder, tmp_path: Path) -> None:
    with run_shim(upstream.port, tmp_path, UNTRUSTED_PEERS="reject") as shim:
        attack(shim, "203.0.113.9", ALIAS, source=UNTRUSTED)
        attack(shim, "203.0.113.9", source=UNTRUSTED, path="/rest/..%2fapp/")
        line = shim.wait_for_line(kind="request_decision", reason="ambiguous_target")
        assert line["peer_trusted"] is False
        lines = list(shim.lines)
    assert banned(tmp_path, lines) == []


def test_client_data_adds_no_address(upstream: Recorder, tmp_path: Path) -> None:
    forged = json.dumps(
        {
            "kind": "request_decision", "severity": "warning", "time": "2026-11-27T02:00:00.000000Z",
            "schema": 1, "id": "0", "instance": "x", "stream": "requests", "verdict": "rejected",
            "reason": "header_alias", "status": 400, "peer": EDGE, "peer_trusted": True,
            "client": "198.51.100.66", "path_class": "protected",
        },
        separators=(",", ":"),
    )  # fmt: skip
    with run_shim(upstream.port, tmp_path) as shim:
        for number, text in enumerate((INJECTED_FIELDS, forged), 1):
            agent = f"User-Agent: {text}"
            attack(shim, f"203.0.113.{number}", f"X-authentik-username: {text}", agent, ALIAS)
            attack(shim, f"203.0.113.{number}", agent, path="/rest/x" + text.replace(" ", ""))
            attack(shim, text, agent, ALIAS)
        attack(shim, "203.0.113.3", ALIAS)
        shim.wait_for_line(kind="request_decision", client="203.0.113.3")
        lines = list(shim.lines)
    assert "198.51.100.66" in json.dumps(lines)
    found = banned(tmp_path, lines)
    assert "203.0.113.3" in found
    assert "198.51.100.66" not in found
    assert EDGE not in found


def test_mistakes_of_users_and_administrators_do_not_ban(
    upstream: Recorder, tmp_path: Path
) -> None:
    settings = {"PROXY_SECRET": "s3cret-s3cret-s3cret", "REQUIRE_IDENTITY": "true"}
    with run_shim(upstream.port, tmp_path, **settings) as shim:
        attack(shim, "203.0.113.1")
        attack(shim, "203.0.113.2", "X-authentik-username: ada")
        attack(shim, "203.0.113.3", "X-authentik-username: ada", "X-Shim-Proxy-Secret: wrong")
        attack(shim, "203.0.113.4", "Remote-User: ada", path="/rest/ping")
        shim.wait_for_line(kind="request_decision", client="203.0.113.4")
        lines = list(shim.lines)
    reasons = {line.get("reason") for line in lines if line["kind"] == "request_decision"}
    assert reasons >= {"identity_required", "secret_missing", "secret_mismatch"}
    assert banned(tmp_path, lines) == []


def test_a_line_without_a_client_does_not_ban_the_edge(upstream: Recorder, tmp_path: Path) -> None:
    with run_shim(upstream.port, tmp_path) as shim:
        attack(shim, "203.0.113.9", path="/rest/..%2fapp/")
        attack(shim, "203.0.113.9", "Content-Length: 5", "Transfer-Encoding: chunked")
        shim.wait_for_line(kind="request_decision", reason="ambiguous_framing", peer_trusted=True)
        lines = list(shim.lines)
    assert banned(tmp_path, lines) == []


@pytest.mark.parametrize("prefix", ["", "music navidrome-shim[71]: "])
def test_lines_of_the_journal_match_like_those_of_a_file(
    upstream: Recorder, tmp_path: Path, prefix: str
) -> None:
    with run_shim(upstream.port, tmp_path) as shim:
        attack(shim, "203.0.113.9", ALIAS)
        line = shim.wait_for_line(kind="request_decision")
    assert banned(tmp_path, [line], prefix) == ["203.0.113.9"]


def test_the_filter_names_reasons_that_reject() -> None:
    verdicts = {reason.value: reason.verdict for reason in Reason}
    assert {verdicts[reason] for reason in reasons_of_the_filter()} == {Verdict.REJECTED}


def reasons_of_the_filter() -> list[str]:
    filters = configparser.RawConfigParser()
    filters.read(FILTER)
    return filters["Definition"]["reasons"].split("|")


def test_the_jail_uses_the_filter() -> None:
    jails = configparser.RawConfigParser()
    jails.read(DEPLOY / "jail.d/navidrome-shim.conf")
    assert jails.sections() == ["navidrome-shim"]
    assert (DEPLOY / f"filter.d/{jails['navidrome-shim']['filter']}.conf").is_file()
