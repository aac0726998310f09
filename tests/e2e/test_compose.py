"""The Compose files follow Compose's schema, let the shim alone reach Navidrome, and get all their values
from `setup.sh`; the blueprints make what the files expect."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from demo.outpost import Outpost
from tests.e2e import compose
from tests.e2e.programs import beside_python
from tests.e2e.servers import DEPLOY, ROOT, Upstreams, traefik_of_the_full_stack

FULL = DEPLOY / "compose/full"
FILES = (FULL / "compose.yml", DEPLOY / "compose/add-on.yml", DEPLOY / "compose/unix-socket.yml")
HOSTS = ("music.example.org", "auth.example.org")
REQUIRED = {
    "NAVIDROME_HOST": HOSTS[0],
    "AUTHENTIK_HOST": HOSTS[1],
    "MUSIC_FOLDER": "./music",
    "NAVIDROME_USER": "1000:1000",
    "SHIM_PROXY_SECRET": "a-secret-of-the-test-0123456789abcdef",
    "PG_PASS": "p",
    "AUTHENTIK_SECRET_KEY": "k",
    "AUTHENTIK_BOOTSTRAP_PASSWORD": "b",
}
EMBEDDED = "goauthentik.io/outposts/embedded"


def full() -> dict[str, Any]:
    return compose.read(FULL / "compose.yml", REQUIRED)


def unix_socket() -> dict[str, Any]:
    return compose.read(DEPLOY / "compose/unix-socket.yml", {})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_compose_file_follows_the_schema(path: Path, tmp_path: Path) -> None:
    plain = tmp_path / "compose.json"
    plain.write_text(json.dumps(compose.read(path, REQUIRED)))
    command = [beside_python("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*command, str(plain)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def on_the_network_of_navidrome(services: dict[str, Any]) -> set[str]:
    networks = set(services["navidrome"]["networks"])
    return {name for name, service in services.items() if networks & set(service["networks"])}


def test_full_stack_lets_only_the_shim_reach_navidrome() -> None:
    whole = full()
    services = whole["services"]
    assert on_the_network_of_navidrome(services) == {"navidrome", "navidrome-shim"}
    assert whole["networks"]["navidrome-only"]["internal"] is True
    assert {name for name, service in services.items() if "ports" in service} == {"traefik"}
    address = services["navidrome-shim"]["networks"]["navidrome-only"]["ipv4_address"]
    assert services["navidrome"]["environment"]["ND_EXTAUTH_TRUSTEDSOURCES"] == f"{address}/32"


def test_unix_socket_is_shared_by_the_shim_and_navidrome_only() -> None:
    services = unix_socket()["services"]
    socket = services["navidrome"]["environment"]["ND_ADDRESS"]
    assert services["navidrome-shim"]["environment"]["SHIM_UPSTREAM"] == socket
    assert services["navidrome"]["environment"]["ND_EXTAUTH_TRUSTEDSOURCES"] == "@"
    [volume] = services["navidrome"]["volumes"]
    assert services["navidrome-shim"]["volumes"] == [volume]
    name, _, folder = volume.partition(":")
    assert socket.startswith(f"unix:{folder}/")
    assert not set(services["navidrome"]["networks"]) & set(services["navidrome-shim"]["networks"])
    others = [*full()["services"].values(), *compose.read(FILES[1], REQUIRED)["services"].values()]
    assert not any(each.startswith(f"{name}:") for s in others for each in s.get("volumes", ()))


@pytest.mark.parametrize("path", FILES[:2], ids=lambda path: path.name)
def test_sign_out_button_links_to_the_provider(path: Path) -> None:
    services = compose.read(path, REQUIRED)["services"]
    # Navidrome does not start with a relative URL.
    url = f"https://{HOSTS[0]}/outpost.goauthentik.io/sign_out"
    assert services["navidrome"]["environment"]["ND_EXTAUTH_LOGOUTURL"] == url


def test_only_traefik_authentik_and_the_shim_have_the_secrets_that_they_need() -> None:
    services = full()["services"]
    holders = {
        secret: {name for name, s in services.items() if REQUIRED[secret] in environment(s)}
        for secret in ("SHIM_PROXY_SECRET", "PG_PASS", "AUTHENTIK_SECRET_KEY")
    }
    authentik = {"authentik-server", "authentik-worker"}
    assert holders == {
        "SHIM_PROXY_SECRET": {"traefik", "navidrome-shim"},
        "PG_PASS": {"postgresql", *authentik},
        "AUTHENTIK_SECRET_KEY": authentik,
    }
    # Compose's `.env` has the others' secrets, so the shim reads another file.
    assert services["navidrome-shim"]["env_file"] == [{"path": "shim.env", "required": False}]


def environment(service: dict[str, Any]) -> set[str]:
    return {str(value) for value in service.get("environment", {}).values()}


@pytest.mark.parametrize(
    "service", ["navidrome-shim", "traefik", "navidrome"], ids=lambda service: service
)
def test_full_stack_gives_its_services_minimal_privileges(service: str) -> None:
    defined = full()["services"][service]
    assert defined["cap_drop"] == ["ALL"]
    assert defined["security_opt"] == ["no-new-privileges:true"]
    assert defined.get("cap_add", []) == (["NET_BIND_SERVICE"] if service == "traefik" else [])
    assert defined.get("read_only", False) == (service != "navidrome")
    # Access to Docker's socket is root on the machine.
    mounted = [str(volume) for s in full()["services"].values() for volume in s.get("volumes", ())]
    assert mounted
    assert not any("docker.sock" in volume for volume in mounted)


@pytest.mark.parametrize("with_socket", [False, True])
def test_the_full_stacks_settings_are_valid(tmp_path: Path, with_socket: bool) -> None:
    env = dict(full()["services"]["navidrome-shim"]["environment"])
    if with_socket:
        env |= unix_socket()["services"]["navidrome-shim"]["environment"]
    env["SHIM_REVERSE_PROXY_WHITELIST"] = "127.0.0.1"
    done = subprocess.run(
        [sys.executable, "-m", "shim", "explain", "--peer", "127.0.0.1", "--path", "/app/"],
        env={**env, "PYTHONPATH": str(ROOT), "PATH": os.environ.get("PATH", os.defpath)},
        cwd=tmp_path,
        timeout=60,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_traefik_of_the_full_stack_routes_both_hosts(tmp_path: Path) -> None:
    with (
        Outpost() as outpost,
        traefik_of_the_full_stack(tmp_path, Upstreams(outpost.url, outpost.url), HOSTS[1]) as url,
    ):
        start = f"{url}/outpost.goauthentik.io/start"
        for host in (HOSTS[1], "127.0.0.1"):
            assert httpx.get(start, headers={"Host": host}, trust_env=False).status_code == 200
        unknown = httpx.get(start, headers={"Host": "other.example.org"}, trust_env=False)
        assert unknown.status_code == 404


class Setup:
    """`setup.sh` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / ".env"
        shutil.copy(FULL / "setup.sh", folder)

    def run(self, *arguments: str, answers: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / "setup.sh"), *arguments],
            input=answers,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            cwd="/",
        )

    def values(self) -> dict[str, str]:
        lines = [line for line in self.file.read_text().splitlines() if "=" in line]
        return {n: v.strip("'") for n, _, v in (line.partition("=") for line in lines)}


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def test_setup_asks_for_the_host_names_and_writes_every_required_value(setup: Setup) -> None:
    done = setup.run(answers=f"{HOSTS[0]}\n{HOSTS[1]}\n\n")
    assert done.returncode == 0, done.stderr
    values = setup.values()
    assert set(values) == compose.required(FULL / "compose.yml") == set(REQUIRED)
    assert (values["NAVIDROME_HOST"], values["AUTHENTIK_HOST"]) == HOSTS
    assert values["MUSIC_FOLDER"] == "./music"
    secrets = [v for n, v in values.items() if re.search("SECRET|PASS", n)]
    assert len(set(secrets)) == 4
    assert all(re.fullmatch("[0-9a-f]{32,}", secret) for secret in secrets)
    assert setup.file.stat().st_mode & 0o777 == 0o600
    assert not any(secret in done.stdout + done.stderr for secret in secrets)
    assert sorted(path.name for path in setup.folder.iterdir()) == [
        ".env",
        "data",
        "music",
        "setup.sh",
    ]


