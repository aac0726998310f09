"""`check` and `explain` with proofs."""

from __future__ import annotations

import json
from pathlib import Path

from shim.trust.reasons import Reason
from tests.support.provider import Provider
from tests.support.recorder import Recorder
from tests.support.shim_settings import command

SECRET = "s3cret-s3cret-s3cret"


def settings_with(upstream: Recorder, **settings: str) -> dict[str, str]:
    return {
        "UPSTREAM": f"http://127.0.0.1:{upstream.port}",
        "PROVISIONING": "false",
        "REVERSE_PROXY_WHITELIST": "localhost",
        "PROXY_SECRET": SECRET,
        **settings,
    }


def test_check_reports_the_required_proof_of_an_identity(
    upstream: Recorder, issuer: Provider, tmp_path: Path
) -> None:
    settings = settings_with(upstream, **issuer.settings(PUBLIC_PATH_PROOF="jwt"))
    done = command(tmp_path, "check", settings=settings)
    assert done.returncode == 0, done.stderr
    output = " ".join(done.stdout.split())
    assert "Trusted peers: localhost (127.0.0.1" in output
    assert "the shared secret in X-Shim-Proxy-Secret" in output
    assert "the provider's token in X-authentik-jwt, always" in output
    assert "on /rest/, /jellyfin/ only with a verified token, and never on /share/" in output
    assert "Without an identity: Navidrome's own login" in output
    assert "rsa-0 (RS256)" in output
    assert SECRET not in done.stdout
    issuer.status = 503
    settings |= {"REQUIRE_IDENTITY": "true", "SIGN_IN_URL": "/start"}
    done = command(tmp_path, "check", settings=settings)
    assert done.returncode == 1
    assert "no token is accepted" in done.stdout
    output = " ".join(done.stdout.split())
    assert "401; browsers are redirected to /start; Navidrome's own login is disabled" in output


def test_explain_resolves_host_names_and_requires_the_secret(
    upstream: Recorder, tmp_path: Path
) -> None:
    ada = ("-H", "X-authentik-username: ada")
    arguments = ("explain", "--peer", "127.0.0.1", "--path", "/app/", "--json", *ada)
    for fields, verdict, reason in (
        ((), "rejected", "secret_missing"),
        (("-H", "X-Shim-Proxy-Secret: wrong"), "rejected", "secret_mismatch"),
        (("-H", f"X-Shim-Proxy-Secret: {SECRET}"), "authenticated", "proxy_secret"),
    ):
        done = command(tmp_path, *arguments, *fields, settings=settings_with(upstream))
        explained = json.loads(done.stdout)
        assert (explained["verdict"], explained["reason"]) == (verdict, reason)
        assert SECRET not in done.stdout


def test_check_reports_an_invalid_ca_file(upstream: Recorder, tmp_path: Path) -> None:
    authority = tmp_path / "authority.pem"
    authority.write_text("no PEM")
    token = {
        "JWT_VERIFY": "required",
        "JWKS_URL": "https://127.0.0.1:9/",
        "JWKS_CA": str(authority),
        "JWT_ISSUER": "issuer",
        "JWT_AUDIENCE": "audience",
    }
    done = command(tmp_path, "check", "--json", settings=settings_with(upstream, **token))
    assert (done.returncode, done.stderr) == (1, "")
    keys = json.loads(done.stdout)["checks"]["keys"]
    assert keys["state"] == "failing" and "authority.pem contains no certificate" in keys["detail"]


def test_explain_reads_proofs_from_files_and_not_from_arguments(
    upstream: Recorder, issuer: Provider, tmp_path: Path
) -> None:
    ada = ("-H", "X-authentik-username: ada", "--with-secret", "--json")
    arguments = ("explain", "--peer", "127.0.0.1", "--path", "/app/", *ada)
    done = command(tmp_path, *arguments, settings=settings_with(upstream))
    explained = json.loads(done.stdout)
    assert (explained["verdict"], explained["reason"]) == ("authenticated", "proxy_secret")
    assert SECRET not in done.stdout + done.stderr
    token = tmp_path / "token"
    token.write_text("no.such.token\n")
    done = command(
        tmp_path,
        *arguments,
        "--token-file",
        str(token),
        settings=settings_with(upstream, **issuer.settings()),
    )
    assert json.loads(done.stdout)["reason"] == "jwt_invalid"
    done = command(tmp_path, *arguments, settings=settings_with(upstream) | {"PROXY_SECRET": ""})
    assert done.returncode == 1
    assert "SHIM_PROXY_SECRET (environment): expected a secret" in done.stderr


def test_every_reason_has_its_own_explanation() -> None:
    assert [reason.name for reason in Reason] == [reason.value.upper() for reason in Reason]
    texts = [reason.text for reason in Reason]
    assert len(set(texts)) == len(texts)
    assert all(" " in text and not text.endswith(".") for text in texts)


def test_check_and_serve_report_an_invalid_ca_file_for_navidrome(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("no PEM")
    settings = {
        "UPSTREAM": "https://127.0.0.1:9",
        "UPSTREAM_CA": str(ca),
        "PROVISIONING": "false",
        "LISTEN": "127.0.0.1:0",
        "CONTROL_LISTEN": "127.0.0.1:0",
    }
    for name in ("check", "serve"):
        done = command(tmp_path, name, settings=settings)
        assert done.returncode == 1
        assert done.stderr.startswith(
            f"navidrome-shim: SHIM_UPSTREAM_CA={ca} contains no certificate"
        )
        assert "Traceback" not in done.stderr
