"""The manifests follow Kubernetes' schemas and say what the shim needs: a native sidecar, a socket of its
own, little privilege, and Traefik alone before it. What leaves the IngressRoutes is in test_edges.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.e2e.kubernetes import ROOT as FOLDER
from tests.e2e.kubernetes import documents, named
from tests.e2e.servers import ROOT
from tests.e2e.test_deploy_files import file_provider

FOLDERS = ("base", "components/postgresql")
VERSIONS = ("1.33", "1.37")
OBJECTS = [each for folder in FOLDERS for each in documents(folder)]
BUILT_IN = [each for each in OBJECTS if "traefik.io" not in each["apiVersion"]]
PODS = [each for each in OBJECTS if each["kind"] in {"Deployment", "StatefulSet"}]


def identify(each: dict[str, Any]) -> str:
    return f"{each['kind']}-{each['metadata']['name']}"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("each", BUILT_IN, ids=identify)
def test_object_follows_the_schema_of_kubernetes(each: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("folder", [*FOLDERS, "example"])
def test_kustomization_lists_every_existing_file(folder: str) -> None:
    text = (FOLDER / folder / "kustomization.yaml").read_text()
    kustomization = yaml.safe_load(text)
    listed = set(kustomization["resources"])
    listed |= {patch["path"] for patch in kustomization.get("patches", ())}
    files = {path.name for path in (FOLDER / folder).glob("*.yaml")} - {"kustomization.yaml"}
    elsewhere = {name for name in listed if "/" in name}
    # make-secrets.sh writes it.
    assert listed - elsewhere - {"proxy-secret.yaml"} == files - {"proxy-secret.yaml"}
    assert all((FOLDER / folder / name / "kustomization.yaml").exists() for name in elsewhere)


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = named("base", "Deployment", "navidrome")["spec"]["template"]["spec"]
    return spec


def test_shim_is_a_native_sidecar_that_starts_without_navidrome() -> None:
    [sidecar] = pod()["initContainers"]
    assert sidecar["name"] == "navidrome-shim"
    assert sidecar["restartPolicy"] == "Always"
    # Navidrome starts after this probe succeeded, so it must not need Navidrome.
    assert sidecar["startupProbe"]["exec"]["command"] == ["navidrome-shim", "health"]
    assert sidecar["livenessProbe"]["exec"]["command"] == ["navidrome-shim", "health"]
    assert sidecar["readinessProbe"]["exec"]["command"] == ["navidrome-shim", "health", "--ready"]


def test_navidrome_listens_on_a_socket_that_only_the_shim_has() -> None:
    [sidecar], [navidrome] = pod()["initContainers"], pod()["containers"]
    settings = named("base", "ConfigMap", "navidrome")["data"]
    assert settings["ND_EXTAUTH_TRUSTEDSOURCES"] == "@"
    address = settings["ND_ADDRESS"]
    assert named("base", "ConfigMap", "navidrome-shim")["data"]["SHIM_UPSTREAM"] == address
    [volume] = [each for each in pod()["volumes"] if each["name"] == "socket"]
    assert "emptyDir" in volume
    for container in (sidecar, navidrome):
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert address.startswith(f"unix:{mounts['socket']}/")
    assert "ports" not in navidrome
    # The containers' users differ; the group of the pod may open the socket.
    assert settings["ND_UNIXSOCKETPERM"] == "0660"
    assert pod()["securityContext"]["fsGroup"] > 0
    users = {c["securityContext"]["runAsUser"] for c in (sidecar, navidrome)}
    assert len(users) == 2


@pytest.mark.parametrize("each", PODS, ids=identify)
def test_containers_have_minimal_privileges(each: dict[str, Any]) -> None:
    spec = each["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"requests", "limits"} == set(container["resources"])


def test_network_policy_lets_only_traefik_reach_the_shim() -> None:
    policy = named("base", "NetworkPolicy", "navidrome")["spec"]
    labels = named("base", "Deployment", "navidrome")["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    [rule] = policy["ingress"]
    [peer] = rule["from"]
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "traefik"}
    assert peer["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "traefik"}
    [sidecar] = pod()["initContainers"]
    assert [port["port"] for port in rule["ports"]] == [sidecar["ports"][0]["containerPort"]]


def test_the_whitelist_is_the_name_of_traefiks_pods() -> None:
    service = named("base", "Service", "navidrome-traefik-peers")
    # Headless: the name has the addresses of the pods.
    assert service["spec"]["clusterIP"] == "None"
    name = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local"
    settings = named("base", "ConfigMap", "navidrome-shim")["data"]
    assert settings["SHIM_REVERSE_PROXY_WHITELIST"] == name


@pytest.mark.parametrize("with_postgresql", [False, True])
def test_the_settings_are_valid(tmp_path: Path, with_postgresql: bool) -> None:
    env = dict(named("base", "ConfigMap", "navidrome-shim")["data"])
    mounts = {env["SHIM_PROXY_SECRET_FILE"]: ("secret", "a-secret-of-the-test-0123456789abcdef")}
    if with_postgresql:
        patch = yaml.safe_load((FOLDER / "components/postgresql/settings.yaml").read_text())
        env |= patch["data"]
        url = "postgresql+psycopg://shim:p@database/shim"
        mounts[env["SHIM_DATABASE_URL_FILE"]] = ("url", url)
    for name, path in env.items():
        if path in mounts:
            file, text = mounts[path]
            (tmp_path / file).write_text(text)
            env[name] = str(tmp_path / file)
    env["SHIM_REVERSE_PROXY_WHITELIST"] = "127.0.0.1"
    done = subprocess.run(
        [sys.executable, "-m", "shim", "explain", "--peer", "127.0.0.1", "--path", "/app/"],
        env={**env, "PYTHONPATH": str(ROOT), "PATH": os.defpath},
        cwd=tmp_path,
        timeout=60,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_secrets_are_mounted_where_the_settings_expect_them() -> None:
    [sidecar] = pod()["initContainers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in sidecar["volumeMounts"]}
    settings = named("base", "ConfigMap", "navidrome-shim")["data"]
    assert settings["SHIM_PROXY_SECRET_FILE"] == f"{mounts['shim-secrets']}/proxy-secret"
    component = FOLDER / "components/postgresql"
    patch = yaml.safe_load((component / "deployment.yaml").read_text())
    [patched] = patch["spec"]["template"]["spec"]["initContainers"]
    [mount] = patched["volumeMounts"]
    more = yaml.safe_load((component / "settings.yaml").read_text())["data"]
    assert more["SHIM_DATABASE_URL_FILE"] == f"{mount['mountPath']}/url"


def test_ingress_routes_match_the_file() -> None:
    http = file_provider()
    shim, authentik = (
        named("base", "IngressRoute", name)["spec"]["routes"]
        for name in ("navidrome", "navidrome-outpost")
    )
    routes = {
        route["priority"]: (
            re.findall(r"PathPrefix\(`([^`]*)`\)", route["match"]),
            [one["name"] for one in route["middlewares"]],
        )
        for route in [*shim, *authentik]
    }
    assert routes == {
        router["priority"]: (
            re.findall(r"PathPrefix\(`([^`]*)`\)", router["rule"]),
            router["middlewares"],
        )
        for router in http["routers"].values()
    }
    removed = http["middlewares"]["navidrome-no-identity"]["headers"]
    middlewares = [each for each in documents("base") if each["kind"] == "Middleware"]
    removing = [m for m in middlewares if m["metadata"]["name"] == "navidrome-no-identity"]
    # Traefik follows no reference into another namespace, so there are two.
    assert {m["metadata"]["namespace"] for m in removing} == {"navidrome", "authentik"}
    assert all(m["spec"]["headers"] == removed for m in removing)
    forward_auth = named("base", "Middleware", "navidrome-authentik")["spec"]["forwardAuth"]
    expected = http["middlewares"]["navidrome-authentik"]["forwardAuth"]
    assert {**forward_auth, "address": ""} == {**expected, "address": ""}


def make_secrets(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = folder / "make-secrets.sh"
    if not script.exists():
        shutil.copy(FOLDER / "example/make-secrets.sh", folder)
    return subprocess.run(
        [str(script), *arguments], capture_output=True, text=True, timeout=30, check=False, cwd="/"
    )


def test_make_secrets_writes_what_the_pods_mount(tmp_path: Path) -> None:
    done = make_secrets(tmp_path, "postgresql")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.iterdir())) == 3
    proxy, database = (
        yaml.safe_load((tmp_path / f"{name}-secret.yaml").read_text())
        for name in ("proxy", "database")
    )
    for secret in (proxy, database):
        kubernetes_validate.validate(secret, VERSIONS[0], strict=True)
    assert re.fullmatch("[0-9a-f]{64}", proxy["stringData"]["proxy-secret"])
    password = database["stringData"]["password"]
    host = named("components/postgresql", "Service", "navidrome-shim-database")["metadata"]["name"]
    assert database["stringData"]["url"] == f"postgresql+psycopg://shim:{password}@{host}/shim"
    mounted = {each["secret"]["secretName"] for each in pod()["volumes"] if "secret" in each}
    assert mounted == {proxy["metadata"]["name"]}
    for file in tmp_path.glob("*.yaml"):
        assert file.stat().st_mode & 0o777 == 0o600


def test_make_secrets_run_twice_changes_nothing(tmp_path: Path) -> None:
    assert make_secrets(tmp_path).returncode == 0
    before = (tmp_path / "proxy-secret.yaml").read_bytes()
    again = make_secrets(tmp_path)
    assert again.returncode == 0
    assert "Nothing was changed" in again.stdout
    assert (tmp_path / "proxy-secret.yaml").read_bytes() == before


def test_make_secrets_keeps_an_existing_file_and_lists_missing_values(tmp_path: Path) -> None:
    (tmp_path / "database-secret.yaml").write_text("stringData:\n  password: x\n")
    done = make_secrets(tmp_path, "postgresql")
    assert done.returncode == 1
    assert "Missing in it: url" in done.stderr
    assert (tmp_path / "database-secret.yaml").read_text() == "stringData:\n  password: x\n"
    assert make_secrets(tmp_path, "mysql").returncode == 1
