"""Conflicting settings are faults; unusual ones are warnings."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim.settings import SettingsError, load, warnings

JWT = {
    "SHIM_JWT_VERIFY": "required",
    "SHIM_JWKS_URL": "https://auth.example.org/jwks/",
    "SHIM_JWT_ISSUER": "https://auth.example.org/",
    "SHIM_JWT_AUDIENCE": "navidrome",
}
TOKEN = {"SHIM_CONTROL_TOKEN": "0123456789abcdef" * 4}
SECRET = {"SHIM_PROXY_SECRET": "0123456789abcdef"}


@pytest.mark.parametrize(
    ("environ", "name", "phrase"),
    [
        ({"SHIM_CONTROL_LISTEN": "0.0.0.0:4535"}, "SHIM_CONTROL_LISTEN", "SHIM_CONTROL_TOKEN"),
        ({"SHIM_CONTROL_LISTEN": "[::]:4535"}, "SHIM_CONTROL_LISTEN", "SHIM_CONTROL_TOKEN"),
        ({"SHIM_CONTROL_LISTEN": "shim:4535"}, "SHIM_CONTROL_LISTEN", "SHIM_CONTROL_TOKEN"),
        ({"SHIM_CONTROL_LISTEN": "127.0.0.1:4534"}, "SHIM_CONTROL_LISTEN", "SHIM_LISTEN"),
        ({"SHIM_UPSTREAM": "http://localhost:4534"}, "SHIM_UPSTREAM", "the shim listens there"),
        ({"SHIM_UPSTREAM": "http://127.0.0.1:4535"}, "SHIM_UPSTREAM", "the shim listens there"),
        (
            {"SHIM_UPSTREAM": "unix:/run/a.sock", "SHIM_LISTEN": "unix:/run/a.sock"},
            "SHIM_UPSTREAM",
            "the shim listens there",
        ),
        ({"SHIM_TLS_CERT": __file__}, "SHIM_TLS_KEY", "both, or neither"),
        ({"SHIM_TLS_KEY": __file__}, "SHIM_TLS_CERT", "both, or neither"),
        ({"SHIM_UPSTREAM_CA": __file__}, "SHIM_UPSTREAM_CA", "https://"),
        ({"SHIM_JWKS_CA": __file__}, "SHIM_JWKS_CA", "SHIM_JWKS_URL"),
        ({**JWT, "SHIM_JWKS_URL": ""}, "SHIM_JWT_VERIFY", "SHIM_JWT_HS256_SECRET"),
        ({**JWT, "SHIM_JWT_ISSUER": ""}, "SHIM_JWT_VERIFY", "SHIM_JWT_ISSUER"),
        ({**JWT, "SHIM_JWT_AUDIENCE": ""}, "SHIM_JWT_VERIFY", "SHIM_JWT_AUDIENCE"),
        ({"SHIM_JWT_BEARER": "true"}, "SHIM_JWT_BEARER", "SHIM_JWT_VERIFY"),
        ({"SHIM_PUBLIC_PATH_PROOF": "jwt"}, "SHIM_PUBLIC_PATH_PROOF", "SHIM_JWT_VERIFY"),
        ({"SHIM_PUBLIC_PATH_PROOF": "secret"}, "SHIM_PUBLIC_PATH_PROOF", "SHIM_PROXY_SECRET"),
        (
            {"SHIM_PROXY_SECRET_HEADER": "X_Authentik_JWT"},
            "SHIM_PROXY_SECRET_HEADER",
            "SHIM_JWT_HEADER",
        ),
        ({"SHIM_JWT_HEADER": "remote_user"}, "SHIM_JWT_HEADER", "SHIM_REVERSE_PROXY_USER_HEADER"),
        ({"SHIM_UID_HEADER": "Remote_User"}, "SHIM_UID_HEADER", "SHIM_REVERSE_PROXY_USER_HEADER"),
        ({"SHIM_UID_HEADER": "X-authentik-email"}, "SHIM_UID_HEADER", "SHIM_EMAIL_HEADER"),
        ({"SHIM_GROUPS_HEADER": "x.authentik.name"}, "SHIM_GROUPS_HEADER", "SHIM_NAME_HEADER"),
        ({"SHIM_NAME_HEADER": "X-authentik-username"}, "SHIM_USERNAME_HEADER", "SHIM_NAME_HEADER"),
        ({"SHIM_USERNAME_HEADER": "Remote-User"}, "SHIM_UID_HEADER", "SHIM_UID_SOURCE=username"),
        (
            {"SHIM_USERNAME_HEADER": "Remote-User", **JWT, "SHIM_JWT_VERIFY": "optional"},
            "SHIM_UID_HEADER",
            "SHIM_PROVISIONING=false",
        ),
        ({"SHIM_ALLOWED_GROUPS": "family,a|b"}, "SHIM_ALLOWED_GROUPS", "'a|b' never matches"),
        ({"SHIM_LIBRARY_GROUPS": '{"a|b": [1]}'}, "SHIM_LIBRARY_GROUPS", "'a|b' never matches"),
    ],
)
def test_a_conflict_is_a_fault_that_names_both_settings(
    environ: dict[str, str], name: str, phrase: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        load(environ)
    (fault,) = raised.value.faults
    assert fault.name == name
    assert phrase in fault.expected


@pytest.mark.parametrize(
    "environ",
    [
        {"SHIM_CONTROL_LISTEN": "0.0.0.0:4535", **TOKEN},
        {"SHIM_CONTROL_LISTEN": "127.8.0.1:4535"},
        {"SHIM_CONTROL_LISTEN": "[::1]:4535"},
        {"SHIM_CONTROL_LISTEN": "unix:/run/control.sock"},
        {"SHIM_CONTROL_LISTEN": "127.0.0.1:0", "SHIM_LISTEN": "127.0.0.1:0"},
        {"SHIM_CONTROL_LISTEN": "127.0.0.1:4534", "SHIM_LISTEN": "127.0.0.2:4534"},
        {"SHIM_UPSTREAM": "http://navidrome:4534"},
        {"SHIM_TLS_CERT": __file__, "SHIM_TLS_KEY": __file__},
        {"SHIM_UPSTREAM_CA": __file__, "SHIM_UPSTREAM": "https://navidrome:4533"},
        JWT,
        {**JWT, "SHIM_JWKS_URL": "", "SHIM_JWT_HS256_SECRET": "0" * 32},
        {**JWT, "SHIM_JWT_BEARER": "true", "SHIM_PUBLIC_PATH_PROOF": "jwt"},
        {**SECRET, "SHIM_PUBLIC_PATH_PROOF": "secret"},
        {"SHIM_USERNAME_HEADER": "Remote-User", "SHIM_PROVISIONING": "false"},
        {"SHIM_USERNAME_HEADER": "Remote-User", "SHIM_UID_HEADER": "X-authentik-uid"},
        {"SHIM_USERNAME_HEADER": "Remote-User", "SHIM_UID_HEADER": "Remote-Sub"},
        {"SHIM_USERNAME_HEADER": "Remote-User", **JWT},
        {"SHIM_USERNAME_HEADER": "X-Login", "SHIM_REVERSE_PROXY_USER_HEADER": "X-Login"}
        | {"SHIM_PROVISIONING": "false"},
    ],
)
def test_compatible_settings_are_accepted(environ: dict[str, str]) -> None:
    load(environ)


def test_an_invalid_value_is_not_also_reported_as_a_conflict() -> None:
    environ = {
        "SHIM_CONTROL_LISTEN": "0.0.0.0:4535",
        "SHIM_CONTROL_TOKEN": "with blanks",
        **JWT,
        "SHIM_JWKS_URL": "no address",
    }
    with pytest.raises(SettingsError) as raised:
        load(environ)
    assert {fault.name for fault in raised.value.faults} == {"SHIM_CONTROL_TOKEN", "SHIM_JWKS_URL"}


@pytest.mark.parametrize(
    ("environ", "phrase"),
    [
        ({}, "no identity is trusted"),
        ({"SHIM_REVERSE_PROXY_WHITELIST": "0.0.0.0/0"}, "every client can use any user name"),
        ({"SHIM_REVERSE_PROXY_WHITELIST": "::/0"}, "every client can use any user name"),
        ({"SHIM_REVERSE_PROXY_WHITELIST": "10.0.0.5/8"}, "trusts all of 10.0.0.0/8"),
        ({"SHIM_REVERSE_PROXY_WHITELIST": "@"}, "not a Unix socket"),
        (
            {"SHIM_REVERSE_PROXY_WHITELIST": "10.0.0.1", "SHIM_LISTEN": "unix:/run/a"},
            "lacks @",
        ),
        (
            {"SHIM_LISTEN": "unix:/run/a", "SHIM_LISTEN_SOCKET_MODE": "0666"},
            "every user of this machine",
        ),
        ({"SHIM_PUBLIC_PATHS": "/"}, "covers /app, /api, /auth, /_shim"),
        ({"SHIM_PUBLIC_PATHS": "/rest/,/a"}, "/a, which covers /app, /api, /auth:"),
        ({"SHIM_PUBLIC_PATHS": "/API/"}, "covers /api"),
        ({"SHIM_PUBLIC_PATHS": "/_shim/"}, "covers /_shim"),
        ({"SHIM_ADMIN_GROUPS": "admins"}, "a group named 'x|admins' grants them too"),
        (
            {"SHIM_ALLOWED_GROUPS": "a", "SHIM_LIBRARY_GROUPS": '{"b": [1]}', **JWT}
            | {"SHIM_JWT_VERIFY": "optional"},
            "SHIM_ALLOWED_GROUPS and SHIM_LIBRARY_GROUPS: rights depend on the header",
        ),
        (
            {"SHIM_PROVIDER": "oauth2-proxy", "SHIM_ALLOWED_GROUPS": "music"},
            "oauth2-proxy sends no groups for a user in no group",
        ),
        (
            {"SHIM_PROVIDER": "tinyauth", "SHIM_LIBRARY_GROUPS": '{"music": [1]}'},
            "tinyauth sends no groups for a user in no group",
        ),
        ({"SHIM_BASE_PATH": "/restaurant"}, "begins with the public prefix /rest/"),
        ({"SHIM_BASE_PATH": "/Share"}, "edge's rules with the base path: /Share/share/"),
        ({"SHIM_PROXY_SECRET": "short"}, "SHIM_PROXY_SECRET has a value under 16"),
        ({"SHIM_CONTROL_TOKEN": "x" * 21}, "SHIM_CONTROL_TOKEN has under 22"),
        ({"SHIM_JWT_HS256_SECRET": "0" * 31}, "under 32 bytes: it can be computed from any token."),
        ({**JWT, "SHIM_JWKS_URL": "http://auth/jwks/"}, "plain HTTP"),
        ({"SHIM_JWKS_URL": "https://auth/jwks/"}, "no token is verified"),
        ({"SHIM_LOCAL_LOGIN": "true"}, "SHIM_REQUIRE_IDENTITY=true"),
        (
            {**JWT, **SECRET, "SHIM_PUBLIC_PATH_PROOF": "jwt"},
            "only with the secret, so",
        ),
    ],
)
def test_a_valid_but_unusual_setting_is_a_warning(environ: dict[str, str], phrase: str) -> None:
    assert any(phrase in warning for warning in warnings(load(environ)))


def test_a_typical_configuration_has_no_warnings() -> None:
    environ = {"SHIM_REVERSE_PROXY_WHITELIST": "traefik", **JWT, **SECRET, **TOKEN}
    environ["SHIM_ADMIN_GROUPS"] = "admins"
    assert warnings(load(environ)) == ()


@pytest.mark.parametrize(
    "environ",
    [
        {"SHIM_PROVIDER": "oauth2-proxy"},
        {
            "SHIM_PROVIDER": "oauth2-proxy",
            "SHIM_ADMIN_GROUPS": "admins",
            "SHIM_MISSING_GROUPS": "none",
        },
        {"SHIM_PROVIDER": "authelia", "SHIM_ALLOWED_GROUPS": "music"},
        {"SHIM_ALLOWED_GROUPS": "music"},
    ],
)
def test_no_warning_of_missing_groups_where_none_are_missed(environ: dict[str, str]) -> None:
    assert "SHIM_MISSING_GROUPS" not in "".join(warnings(load(environ)))


def test_a_public_prefix_below_a_protected_path_has_no_warning() -> None:
    environ = {"SHIM_PUBLIC_PATHS": "/rest/,/app/icons/", "SHIM_BASE_PATH": "/music"}
    text = "".join(warnings(load(environ)))
    assert "PUBLIC_PATHS" not in text
    assert "BASE_PATH" not in text


def test_no_warning_shows_a_secret() -> None:
    names = ("SHIM_PROXY_SECRET", "SHIM_CONTROL_TOKEN", "SHIM_JWT_HS256_SECRET")
    text = warnings(load(dict.fromkeys(names, "hunter2")))
    assert len(text) >= len(names)
    assert "hunter2" not in "".join(text)


def test_certificate_files_are_opened_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load({"SHIM_TLS_CERT": str(tmp_path / "no.pem"), "SHIM_TLS_KEY": __file__})