def test_setup_creates_new_secrets_each_time(setup: Setup) -> None:
    setup.run(*HOSTS)
    first = setup.values()
    setup.file.unlink()
    setup.run(*HOSTS)
    assert not set(first.values()) & set(setup.values().values()) - {
        *HOSTS,
        "./music",
        first["NAVIDROME_USER"],
    }


def test_setup_run_twice_changes_nothing(setup: Setup) -> None:
    assert setup.run(*HOSTS, "/srv/music").returncode == 0
    before = setup.file.read_bytes()
    again = setup.run("other.example.org", "another.example.org")
    assert again.returncode == 0
    assert "Nothing was changed" in again.stdout
    assert setup.file.read_bytes() == before


def test_setup_keeps_an_existing_file_and_lists_missing_values(setup: Setup) -> None:
    setup.file.write_text("NAVIDROME_HOST=music.example.org\nPG_PASS=\n")
    done = setup.run(*HOSTS)
    assert done.returncode == 1
    missing = set(done.stderr.rpartition(":")[2].split())
    assert missing == set(REQUIRED) - {"NAVIDROME_HOST"}
    assert setup.file.read_text() == "NAVIDROME_HOST=music.example.org\nPG_PASS=\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("https://music.example.org", HOSTS[1]), "'https://music.example.org' is not a host name"),
        (("music", HOSTS[1]), "'music' is not a host name"),
        (("Music.example.org", HOSTS[1]), "lower case"),
        ((f"{HOSTS[0]}\nX=1", HOSTS[1]), "is not a host name"),
        ((HOSTS[0], "auth.example.org/"), "'auth.example.org/' is not a host name"),
        ((HOSTS[0], HOSTS[0]), "two different host names"),
        ((*HOSTS, "/srv/it's"), "must not have a quote"),
        ((*HOSTS, "/srv/music\nPG_PASS=x"), "or a new line"),
        ((), "no answer"),
    ],
)
def test_setup_rejects_an_invalid_value_and_writes_nothing(
    setup: Setup, arguments: tuple[str, ...], expected: str
) -> None:
    done = setup.run(*arguments)
    assert done.returncode == 1
    assert expected in done.stderr
    assert [path.name for path in setup.folder.iterdir()] == ["setup.sh"]


