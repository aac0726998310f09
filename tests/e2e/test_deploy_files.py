"""The files of `deploy/` are consistent with the project, with each other and with authentik's
headers.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e import compose
from tests.e2e.conftest import Deployment
from tests.e2e.programs import beside_python
from tests.e2e.servers import DEPLOY, ROOT
from tests.e2e.test_edges import NAMES
from tests.support.ports import free_port

ADD_ON = DEPLOY / "compose/add-on.yml"
FIXED_USER = re.compile(r"[1-9]\d{3,}:[1-9]\d{3,}")
_TEMPLATE = re.compile(r"\{\{-?(.*?)\}\}")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each a keyword and its argument, lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(None, 1)[1].strip()) for line in lines if line.strip()]


def last_stage() -> list[tuple[str, str]]:
    lines = instructions()
    start = max(number for number, (word, _) in enumerate(lines) if word == "FROM")
    return lines[start:]


def add_on(**env: str) -> dict[str, Any]:
    return compose.read(ADD_ON, {"NAVIDROME_HOST": "music.example.org", **env})


def test_files_that_the_image_copies_exist_and_are_not_ignored() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"]
    copied = [
        source
        for word, rest in instructions()
        if word == "COPY" and "--from=" not in rest
        for source in rest.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert source in allowed


def test_the_image_returns_the_memory_of_a_peak() -> None:
    env = " ".join(rest for word, rest in last_stage() if word == "ENV").split()
    assert "MALLOC_MMAP_THRESHOLD_=65536" in env


def test_the_image_has_only_packages_with_hashes() -> None:
    commands = [
        shlex.split(command)
        for word, rest in instructions()
        if word == "RUN"
        for command in rest.split("&&")
    ]
    pips = [words for words in commands if words[0].endswith("/pip")]
    assert len(pips) == 4
    for words in pips:
        hashed = {"--require-hashes", "--only-binary=:all:"}
        assert hashed <= set(words) or {"--no-index", "--no-deps"} <= set(words)
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert [re.match(r"[\w-]+", need).group() for need in stated] == ["hatchling"]  # type: ignore[union-attr]
    # pip before 26.1 rejects --require-hashes with a constraint: the build's packages are locked apart.
    assert not any("--constraint" in words for words in pips)
    build = (ROOT / "requirements/build.txt").read_text()
    pins = set(re.findall(r"^([\w-]+==\S+) ", build, re.MULTILINE))
    assert any(pin.startswith("hatchling==") for pin in pins)
    whole = (ROOT / "requirements/dev.txt").read_text()
    assert pins <= set(re.findall(r"^([\w-]+==\S+) ", whole, re.MULTILINE))


def test_the_image_runs_as_an_unprivileged_user() -> None:
    users = [rest for word, rest in last_stage() if word == "USER"]
    assert len(users) == 1
    assert FIXED_USER.fullmatch(users[0])
    assert [rest for word, rest in last_stage() if word == "ENTRYPOINT"] == ['["navidrome-shim"]']
    assert [rest for word, rest in last_stage() if word == "CMD"] == ['["serve"]']


def test_the_image_stores_its_data_where_its_user_can_write() -> None:
    [user] = [rest for word, rest in last_stage() if word == "USER"]
    owner, _, group = user.partition(":")
    [data_command] = [rest for word, rest in last_stage() if word == "RUN" and " /data" in rest]
    assert shlex.split(data_command)[:6] == [
        "install",
        "--directory",
        "--owner",
        owner,
        "--group",
        group,
    ]
    assert data_command.endswith(" /data")
    # The default of SHIM_DATABASE_URL is a file in the working folder.
    assert [rest for word, rest in last_stage() if word == "WORKDIR"] == ["/data"]


def test_the_image_sets_no_setting_that_a_file_could_contradict() -> None:
    assert not [rest for word, rest in last_stage() if word == "ENV" and "SHIM_" in rest]


def image_check() -> list[str]:
    [rest] = [rest for word, rest in last_stage() if word == "HEALTHCHECK"]
    words: list[str] = json.loads(rest.partition("CMD ")[2])
    return words


def add_on_check() -> list[str]:
    words: list[str] = add_on()["services"]["navidrome-shim"]["healthcheck"]["test"]
    assert words[0] == "CMD"
    return words[1:]


def healthy(check: list[str], control: str) -> bool:
    """The result of a health check for a control plane."""
    assert check == ["navidrome-shim", "health"]
    env = {"SHIM_CONTROL_LISTEN": control, "PATH": os.environ.get("PATH", os.defpath)}
    done = subprocess.run(
        [beside_python(check[0]), *check[1:]],
        env=env,
        timeout=30,
        check=False,
        capture_output=True,
    )
    return done.returncode == 0


@pytest.mark.parametrize("check", [image_check, add_on_check])
def test_a_health_check_distinguishes_a_running_shim_from_a_stopped_one(
    deployment: Deployment, check: Any
) -> None:
    assert healthy(check(), deployment.control)
    assert not healthy(check(), f"127.0.0.1:{free_port()}")


def test_the_add_on_gives_the_shim_minimal_privileges() -> None:
    shim = add_on()["services"]["navidrome-shim"]
    assert shim["read_only"] is True
    assert shim["cap_drop"] == ["ALL"]
    assert shim["security_opt"] == ["no-new-privileges:true"]
    assert not {"ports", "privileged", "user", "network_mode", "cap_add"} & shim.keys()


def test_the_add_on_lets_only_the_shim_reach_navidrome() -> None:
    whole = add_on()
    shim, navidrome = whole["services"]["navidrome-shim"], whole["services"]["navidrome"]
    assert list(navidrome["networks"]) == ["navidrome-only"]
    assert navidrome["ports"] == []
    assert navidrome["labels"] == ["traefik.enable=false"]
    assert whole["networks"]["navidrome-only"]["internal"] is True
    address = shim["networks"]["navidrome-only"]["ipv4_address"]
    assert navidrome["environment"]["ND_EXTAUTH_TRUSTEDSOURCES"] == f"{address}/32"
    raw = ADD_ON.read_text()
    assert "ports: !reset" in raw
    assert "networks: !override" in raw
    assert "labels: !override" in raw


def test_settings_in_composes_env_file_reach_the_shim() -> None:
    shim = add_on()["services"]["navidrome-shim"]
    assert shim["env_file"] == [{"path": ".env", "required": False}]
    # `environment` overrides the file: it names only settings that follow from the other files.
    assert set(shim["environment"]) == {
        "SHIM_UPSTREAM",
        "SHIM_REVERSE_PROXY_WHITELIST",
        "SHIM_PROXY_SECRET",
        "SHIM_PUBLIC_URL",
    }


def test_the_health_check_loads_little() -> None:
    words = "import sys; sys.argv = ['navidrome-shim', 'health']; from shim.__main__ import main\n"
    words += "try: main()\nexcept SystemExit: pass\n"
    words += (
        "print(sorted({'typer', 'pydantic', 'httpx', 'sqlalchemy', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", words],
        env={"SHIM_CONTROL_LISTEN": f"127.0.0.1:{free_port()}", "PYTHONPATH": str(ROOT)},
        timeout=30,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_add_ons_settings_are_valid(tmp_path: Path) -> None:
    environment = add_on(EDGE_HOST="127.0.0.1")["services"]["navidrome-shim"]["environment"]
    env = {name: str(value) for name, value in environment.items() if value is not None}
    assert set(environment) - set(env) == {"SHIM_PROXY_SECRET"}
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


def test_hadolint_reports_no_fault_in_the_dockerfile() -> None:
    command = [beside_python("hadolint"), str(DEPLOY / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def file_provider() -> dict[str, Any]:
    """`deploy/traefik/`'s dynamic file, each template replaced by a word."""
    text = (DEPLOY / "traefik/dynamic/navidrome.yml").read_text()
    parsed: dict[str, Any] = yaml.safe_load(
        _TEMPLATE.sub("filled-in", text).replace("\nfilled-in", "")
    )
    return parsed["http"]  # type: ignore[no-any-return]


