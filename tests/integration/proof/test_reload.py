"""Reloading settings while the shim runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import shim as package
from tests.support.jwt_minting import rsa_key
from tests.support.provider import Provider
from tests.support.recorder import Recorder
from tests.support.shim_process import Shim, build_request, run_shim
from tests.support.shim_settings import checks, command, eventually, send_sighup

APP = "GET /app/ HTTP/1.1"
ADA = "X-authentik-username: ada"
ONE, OTHER = "127.0.0.2", "127.0.0.3"
FIRST = {"REVERSE_PROXY_WHITELIST": ONE}


def write(folder: Path, **settings: str) -> None:
    (folder / ".env").write_text("".join(f"SHIM_{n}='{v}'\n" for n, v in settings.items()))


@contextmanager
def running(upstream: Recorder, folder: Path, **settings: str) -> Iterator[Shim]:
    """A shim with these settings in its `.env`, and with the settings to run it in its environment."""
    write(folder, **settings)
    with run_shim(upstream.port, folder, without=("REVERSE_PROXY_WHITELIST",)) as shim:
        yield shim


def user(shim: Shim, upstream: Recorder, source: str, *fields: str) -> list[str]:
    """The users that Navidrome received; the status if it received no request."""
    upstream.clear()
    response = shim.request(build_request(APP, ADA, *fields), source)
    if response.status != 200:
        return [str(response.status)]
    return upstream.requested[-1].values("Remote-User")


def test_a_signal_reloads_whitelist_and_secrets_between_two_requests(
    upstream: Recorder, tmp_path: Path
) -> None:
    with running(upstream, tmp_path, **FIRST) as shim:
        assert user(shim, upstream, ONE) == ["ada"]
        with shim.connect(ONE) as open_before:
            head = f"{APP}\r\nHost: h\r\n{ADA}\r\n\r\n".encode()
            open_before.sendall(head)
            assert open_before.recv(65536).startswith(b"HTTP/1.1 200")
            secret = "s3cret-s3cret-s3cret"
            write(tmp_path, REVERSE_PROXY_WHITELIST=f"{OTHER},{ONE}", PROXY_SECRET=secret)
            send_sighup(shim)
            shim.wait_for_line(kind="policy_changed", subject="settings")
            assert user(shim, upstream, ONE) == ["401"]
            assert user(shim, upstream, OTHER, f"X-Shim-Proxy-Secret: {secret}") == ["ada"]
            # A connection that was open before gets decisions of the new policy, and continues.
            open_before.sendall(head)
            assert open_before.recv(65536).startswith(b"HTTP/1.1 401")
        assert secret not in json.dumps(shim.lines, default=str)


def test_a_stream_continues_during_a_reload(upstream: Recorder, tmp_path: Path) -> None:
    with running(upstream, tmp_path, **FIRST) as shim, shim.connect(ONE) as client:
        fields = f"Host: h\r\n{ADA}\r\nContent-Length: 4\r\nConnection: close\r\n\r\n"
        client.sendall(f"POST /api/x HTTP/1.1\r\n{fields}ab".encode())
        end = time.monotonic() + 10
        while not any(upstream.incomplete):
            assert time.monotonic() < end
            time.sleep(0.01)
        write(tmp_path, REVERSE_PROXY_WHITELIST=OTHER)
        send_sighup(shim)
        shim.wait_for_line(kind="policy_changed", subject="settings")
        client.sendall(b"cd")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        (received,) = [one for one in upstream.requested if one.body]
        assert (received.body, received.values("Remote-User")) == (b"abcd", ["ada"])


def test_invalid_settings_leave_the_previous_ones_in_use(
    upstream: Recorder, tmp_path: Path
) -> None:
    with running(upstream, tmp_path, **FIRST) as shim:
        for bad, expected_line in (
            ({"REVERSE_PROXY_WHITELIST": "10.0.0.0/99"}, "SHIM_REVERSE_PROXY_WHITELIST"),
            ({"REVERSE_PROXY_WHITELIST": OTHER, "NO_SUCH": "1"}, "SHIM_NO_SUCH"),
            ({"REVERSE_PROXY_WHITELIST": OTHER, "JWT_VERIFY": "required"}, "SHIM_JWT_VERIFY"),
        ):
            before = len(shim.lines)
            write(tmp_path, **bad)
            send_sighup(shim)
            eventually(
                lambda before=before: any(
                    line.get("kind") == "reload_rejected" for line in shim.lines[before:]
                ),
                True,
            )
            refused = [ln for ln in shim.lines if ln.get("kind") == "reload_rejected"][-1]
            assert (refused["actor"], refused["origin"]) == ("signal", "signal")
            failed = shim.wait_for_line(kind="admin_action", origin="signal", result="failed")
            assert (failed["action"], failed["actor"]) == ("reload", "signal")
            assert failed["detail"]
            assert expected_line in str(refused["faults"])
            assert user(shim, upstream, ONE) == ["ada"]
            assert user(shim, upstream, OTHER) == []


def test_the_command_lists_applied_and_pending_settings(upstream: Recorder, tmp_path: Path) -> None:
    with running(upstream, tmp_path, **FIRST) as shim:
        control = str(shim.wait_for_line(kind="started")["control_listen"])
        settings = {"CONTROL_LISTEN": control}
        done = command(tmp_path, "reload", settings=settings)
        assert (done.returncode, done.stdout) == (0, "reloaded: nothing has changed\n"), done.stderr
        write(tmp_path, REVERSE_PROXY_WHITELIST=OTHER, MAX_CONNECTIONS="99", ALLOWED_GROUPS="a")
        done = command(tmp_path, "reload", settings=settings)
        assert done.returncode == 0, done.stderr
        taken, waiting = done.stdout.splitlines()
        assert taken == "reloaded: SHIM_REVERSE_PROXY_WHITELIST, SHIM_ALLOWED_GROUPS"
        assert waiting == "needs a restart: SHIM_MAX_CONNECTIONS"
        assert user(shim, upstream, OTHER) == ["403"], (
            "the token has no groups, which the new settings require"
        )
        groups = "X-authentik-groups: a"
        assert user(shim, upstream, OTHER, groups) == ["ada"]
        assert user(shim, upstream, ONE, groups) == []
        eventually(
            lambda: any(
                "SHIM_MAX_CONNECTIONS takes effect after restart" in str(line.get("warnings"))
                for line in shim.lines
            ),
            True,
        )
        applied = [line for line in shim.lines if line.get("kind") == "configuration_loaded"][-1]
        assert (applied["trigger"], applied["origin"], applied["actor"]) == (
            "reload",
            "api",
            "loopback",
        )
        assert applied["changes"] == [
            f"SHIM_REVERSE_PROXY_WHITELIST: {ONE} → {OTHER}",
            "SHIM_ALLOWED_GROUPS: not set → a",
        ]
        action = shim.wait_for_line(kind="admin_action", changes=applied["changes"])
        assert (action["action"], action["result"]) == ("reload", "done")
        write(tmp_path, REVERSE_PROXY_WHITELIST="10.0.0.0/99")
        done = command(tmp_path, "reload", settings=settings)
        assert done.returncode == 1
        assert "SHIM_REVERSE_PROXY_WHITELIST" in done.stderr
        assert user(shim, upstream, OTHER, groups) == ["ada"]


def test_a_missing_file_removes_no_secret(upstream: Recorder, tmp_path: Path) -> None:
    write(tmp_path, PROXY_SECRET="s3cret-s3cret-s3cret")
    with run_shim(upstream.port, tmp_path, REVERSE_PROXY_WHITELIST=ONE) as shim:
        assert user(shim, upstream, ONE) == ["401"]
        (tmp_path / ".env").unlink()
        send_sighup(shim)
        refused = shim.wait_for_line(kind="reload_rejected")
        assert ".env" in str(refused["faults"])
        assert user(shim, upstream, ONE) == ["401"]


def test_a_new_host_name_is_resolved_before_it_is_used(upstream: Recorder, tmp_path: Path) -> None:
    with running(upstream, tmp_path, **FIRST) as shim:
        assert user(shim, upstream, "127.0.0.1") == []
        write(tmp_path, REVERSE_PROXY_WHITELIST="localhost")
        send_sighup(shim)
        changed = shim.wait_for_line(kind="policy_changed", subject="settings")
        assert "localhost=127.0.0.1" in changed["added"]
        assert user(shim, upstream, "127.0.0.1") == ["ada"]
        assert user(shim, upstream, ONE) == []


def test_the_sign_in_url_is_reloaded(upstream: Recorder, tmp_path: Path) -> None:
    page = "Accept: text/html"
    with running(upstream, tmp_path, **FIRST) as shim:
        assert shim.request(build_request(APP, page), OTHER).status == 200
        write(tmp_path, **FIRST, REQUIRE_IDENTITY="true", SIGN_IN_URL="/start")
        send_sighup(shim)
        shim.wait_for_line(kind="policy_changed", subject="settings")
        assert b"\r\nLocation: /start?rd=" in shim.request(build_request(APP, page), OTHER).raw
        write(tmp_path, **FIRST, REQUIRE_IDENTITY="true")
        send_sighup(shim)
        eventually(lambda: shim.request(build_request(APP, page), OTHER).status, 401)


def test_the_command_reports_that_no_shim_responds(tmp_path: Path) -> None:
    done = command(tmp_path, "reload", settings={"CONTROL_LISTEN": "127.0.0.1:9"})
    assert done.returncode == 1
    assert "no response from 127.0.0.1:9" in done.stderr
    assert "send the shim SIGHUP instead" in done.stderr


def test_another_key_set_is_used_only_once_it_was_fetched(
    upstream: Recorder, issuer: Provider, tmp_path: Path
) -> None:
    with running(upstream, tmp_path, **FIRST, **issuer.settings()) as shim:
        token = f"X-authentik-jwt: {issuer.token()}"
        assert user(shim, upstream, ONE, token) == ["ada"]
        write(tmp_path, **FIRST, **issuer.settings(JWKS_URL="http://127.0.0.1:9/jwks"))
        send_sighup(shim)
        refused = shim.wait_for_line(kind="reload_rejected")
        assert "SHIM_JWKS_URL" in str(refused["faults"])
        assert user(shim, upstream, ONE, token) == ["ada"]
        issuer.keys = {"rsa-1": rsa_key(1)}
        another = issuer.settings(JWKS_URL=f"{issuer.url}?v=2")
        write(tmp_path, **FIRST, **another)
        send_sighup(shim)
        shim.wait_for_line(kind="policy_changed", subject="settings")
        fresh = f"X-authentik-jwt: {issuer.token(kid='rsa-1')}"
        assert user(shim, upstream, ONE, fresh) == ["ada"]
        assert "rsa-1" in checks(shim)["keys"]["detail"]
        # The new one is requested for unknown keys.
        issuer.keys["rsa-2"] = rsa_key(2)
        fresh = f"X-authentik-jwt: {issuer.token(kid='rsa-2')}"
        assert user(shim, upstream, ONE, fresh) == ["ada"]
        assert user(shim, upstream, ONE, token) == ["401"], "its key is not in the new one"
        # And disabled again.
        write(tmp_path, **FIRST)
        send_sighup(shim)
        eventually(lambda: user(shim, upstream, ONE), ["ada"])
        assert "keys" not in checks(shim)


def test_a_reload_without_a_change_fetches_the_key_set_again(
    upstream: Recorder, issuer: Provider, tmp_path: Path
) -> None:
    with running(upstream, tmp_path, **FIRST, **issuer.settings()) as shim:
        control = str(shim.wait_for_line(kind="started")["control_listen"])
        # Another key with the kid of the previous one: no token requests a refresh.
        issuer.keys = {"rsa-0": rsa_key(1)}
        token = f"X-authentik-jwt: {issuer.token()}"
        assert user(shim, upstream, ONE, token) == ["401"]
        done = command(tmp_path, "reload", settings={"CONTROL_LISTEN": control})
        assert done.returncode == 0, done.stderr
        assert user(shim, upstream, ONE, token) == ["ada"]


def test_an_invalid_ca_file_is_reported(
    upstream: Recorder, issuer: Provider, tmp_path: Path
) -> None:
    authority = tmp_path / "authority.pem"
    authority.write_text("no PEM")
    with running(upstream, tmp_path, **FIRST) as shim:
        where = {"JWKS_URL": "https://127.0.0.1:9/", "JWKS_CA": str(authority)}
        write(tmp_path, **FIRST, **issuer.settings(**where))
        send_sighup(shim)
        refused = shim.wait_for_line(kind="reload_rejected")
        assert "SHIM_JWKS_URL" in str(refused["faults"])
        assert "authority.pem contains no certificate" in str(refused["faults"])
        assert user(shim, upstream, ONE) == ["ada"]


def test_a_signal_during_the_start_is_handled_after_it(upstream: Recorder, tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": str(Path(package.__file__).parents[1]),
        "SHIM_LISTEN": "127.0.0.1:0",
        "SHIM_CONTROL_LISTEN": "127.0.0.1:0",
        "SHIM_UPSTREAM": f"http://127.0.0.1:{upstream.port}",
        "SHIM_PROVISIONING": "false",
        "SHIM_LOG_FORMAT": "json",
    }
    command = [sys.executable, "-m", "shim", "serve"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE
    ) as process:
        shim = Shim(process)
        try:
            eventually(lambda: _holds_hang_ups_back(process.pid), True)
            send_sighup(shim)
            shim.wait_for_line(20.0, kind="started")
            expected_line = {"kind": "configuration_loaded"}
            eventually(
                lambda: len([line for line in shim.lines if expected_line.items() <= line.items()]),
                2,
            )
        finally:
            process.terminate()
        assert process.wait(15.0) == 0


def _holds_hang_ups_back(process: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    blocked = next(line for line in status.splitlines() if line.startswith("SigBlk:"))
    return bool(int(blocked.split()[1], 16) & 1 << signal.SIGHUP - 1)