class _Tag(str):
    """A blueprint's tag with its text."""

    __slots__ = ()


class _Blueprint(yaml.SafeLoader):
    """YAML with authentik's tags, each as a `_Tag`: `!Env NAME` is `Env NAME`."""


def _tag(loader: _Blueprint, name: str, node: yaml.Node) -> _Tag:
    if isinstance(node, yaml.SequenceNode):
        return _Tag(f"{name} {loader.construct_sequence(node, deep=True)}")
    assert isinstance(node, yaml.ScalarNode)
    return _Tag(f"{name} {node.value}")


_Blueprint.add_multi_constructor("!", _tag)


def entries(name: str) -> dict[str, list[dict[str, Any]]]:
    """The entries of a blueprint by model."""
    parsed = yaml.load((DEPLOY / "authentik" / name).read_text(), _Blueprint)
    assert parsed["version"] == 1
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in parsed["entries"]:
        found.setdefault(entry["model"], []).append(entry)
    return found


def test_blueprint_creates_the_application_its_provider_and_its_group_bindings() -> None:
    entries_by_model = entries("navidrome.yaml")
    [provider] = entries_by_model["authentik_providers_proxy.proxyprovider"]
    assert provider["attrs"]["mode"] == "forward_single"
    assert provider["attrs"]["skip_path_regex"] == ""
    assert str(provider["attrs"]["external_host"]) == "Format ['https://%s', 'Env NAVIDROME_HOST']"
    [application] = entries_by_model["authentik_core.application"]
    assert application["attrs"]["provider"] == f"KeyOf {provider['id']}"
    groups = {group["id"]: group for group in entries_by_model["authentik_core.group"]}
    # authentik applies blueprints again and again; `created` keeps the members.
    assert {group["state"] for group in groups.values()} == {"created"}
    bindings = entries_by_model["authentik_policies.policybinding"]
    assert {str(b["identifiers"]["group"]) for b in bindings} == {f"KeyOf {id_}" for id_ in groups}
    assert {str(b["identifiers"]["target"]) for b in bindings} == {f"KeyOf {application['id']}"}
    allowed = full()["services"]["navidrome-shim"]["environment"]["SHIM_ALLOWED_GROUPS"].split(",")
    assert {group["identifiers"]["name"] for group in groups.values()} == set(allowed)


def test_only_the_separate_blueprint_changes_the_outpost() -> None:
    assert "authentik_outposts.outpost" not in entries("navidrome.yaml")
    [outpost] = entries("outpost.yaml")["authentik_outposts.outpost"]
    assert outpost["identifiers"] == {"managed": EMBEDDED}
    [provider] = entries("navidrome.yaml")["authentik_providers_proxy.proxyprovider"]
    [listed] = outpost["attrs"]["providers"]
    assert provider["identifiers"]["name"] in str(listed)
    assert "replaces the outpost's whole list" in (DEPLOY / "authentik/outpost.yaml").read_text()


def test_worker_has_the_blueprints_and_the_variables_that_they_read() -> None:
    worker = full()["services"]["authentik-worker"]
    mounted = {Path(v.split(":")[0]).name for v in worker["volumes"] if "/blueprints/custom/" in v}
    assert mounted == {"navidrome.yaml", "outpost.yaml"}
    for name in mounted:
        read = set(re.findall(r"!Env (\w+)", (DEPLOY / "authentik" / name).read_text()))
        assert read
        assert read <= set(worker["environment"])