def test_the_labels_match_the_file() -> None:
    labels = compose.labels(add_on()["services"]["navidrome-shim"])
    http = file_provider()
    for name, router in http["routers"].items():
        prefix = f"traefik.http.routers.{name}"
        assert labels[f"{prefix}.priority"] == str(router["priority"])
        assert labels[f"{prefix}.middlewares"] == ",".join(router["middlewares"])
        assert labels[f"{prefix}.service"] == router["service"]
        prefixes = re.findall(r"PathPrefix\(`([^`]*)`\)", router["rule"])
        assert re.findall(r"PathPrefix\(`([^`]*)`\)", labels[f"{prefix}.rule"]) == prefixes
    prefix = "traefik.http.middlewares.navidrome-no-identity.headers.customrequestheaders."
    removed = http["middlewares"]["navidrome-no-identity"]["headers"]["customRequestHeaders"]
    assert {k.removeprefix(prefix): v for k, v in labels.items() if k.startswith(prefix)} == removed
    assert set(removed) == {*NAMES, "Remote-User", "X-Shim-Proxy-Secret"}
    forward_auth = http["middlewares"]["navidrome-authentik"]["forwardAuth"]
    prefix = "traefik.http.middlewares.navidrome-authentik.forwardauth."
    for name in ("authResponseHeadersRegex", "maxResponseBodySize"):
        assert labels[prefix + name.lower()] == str(forward_auth[name])
    assert forward_auth["trustForwardHeader"] is False
    assert labels[prefix + "trustforwardheader"] == "false"


