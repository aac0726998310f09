"""The shim process with its database on PostgreSQL: two that share it, and a server that is down."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy.engine import make_url

from demo.navidrome import StandIn, StandInOptions, StandInThread
from tests.support.postgresql import PASSWORD, PostgreSQL
from tests.support.shim_process import EDGE, Shim, run_shim
from tests.support.shim_settings import checks, command, eventually

WITHOUT_DRIVER = "import sys; sys.modules['psycopg'] = None; from shim.cli.main import main; main()"


@pytest.fixture
def navidrome() -> Iterator[StandIn]:
    with StandInThread(StandInOptions(trusted_sources="127.0.0.1/32")) as stand_in:
        yield stand_in


def visit(shim: Shim, name: str, uid: str = "") -> httpx.Response:
    transport = httpx.HTTPTransport(local_address=EDGE)
    named = {"X-authentik-username": name, "X-authentik-uid": uid or f"uid-{name}"}
    with httpx.Client(transport=transport, timeout=30) as client:
        return client.get(f"http://127.0.0.1:{shim.port}/app/", headers=named)


def port_of(navidrome: StandIn) -> int:
    return int(navidrome.listen.rpartition(":")[2])


def settings(navidrome: StandIn, url: str) -> dict[str, str]:
    return {
        "UPSTREAM": navidrome.url,
        "DATABASE_URL": url,
        "PROVISIONING": "true",
        "REVERSE_PROXY_WHITELIST": EDGE,
        "LOG_FORMAT": "json",
    }


def accounts_created(shim: Shim) -> list[object]:
    return [line["account"] for line in shim.lines if line.get("kind") == "account_created"]


def log_and_checks(shim: Shim) -> str:
    """Its complete log and the checks of `/readyz`."""
    return json.dumps([*shim.lines, checks(shim)], default=str)


def test_a_user_bound_by_one_process_is_known_to_every_other(
    navidrome: StandIn, postgresql_url: str, tmp_path: Path
) -> None:
    common_settings = settings(navidrome, postgresql_url)
    with (
        run_shim(port_of(navidrome), tmp_path, **common_settings) as first,
        run_shim(port_of(navidrome), tmp_path, **common_settings) as second,
    ):
        assert checks(first)["store"]["state"] == checks(second)["store"]["state"] == "ok"
        assert visit(first, "alice").status_code == 200
        assert first.wait_for_line(kind="account_created")["account"] == "alice"
        assert visit(second, "alice").status_code == 200
        assert visit(second, "alice", uid="stranger").status_code == 403
        assert visit(second, "bob").status_code == visit(first, "bob").status_code == 200
        assert (accounts_created(first), accounts_created(second)) == (["alice"], ["bob"])

        listed = command(tmp_path, "users", "list", "--json", settings=common_settings)
        owners = {line["account"]: line["uid"] for line in json.loads(listed.stdout)}
        assert owners == {"alice": "uid-alice", "bob": "uid-bob", "navidrome-shim": None}
        unlinked = command(tmp_path, "users", "unlink", "alice", "--yes", settings=common_settings)
        assert unlinked.returncode == 0, unlinked.stderr
        # The next user with the name gets it, and not the previous one.
        assert visit(first, "alice", uid="new").status_code == 200
        assert visit(second, "alice").status_code == 403
        output = log_and_checks(first) + log_and_checks(second) + listed.stderr + unlinked.stderr
    assert PASSWORD not in output


def test_a_shim_that_starts_without_its_database_rejects_identities_until_it_is_up(
    postgresql: PostgreSQL, navidrome: StandIn, postgresql_url: str, tmp_path: Path
) -> None:
    common_settings = settings(navidrome, postgresql_url)
    place = make_url(postgresql_url).render_as_string(hide_password=True)
    postgresql.stop()
    try:
        with run_shim(port_of(navidrome), tmp_path, **common_settings) as shim:
            refused = visit(shim, "alice")
            assert refused.status_code == 503 and refused.headers["Retry-After"]
            assert PASSWORD not in refused.text and "postgresql" not in refused.text
            store = checks(shim)["store"]
            assert store["state"] == "failing" and place in store["detail"]
            unready = shim.wait_for_line(kind="provisioning_unavailable")
            assert place in str(unready["detail"]) and "refused" in str(unready["detail"])
            checked = command(tmp_path, "check", "--json", settings=common_settings)
            assert checked.returncode == 1
            store = json.loads(checked.stdout)["checks"]["store"]
            assert store["state"] == "failing" and place in store["detail"]
            listed = command(tmp_path, "users", "list", settings=common_settings)
            assert listed.returncode == 1 and place in listed.stderr

            postgresql.start()
            eventually(lambda: visit(shim, "alice").status_code, 200)
            assert checks(shim)["store"]["state"] == "ok"
            output = log_and_checks(shim) + checked.stdout + checked.stderr + listed.stderr
    finally:
        postgresql.start()
    assert PASSWORD not in output and "Traceback" not in output


def test_a_wrong_password_is_reported_without_its_value(
    navidrome: StandIn, postgresql_url: str, tmp_path: Path
) -> None:
    url = make_url(postgresql_url).set(password="wr0ng").render_as_string(hide_password=False)
    common_settings = settings(navidrome, url)
    with run_shim(port_of(navidrome), tmp_path, **common_settings) as shim:
        assert visit(shim, "alice").status_code == 503
        assert "password authentication failed" in checks(shim)["store"]["detail"]
        checked = command(tmp_path, "check", settings=common_settings)
        assert checked.returncode == 1 and "password authentication failed" in checked.stdout
        assert "wr0ng" not in log_and_checks(shim) + checked.stdout + checked.stderr


@pytest.mark.parametrize("arguments", [("serve",), ("users", "list"), ("check",)])
def test_without_the_driver_no_command_runs_and_each_names_the_package(
    navidrome: StandIn, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    url = f"postgresql+psycopg://shim:{PASSWORD}@127.0.0.1/shim"
    common_settings = {
        "LISTEN": "127.0.0.1:0",
        "CONTROL_LISTEN": "127.0.0.1:0",
        **settings(navidrome, url),
    }
    ran = command(
        tmp_path,
        *arguments,
        settings=common_settings,
        program=(sys.executable, "-c", WITHOUT_DRIVER),
    )
    output = ran.stdout + ran.stderr
    assert ran.returncode == 1
    assert "navidrome-auth-shim[postgres]" in output
    assert PASSWORD not in output and "Traceback" not in output
