"""Parsing of each kind of value: a table of accepted texts and one of rejected ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shim.settings import SETTINGS, Endpoint, SettingsError, Upstream, load

ALPHABET = st.characters(codec="utf-8", exclude_characters="\0")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("listen", "127.0.0.1:0", Endpoint("127.0.0.1", 0)),
        ("listen", " localhost:80 ", Endpoint("localhost", 80)),
        ("listen", "[::]:4534", Endpoint("::", 4534)),
        ("listen", "[fe80::1%eth0]:4534", Endpoint("fe80::1%eth0", 4534)),
        ("listen", "unix:/run/shim.sock", Endpoint(path="/run/shim.sock")),
        ("listen", "unix:///run/shim.sock", Endpoint(path="/run/shim.sock")),
        ("listen_socket_mode", "600", 0o600),
        ("upstream", "http://navidrome", Upstream("http", "navidrome", 80)),
        ("upstream", "HTTPS://navidrome/", Upstream("https", "navidrome", 443)),
        ("upstream", "http://[::1]:4533", Upstream("http", "::1", 4533)),
        ("upstream", "unix:/run/n.sock", Upstream("http", "localhost", 80, "/run/n.sock")),
        ("base_path", "/", "/"),
        ("base_path", "/music/", "/music"),
        ("reverse_proxy_whitelist", "10.0.0.5, 10.0.0.0/8 ,@", ("10.0.0.5", "10.0.0.0/8", "@")),
        ("reverse_proxy_whitelist", "10.0.0.5/8", ("10.0.0.5/8",)),
        ("reverse_proxy_whitelist", "traefik,edge_1,a.b.c.", ("traefik", "edge_1", "a.b.c.")),
        ("reverse_proxy_whitelist", "::ffff:10.0.0.5,fd00::/8", ("::ffff:10.0.0.5", "fd00::/8")),
        ("reverse_proxy_whitelist", "fe80::1%eth0", ("fe80::1%eth0",)),
        ("reverse_proxy_whitelist", "", ()),
        ("real_ip_trusted_proxies", "10.0.0.0/8,::1", ("10.0.0.0/8", "::1")),
        ("public_paths", "", ()),
        ("public_paths", "/rest", ("/rest",)),
        ("name_header", "Remote-Name", "Remote-Name"),
        ("email_header", "X-Forwarded-User", "X-Forwarded-User"),
        ("groups_separator", ",", ","),
        ("require_identity", "YES", True),
        ("require_identity", "0", False),
        ("log_level", "DEBUG", "debug"),
        ("request_header_timeout", "2.5", 2.5),
        ("jwt_audience", "a, b", ("a", "b")),
        ("library_groups", '{"f": ["Music", 2]}', {"f": ("Music", 2)}),
        ("sign_in_url", "/outpost.goauthentik.io/start", "/outpost.goauthentik.io/start"),
        ("sign_in_url", "", None),
        ("support_contact", "Ada, ada@example.org", "Ada, ada@example.org"),
        ("navidrome_admin_username", "the shim", "the shim"),
        ("protected_users", "root,Ädmin", ("root", "Ädmin")),
        ("admin_groups", '["CN=a,OU=b", "c"]', ("CN=a,OU=b", "c")),
        ("admin_groups", ' [ "ä" ] ', ("ä",)),
        ("admin_groups", "[]", ()),
        ("admin_groups", "[a],b", ("[a]", "b")),
        ("allowed_groups", "CN=a", ("CN=a",)),
        ("allowed_groups", "role=a,b", ("role=a", "b")),
        ("jwt_audience", '["a,b"]', ("a,b",)),
    ],
)
def test_accepted_values(name: str, text: str, value: object) -> None:
    assert getattr(load({f"SHIM_{name.upper()}": text}), name) == value


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////data/shim.db",
        "postgresql+psycopg://db",
        "postgresql+psycopg://shim:p/a:s?s%40#w rd@db_1.example.org:5432/shim?sslmode=require",
        "postgresql+psycopg://shim@[::1]/shim",
        "postgresql+psycopg:///shim?host=/run/postgresql",
    ],
)
def test_accepted_database_addresses(text: str) -> None:
    assert load({"SHIM_DATABASE_URL": text}).database_url.get_secret_value() == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[("listen", text) for text in ("", "4534", ":4534", "*:4534", "::1:4534", "[::1]")],
        *[("listen", text) for text in ("a:65536", "a:-1", "a:４", "[v6]:1", "[10.0.0.1]:1")],
        *[("listen", text) for text in ("unix:", "unix:run/a", "unix:/run/", "unix:@a", "@:1")],
        ("listen", "unix:/" + "x" * 107),
        ("listen", "010.0.0.1:4534"),
        *[("listen_socket_mode", text) for text in ("0060", "rw", "1777", "0888", "0o660")],
        *[
            ("upstream", text)
            for text in ("", "navidrome:4533", "ftp://a", "http://", "http://a:0")
        ],
        *[("upstream", text) for text in ("http://a/music", "http://a?b", "http://u@a", "unix:a")],
        *[("base_path", text) for text in ("", "music", "//a", "/a//b", "/a/../b", "/.", "/a%2fb")],
        *[("base_path", text) for text in ("/a;b", "/a?b", "/a#b", "/a\\b", "/ä", "/a b")],
        *[("public_paths", text) for text in ("rest/", "/rest/,", "/a/../b", "/rest/,/rest/")],
        *[("reverse_proxy_whitelist", text) for text in ("010.0.0.1", "0x7f.1", "127.1", "10")],
        *[("reverse_proxy_whitelist", text) for text in ("10.0.0.0/33", "10.0.0.0/255.0.0.0")],
        *[("reverse_proxy_whitelist", text) for text in ("a,,b", "*", "http://a", "a:80", "a b")],
        *[("reverse_proxy_whitelist", text) for text in ("[::1]", "fe80::%eth0/64", "-a")],
        *[("real_ip_trusted_proxies", text) for text in ("cdn", "@", "010.0.0.0/8")],
        *[("username_header", text) for text in ("X User", "X:User", "Ü", "-", "a,b", "X\r\nY")],
        *[
            ("username_header", text)
            for text in ("Host", "content-length", "TE", "X-Forwarded-For")
        ],
        *[
            ("username_header", text)
            for text in ("Authorization", "X-ND-Authorization", "Sec-User")
        ],
        *[("identity_prefixes", text) for text in ("X", "-", "Ho", "content-", "X y")],
        *[("groups_separator", text) for text in ("", "a", " ", "||||", "\t")],
        *[("require_identity", text) for text in ("", "maybe", "2")],
        *[("untrusted_peers", text) for text in ("", "drop")],
        *[
            ("request_header_timeout", text)
            for text in ("", "0", "-1", "10s", "inf", "nan", "1e3", "1_0", "٣")
        ],
        *[("max_headers", text) for text in ("0", "15", "1.5", "ten", "99999999999999")],
        *[("max_header_bytes", text) for text in ("64KiB", "1024")],
        *[
            ("library_groups", text)
            for text in ("[]", "{", '{"a": 1}', '{"a": []}', '{"a": [true]}')
        ],
        *[("library_groups", text) for text in ('{"a": [""]}', '{"a": [1], "a": [2]}', "[" * 9999)],
        *[
            ("jwks_url", text)
            for text in ("auth/jwks", "ftp://a/", "https://", "https://a:x/", "https://a b/")
        ],
        *[
            ("sign_in_url", text)
            for text in (
                "//evil",
                "start",
                "/a b",
                "/a\\b",
                "javascript:alert(1)",
                "/start#a",
                "https://a/#b",
            )
        ],
        *[("navidrome_admin_username", text) for text in ("", "a\nb", "x" * 256)],
        *[("database_url", text) for text in ("shim.db", "postgres://a/b", "sqlite:/a")],
        *[
            ("database_url", f"postgresql+psycopg://{rest}")
            for rest in ("", " ", "db name/shim", "db:port/shim", "db:543210/shim", "[::1/shim")
        ],
        *[("admin_groups", text) for text in ("[a]", '["a", 1]', '["a", "a"]', '[""]')],
        *[("admin_groups", text) for text in ('["a "]', '["a\\nb"]', '[["a"]]', "[" * 9999 + "]")],
        *[("control_token", text) for text in ("two words", "käse")],
    ],
)
def test_rejected_values(name: str, text: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load({f"SHIM_{name.upper()}": text})
    (fault,) = raised.value.faults
    assert fault.name == f"SHIM_{name.upper()}"
    assert "expected" in fault.expected or " is " in fault.expected


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("CN=music-admins,OU=Groups,DC=example", '["CN=music-admins,OU=Groups,DC=example"]'),
        ("a, cn=b, ou=c, cn=d, ou=e, f", '["a", "cn=b,ou=c", "cn=d,ou=e", "f"]'),
        ("Ou=ä,b", '["Ou=ä", "b"]'),
        ("a,DC = b", '["a", "DC = b"]'),
    ],
)
@pytest.mark.parametrize("name", ["ADMIN_GROUPS", "ALLOWED_GROUPS", "PROTECTED_USERS"])
def test_a_group_distinguished_name_with_commas_is_a_fault(
    name: str, text: str, suggestion: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        load({f"SHIM_{name}": text})
    (fault,) = raised.value.faults
    assert fault.name == f"SHIM_{name}"
    assert fault.expected.endswith(f": {suggestion}")
    load({f"SHIM_{name}": suggestion})


def test_every_formatted_value_parses_to_itself() -> None:
    environ = {
        "SHIM_LISTEN": "[::1]:4534",
        "SHIM_UPSTREAM": "https://[::1]",
        "SHIM_LISTEN_SOCKET_MODE": "0600",
        "SHIM_REQUEST_HEADER_TIMEOUT": "2.5",
        "SHIM_LIBRARY_GROUPS": '{"ä": ["Music", 2]}',
        "SHIM_REVERSE_PROXY_WHITELIST": "a,@",
        "SHIM_ACCESS_LOG": "on",
        "SHIM_ADMIN_GROUPS": '["CN=a,OU=b", "cn=ä"]',
        "SHIM_ALLOWED_GROUPS": '["cn=a", "b"]',
        "SHIM_PROTECTED_USERS": '["[a", "b]"]',
    }
    settings = load(environ)
    secret = {each.name for each in SETTINGS if each.secret}
    written = {name: text for name, text in settings.public().items() if name not in secret}
    assert load(written) == settings


# The first text of some settings imports a library, which takes long on a machine under load.
@hypothesis_settings(deadline=None)
@given(name=st.sampled_from([each.name for each in SETTINGS]), text=st.text(ALPHABET, max_size=40))
def test_any_text_is_accepted_or_reported_in_one_line(name: str, text: str) -> None:
    try:
        load({name: text})
    except SettingsError as error:
        lines = [str(fault) for fault in error.faults]
    else:
        return
    assert lines
    assert all(line.isprintable() for line in lines)