def routers() -> dict[str, dict[str, int]]:
    """The priority of each router, by the place that defines it: Traefik's files, labels, IngressRoutes."""
    found: dict[str, dict[str, int]] = {}
    files = sorted(DEPLOY.rglob("*.yml")) + sorted(DEPLOY.rglob("*.yaml"))
    for path in files:
        text = _TEMPLATE.sub("filled-in", path.read_text()).replace("\nfilled-in", "")
        place = "kubernetes" if "kubernetes" in path.parts else str(path.relative_to(DEPLOY))
        for document in yaml.load_all(text, _AnyTag):
            if isinstance(document, dict):
                found.setdefault(place, {}).update(_routers_of(document))
    return {place: those for place, those in found.items() if those}


class _AnyTag(yaml.SafeLoader):
    """YAML whose tags do not matter."""


_AnyTag.add_multi_constructor("!", lambda _loader, _tag, _node: None)


def _routers_of(document: dict[str, Any]) -> dict[str, int]:
    of_files = (document.get("http") or {}).get("routers") or {}
    found = {name: router["priority"] for name, router in of_files.items()}
    if document.get("kind") == "IngressRoute":
        name = document["metadata"]["name"]
        routes = enumerate(document["spec"]["routes"])
        found |= {f"{name} {number}": route["priority"] for number, route in routes}
    for service in (document.get("services") or {}).values():
        for label in (service or {}).get("labels") or []:
            key, _, value = label.partition("=")
            if match := re.fullmatch(r"traefik\.http\.routers\.([\w-]+)\.priority", key):
                found[match[1]] = int(value)
    return found


def test_no_two_routers_have_the_same_priority() -> None:
    # Traefik does not define which of two equal routers is used, and may change it at the next
    # start.
    found = routers()
    paths = [200, 150, 140, 130, 100, 50]
    assert {place: sorted(those.values(), reverse=True) for place, those in found.items()} == {
        "traefik/dynamic/navidrome.yml": paths,
        "compose/add-on.yml": paths,
        "compose/full/traefik/authentik.yml": [40],
        "kubernetes": paths,
    }


def test_every_router_has_a_unique_priority_in_its_definition() -> None:
    labels = compose.labels(add_on()["services"]["navidrome-shim"])
    rules = {name for name in labels if re.fullmatch(r"traefik\.http\.routers\.[\w-]+\.rule", name)}
    assert len(rules) == len(routers()["compose/add-on.yml"])


def test_every_entry_point_removes_aliases() -> None:
    static = yaml.safe_load((DEPLOY / "traefik/traefik.yml").read_text())
    strategies = {
        name: entry_point["http"]["aliasHeadersStrategy"]
        for name, entry_point in static["entryPoints"].items()
    }
    assert strategies == {"web": "delete", "websecure": "delete"}


def test_caddy_copies_every_header_of_authentiks() -> None:
    text = (DEPLOY / "caddy/Caddyfile").read_text()
    [block] = re.findall(r"copy_headers \{([^}]*)\}", text)
    assert {name.lower() for name in block.split()} == {name.lower() for name in NAMES}


def test_the_caddyfile_is_formatted(tmp_path: Path) -> None:
    done = subprocess.run(
        [beside_python("caddy"), "fmt", str(DEPLOY / "caddy/Caddyfile")],
        env={"HOME": str(tmp_path)},
        timeout=30,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
