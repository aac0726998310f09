"""`load`: the sources of settings; every fault is reported at once and shows no secret."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import ValidationError

from shim.settings import SETTINGS, Endpoint, Settings, SettingsError, Upstream, load

WriteEnv = Callable[[str], Path]


@pytest.fixture
def env(tmp_path: Path) -> WriteEnv:
    def write(text: str) -> Path:
        path = tmp_path / ".env"
        path.write_text(text)
        return path

    return write


def faults(environ: dict[str, str], env_file: Path | None = None) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        load(environ, env_file)
    lines = [str(fault) for fault in raised.value.faults]
    assert str(raised.value).splitlines() == lines, "one line for each fault"
    return lines


def test_no_settings_give_the_documented_defaults() -> None:
    settings = load({})
    assert settings.listen == Endpoint("0.0.0.0", 4534)
    assert settings.control_listen == Endpoint("127.0.0.1", 4535)
    assert settings.upstream == Upstream("http", "127.0.0.1", 4533)
    assert settings.base_path == "/"
    assert settings.reverse_proxy_whitelist == ()
    assert settings.reverse_proxy_user_header == "Remote-User"
    assert settings.public_paths == ("/rest/", "/share/", "/jellyfin/")
    assert settings.identity_prefixes == ("X-authentik-",)
    assert settings.groups_separator == "|"
    assert settings.untrusted_peers == "strip"
    assert settings.jwt_verify == "off"
    assert settings.provisioning is True
    assert settings.navidrome_admin_username == "navidrome-shim"
    assert settings.follow_renames == "jwt"
    assert settings.link_existing == "users"
    assert settings.database_url.get_secret_value() == "sqlite:///shim.db"
    assert settings.audit_requests_days == 90
    assert settings.audit_requests_max_size == 2**30
    assert settings.max_header_bytes == 65536
    assert settings.name_reuse_delay_hours == 48


def test_the_environment_is_read_through_load_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHIM_LISTEN", "127.0.0.1:1")
    monkeypatch.setenv("LISTEN", "127.0.0.1:2")
    assert Settings().listen == Endpoint("0.0.0.0", 4534)


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError):
        load({}).max_pending_requests = 2


def test_settings_can_be_pickled() -> None:
    settings = load({"SHIM_LIBRARY_GROUPS": '{"family": ["Music", 2]}', "SHIM_PROXY_SECRET": "a,b"})
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_the_environment_overrides_the_file(env: WriteEnv) -> None:
    file = env("SHIM_LISTEN=127.0.0.1:1\nSHIM_MAX_PENDING_REQUESTS=2\n")
    settings = load({"SHIM_LISTEN": "127.0.0.1:9"}, file)
    assert (settings.listen.port, settings.max_pending_requests) == (9, 2)


def test_a_missing_env_file_is_ignored(tmp_path: Path) -> None:
    assert load({}, tmp_path / "none") == load({})


def test_values_of_an_env_file_are_literal(env: WriteEnv) -> None:
    file = env(
        "export SHIM_SUPPORT_CONTACT='ask ${HOME} # or me'\n# "
        "SHIM_MAX_PENDING_REQUESTS=3\nND_LOGLEVEL\nTZ=UTC\n"
    )
    assert load({}, file).support_contact == "ask ${HOME} # or me"


def test_every_fault_is_reported_at_once_with_its_source_and_value(env: WriteEnv) -> None:
    file = env("\n\nSHIM_MAX_HEADERS=lots\nSHIM_LISTN=0.0.0.0:1\n")
    message = faults({"SHIM_UPSTREAM": "navidrome:4533", "SHIM_JWT_VERIFY": "required"}, file)
    assert message == [
        f"SHIM_LISTN ({file} line 4) = '0.0.0.0:1': no such setting; did you mean SHIM_LISTEN?",
        "SHIM_UPSTREAM (environment) = 'navidrome:4533': "
        "expected http://host:port, https://host:port or unix:/path",
        f"SHIM_MAX_HEADERS ({file} line 3) = 'lots': expected a whole number from 16 to 10000",
        "SHIM_JWT_VERIFY (environment) = 'required': "
        "expected SHIM_JWKS_URL or SHIM_JWT_HS256_SECRET too",
        "SHIM_JWT_VERIFY (environment) = 'required': expected SHIM_JWT_ISSUER too",
        "SHIM_JWT_VERIFY (environment) = 'required': "
        "expected SHIM_JWT_AUDIENCE too (the client id at the provider)",
    ]


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("SHIM_DNS_REFRESH", "SHIM_DNS_REFRESH_SECONDS"),
        ("SHIM_REVERSE_PROXY_WHITELST", "SHIM_REVERSE_PROXY_WHITELIST"),
        ("SHIM_PROXY_SECRET_FLIE", "SHIM_PROXY_SECRET_FILE"),
        ("shim_listen", "SHIM_LISTEN"),
        ("SHIM_BASEPATH", "SHIM_BASE_PATH"),
    ],
)
def test_an_unknown_name_is_a_fault_with_a_suggestion(name: str, suggestion: str) -> None:
    (message,) = faults({name: "1"})
    assert message.startswith(f"{name} (environment)")
    assert message.endswith(f"no such setting; did you mean {suggestion}?")


def test_a_name_without_a_similar_one_gets_no_suggestion() -> None:
    assert faults({"SHIM_ZZZZZZ": "1"}) == ["SHIM_ZZZZZZ (environment): no such setting"]


def test_kubernetes_service_variables_are_ignored_but_only_in_the_environment(
    env: WriteEnv,
) -> None:
    links = {
        "SHIM_SERVICE_HOST": "10.96.0.7",
        "SHIM_SERVICE_PORT": "4534",
        "SHIM_SERVICE_PORT_HTTP": "4534",
        "SHIM_PORT": "tcp://10.96.0.7:4534",
        "SHIM_PORT_4534_TCP": "tcp://10.96.0.7:4534",
        "SHIM_PORT_4534_TCP_ADDR": "10.96.0.7",
        "SHIM_CONTROL_PORT_4535_TCP_PROTO": "tcp",
    }
    assert load(links) == load({})
    assert len(faults({"SHIM_PORT": "4534"})) == 1
    assert len(faults({}, env("SHIM_SERVICE_HOST=10.96.0.7\n"))) == 1


def test_invalid_and_duplicate_lines_of_an_env_file_are_faults(env: WriteEnv) -> None:
    file = env("SHIM_LISTEN\nSHIM_MAX_PENDING_REQUESTS=1\n=secret\nSHIM_MAX_PENDING_REQUESTS=2\n")
    assert faults({}, file) == [
        f"SHIM_LISTEN ({file} line 1): expected NAME=value",
        f"{file} (line 3): expected NAME=value or # comment",
        f"SHIM_MAX_PENDING_REQUESTS ({file} line 4): expected once, but {file} line 2 sets it too",
    ]


def test_an_env_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    (message,) = faults({}, tmp_path)
    assert "expected readable UTF-8" in message


class TestSecrets:
    NAMES: ClassVar = tuple(each.name for each in SETTINGS if each.secret)

    def test_every_credential_is_a_secret(self) -> None:
        credential = re.compile(r"(?<!TLS)_(PASSWORD|SECRET|TOKEN|KEY|DATABASE_URL|NOTIFY_URLS)$")
        found = {each.name for each in SETTINGS if credential.search(each.name)}
        assert found == set(self.NAMES)

    TEXT: ClassVar = {
        "SHIM_AUDIT_DATABASE_URL": "postgresql+psycopg://shim:hunter2hunter2@db/trail",
        "SHIM_DATABASE_URL": "postgresql+psycopg://shim:hunter2hunter2@db/shim",
        "SHIM_DEVICE_KEY": "5ec7e7" * 10 + "5ec7",
        "SHIM_NOTIFY_URLS": "ntfys://hunter2hunter2@ntfy.example.org/topic",
    }

    @pytest.mark.parametrize("name", NAMES)
    def test_a_secret_can_be_the_content_of_a_file_without_its_line_end(
        self, name: str, tmp_path: Path
    ) -> None:
        text = self.TEXT.get(name, "hunter2hunter2")
        (tmp_path / "secret").write_text(text + "\n")
        from_file = load({f"{name}_FILE": str(tmp_path / "secret")})
        assert from_file == load({name: text})
        assert from_file != load({})

    @pytest.mark.parametrize("name", NAMES)
    def test_a_secret_given_twice_is_a_fault(
        self, name: str, tmp_path: Path, env: WriteEnv
    ) -> None:
        (tmp_path / "secret").write_text("hunter2")
        file = env(f"{name}_FILE={tmp_path / 'secret'}\n")
        (message,) = faults({name: self.TEXT.get(name, "hunter2")}, file)
        assert f"expected {name} or {name}_FILE, not both" in message
        assert "hunter2" not in message

    @pytest.mark.parametrize("content", [b"", b"\n", b"  \r\n", b"\xff\xfe", b"x" * 70000])
    def test_a_file_without_a_usable_secret_is_a_fault(
        self, content: bytes, tmp_path: Path
    ) -> None:
        (tmp_path / "secret").write_bytes(content)
        assert len(faults({"SHIM_PROXY_SECRET_FILE": str(tmp_path / "secret")})) == 1

    def test_a_missing_secret_file_is_the_only_fault(self, tmp_path: Path) -> None:
        missing = str(tmp_path / "missing")
        message = faults({"SHIM_CONTROL_TOKEN_FILE": missing, "SHIM_CONTROL_LISTEN": "0.0.0.0:1"})
        assert message == [
            f"SHIM_CONTROL_TOKEN_FILE (environment) = {missing!r}: "
            "expected the path of a readable file that contains the secret (No such file or directory)"
        ]

    def test_an_empty_secret_is_a_fault(self) -> None:
        (message,) = faults({"SHIM_PROXY_SECRET": ""})
        assert message.startswith("SHIM_PROXY_SECRET (environment): expected a secret")

    def test_only_secrets_are_read_from_files(self) -> None:
        (message,) = faults({"SHIM_LISTEN_FILE": "/run/listen"})
        assert message.endswith("expected SHIM_LISTEN, because only secrets are read from files")

    @pytest.mark.parametrize(
        "environ",
        [
            {"SHIM_PROXY_SECRET": "hunter2 hunter2"},
            {"SHIM_PROXY_SECRTE": "hunter2"},
            {"SHIM_LISTEN_TOKEN": "hunter2"},
            {"SHIM_QQQ": "hunter2"},
            {"SHIM_PROXY_SECRET_FILE": "hunter2"},
            {"SHIM_CONTROL_TOKEN_FILE": "/hunter2"},
            {"SHIM_CONTROL_TOKEN": "hunter2\n"},
            {"SHIM_JWT_HS256_SECRET": "hunter2\x00"},
            {"SHIM_NAVIDROME_ADMIN_PASSWORD": "hunter2\n"},
            {"SHIM_DATABASE_URL": "mysql://shim:hunter2@db/shim"},
            {"SHIM_DATABASE_URL": "postgres://shim:p/hunter2@db/shim"},
            {"SHIM_DATABASE_URL": "postgresql+psycopg://shim:p@hunter2@db/shim"},
            {"SHIM_DATABASE_URL": "postgresql+psycopg://shim:p@/hunter2@db/shim"},
            {"SHIM_DATABASE_URL": "postgresql+psycopg://shim:p@db?hunter2@db/shim"},
            {"SHIM_DATABASE_URL": "postgresql+psycopg://shim:hunter2/shim"},
            {"SHIM_NOTIFY_URLS": "hunter2"},
            {"SHIM_NOTIFY_URLS": "ntfys://hunter2@h/a ntfys://hunter2@h/a"},
            {"SHIM_NOTIFY_URLS": "ntfys://hunter2@h/ä"},
            {"SHIM_AUDIT_DATABASE_URL": "postgres://shim:hunter2@db/shim"},
            {"SHIM_AUDIT_KEY": "hunter2 hunter2"},
            {"SHIM_DEVICE_KEY": "hunter2"},
            {"SHIM_UPSTREAM": "http://shim:hunter2@navidrome:4533"},
            {"SHIM_UPSTREAM": "http://shim:p@hunter2/@navidrome"},
            {"SHIM_JWKS_URL": "https://shim:hunter2@auth.example.org/jwks/"},
            {"SHIM_SIGN_IN_URL": "https://hunter2@auth.example.org/"},
        ],
    )
    def test_no_fault_shows_a_secret(self, environ: dict[str, str]) -> None:
        message = faults(environ)
        assert message
        assert "hunter2" not in "".join(message)

    def test_no_printed_form_shows_a_secret(self) -> None:
        environ = {name: self.TEXT.get(name, "hunter2hunter2") for name in self.NAMES}
        settings = load(environ)
        for text in (repr(settings), str(settings), str(settings.public())):
            assert "hunter2" not in text and "5ec7e7" not in text
        assert settings.public()["SHIM_DATABASE_URL"] == "postgresql+psycopg://***@db/shim"
        assert settings.public()["SHIM_PROXY_SECRET"] == "***"


class TestNavidromesOwnVariables:
    def test_are_read_where_the_shims_are_not_set(self, env: WriteEnv) -> None:
        file = env("ND_BASEURL=https://music.example.org/navi/\nND_EXTAUTH_USERHEADER=X-User\n")
        settings = load({}, file)
        assert settings.base_path == "/navi"
        assert settings.reverse_proxy_user_header == "X-User"
        assert load({"ND_REVERSEPROXYUSERHEADER": "X-Old"}).reverse_proxy_user_header == "X-Old"

    @pytest.mark.parametrize(
        ("url", "path"),
        [
            ("/music", "/music"),
            ("music", "/music"),
            ("https://example.org", "/"),
            ("https://example.org/", "/"),
            ("http://example.org:8080/a/b/", "/a/b"),
            ("", "/"),
        ],
    )
    def test_the_path_of_navidromes_base_url_is_used(self, url: str, path: str) -> None:
        assert load({"ND_BASEURL": url}).base_path == path

    @pytest.mark.parametrize(
        "environ",
        [
            {"SHIM_BASE_PATH": "/navi/", "ND_BASEURL": "https://music.example.org/navi"},
            {"SHIM_BASE_PATH": "/navi", "ND_BASEURL": ""},
            {"SHIM_REVERSE_PROXY_USER_HEADER": "x-user", "ND_EXTAUTH_USERHEADER": "X-User"},
        ],
    )
    def test_that_agree_with_the_shims_are_no_fault(self, environ: dict[str, str]) -> None:
        load(environ)

    @pytest.mark.parametrize(
        "environ",
        [
            {"SHIM_BASE_PATH": "/", "ND_BASEURL": "/navi"},
            {"SHIM_BASE_PATH": "/Navi", "ND_BASEURL": "/navi"},
            {"SHIM_REVERSE_PROXY_USER_HEADER": "Remote-User", "ND_EXTAUTH_USERHEADER": "X-User"},
            {"ND_EXTAUTH_USERHEADER": "X-User", "ND_REVERSEPROXYUSERHEADER": "X-Other"},
        ],
    )
    def test_that_differ_from_the_shims_are_a_fault(self, environ: dict[str, str]) -> None:
        (message,) = faults(environ)
        one, other = environ
        assert message.startswith(other)
        assert one in message

    def test_that_are_invalid_are_a_fault_under_their_own_name(self) -> None:
        (message,) = faults({"ND_BASEURL": "/a/../b"})
        assert message.startswith("ND_BASEURL (environment) = '/a/../b'")

    @pytest.mark.parametrize("name", ["ND_EXTAUTH_TRUSTEDSOURCES", "ND_REVERSEPROXYWHITELIST"])
    def test_never_configure_trusted_peers(self, name: str) -> None:
        assert load({name: "0.0.0.0/0"}).reverse_proxy_whitelist == ()
