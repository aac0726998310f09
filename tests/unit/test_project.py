"""The project's own files are consistent: dependencies are locked, with hashes only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import shim

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDS: dict[str, list[str]] = {
    "run.txt": PROJECT["dependencies"],
    "postgres.txt": PROJECT["dependencies"] + EXTRAS["postgres"],
    "notify.txt": PROJECT["dependencies"] + EXTRAS["notify"],
    "dev.txt": PROJECT["dependencies"] + EXTRAS["postgres"] + EXTRAS["notify"] + EXTRAS["dev"],
}
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", re.MULTILINE)


def locked(file: str) -> dict[str, Version]:
    text = (ROOT / "requirements" / file).read_text()
    return {canonicalize_name(name): Version(version) for name, version in PIN.findall(text)}


@pytest.mark.parametrize("file", NEEDS)
def test_each_dependency_is_locked_in_an_allowed_version(file: str) -> None:
    pins = locked(file)
    for text in NEEDS[file]:
        need = Requirement(text)
        version = pins.get(canonicalize_name(need.name))
        assert version is not None, f"{file} lacks {need.name}: make lock"
        assert version in need.specifier, f"{file} has {need.name} {version}, not {text}: make lock"


# Packages that another one requires, and that nothing imports by name.
LOADED_BY_NAME = {
    "uvloop",
    "httptools",
}  # uvicorn: loop="uvloop", and the parser of its HTTP protocol
# Import names that differ from the package's name.
PACKAGES = {"dotenv": "python-dotenv", "jwt": "pyjwt"}


def imported() -> set[str]:
    """The packages that the shim's code imports, wherever in a file."""
    names = set()
    for file in (ROOT / "shim").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    names -= sys.stdlib_module_names | {"shim"}
    return {canonicalize_name(PACKAGES.get(name, name)) for name in names}


def test_the_project_declares_exactly_what_it_imports() -> None:
    declared = {
        canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]
    } - LOADED_BY_NAME
    optional = {canonicalize_name(Requirement(text).name) for text in EXTRAS["notify"]}
    assert imported() - optional == declared


@pytest.mark.parametrize("file", NEEDS)
def test_a_lock_file_has_only_pins_with_hashes(file: str) -> None:
    text = (ROOT / "requirements" / file).read_text().replace("\\\n", " ")
    for line in text.splitlines():
        code = line.partition("#")[0].strip()
        if code:
            assert re.fullmatch(
                r"[\w.-]+(\[[\w,-]+\])?==\S+(\s+--hash=sha256:[0-9a-f]{64})+", code
            ), line


def test_the_lock_files_are_consistent() -> None:
    dev, run = locked("dev.txt"), locked("run.txt")
    for extra in ("postgres.txt", "notify.txt"):
        assert run.items() <= locked(extra).items() <= dev.items()


def test_the_version_is_in_one_place() -> None:
    assert 'version = "' not in (ROOT / "pyproject.toml").read_text().partition("[tool.")[0]
    named = set()
    for path in (ROOT / "deploy/kubernetes").rglob("*.yaml"):
        text = path.read_text()
        named |= set(re.findall(r"image: navidrome-auth-shim:(\S+)", text))
        named |= set(re.findall(r"newTag: (\S+)-postgres", text))
    # Kubernetes needs a tag; the release checklist changes it with the version.
    assert named == {shim.__version__}


WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_follows_the_schema(path: Path) -> None:
    command = [str(Path(sys.executable).parent / "check-jsonschema"), "--builtin-schema"]
    done = subprocess.run(
        [*command, "vendor.github-workflows", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_workflow_pins_every_action_by_commit_and_grants_nothing_by_default(path: Path) -> None:
    text = path.read_text()
    used = re.findall(r"uses: (.*)", text)
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        checkouts = [s for s in job["steps"] if s.get("uses", "").startswith("actions/checkout@")]
        assert all(s["with"]["persist-credentials"] is False for s in checkouts)
        # A GitHub value in a script would be code injection: it is passed through the environment.
        assert not any("${{" in step.get("run", "") for step in job["steps"])


def test_one_action_has_one_version() -> None:
    used = {u for path in WORKFLOWS for u in re.findall(r"uses: (\S+)", path.read_text())}
    assert len(used) == len({action.partition("@")[0] for action in used}) > 5


def test_the_changelog_contains_the_version() -> None:
    assert f"## {shim.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_changelog_has_each_section_and_each_entry_once() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    newest = re.split(r"(?m)^## ", text)[1]
    sections = re.findall(r"(?m)^### (.+)$", newest)
    assert len(sections) == len(set(sections)) > 2, "a merge doubled a section"
    entries = [" ".join(entry.split()) for entry in re.split(r"(?m)^- ", newest)[1:]]
    beginnings = [entry[:60] for entry in entries]
    assert len(beginnings) == len(set(beginnings)) > 100, "a merge doubled an entry"
