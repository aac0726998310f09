"""The packages in `dist/`, as `make packages` built them: complete, and installed in a clean environment."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import shim
from tests.e2e.programs import running
from tests.packaging.image import ROOT, download, run
from tests.support.ports import free_port

pytestmark = pytest.mark.packaging
DIST = ROOT / "dist"


def package_file(pattern: str) -> Path:
    [path] = DIST.glob(pattern)
    return path


def tracked(*paths: str) -> set[str]:
    """The files of the repository below these paths."""
    return set(run("git", "-C", ROOT, "ls-files", "--", *paths).split("\n")) - {""}


@pytest.fixture(scope="module")
def wheel_of_the_sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the unpacked sdist builds."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(package_file("*.tar.gz")) as archive:
        archive.extractall(folder, filter="data")
    [source] = folder.iterdir()
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "out")],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=120,
    )
    [wheel] = (folder / "out").iterdir()
    return wheel


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, wheel_of_the_sdist: Path) -> Path:
    """A clean virtual environment with the locked packages and the wheel; gives its programs' folder."""
    folder = tmp_path_factory.mktemp("environment")
    packages = folder / "packages"
    run(*download("run.txt", packages))
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv/bin"
    # From the downloaded files alone, so that nothing else comes in.
    source = f"[global]\nno-index = true\nfind-links = {packages}\n"
    (folder / "venv/pip.conf").write_text(source)
    pip = [str(programs / "python"), "-m", "pip", "--isolated"]
    install = [*pip, "install"]
    locked = ["--require-hashes", "--requirement", str(ROOT / "requirements/run.txt")]
    run(*install, *locked)
    run(*install, "--no-deps", wheel_of_the_sdist)
    run(*pip, "check")
    return programs


def command(
    environment: Path, *arguments: str, cwd: Path, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(environment / "navidrome-shim"), *arguments],
        env={"PATH": os.defpath, **env},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_wheel_has_every_file_of_the_package_and_no_other() -> None:
    with zipfile.ZipFile(package_file("*.whl")) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        licenses = [name for name in wheel.namelist() if name.endswith("/licenses/LICENSE")]
    assert names == tracked("shim")
    assert len(licenses) == 1


def test_sdist_has_what_building_and_deploying_need() -> None:
    with tarfile.open(package_file("*.tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = ("shim", "deploy", "docs", "requirements", "Makefile", "SECURITY.md", ".dockerignore")
    assert tracked(*needed) <= names
    assert not {name for name in names if name.endswith(("/.env", "-secret.yaml", ".db"))}


def test_sdist_builds_the_same_wheel(wheel_of_the_sdist: Path) -> None:
    def contents(path: Path) -> dict[str, int]:
        with zipfile.ZipFile(path) as wheel:
            return {info.filename: info.CRC for info in wheel.infolist()}

    assert contents(wheel_of_the_sdist) == contents(package_file("*.whl"))


def test_installed_command_has_the_version_of_the_package(
    environment: Path, tmp_path: Path
) -> None:
    done = command(environment, "--version", cwd=tmp_path)
    assert done.stdout.strip() == shim.__version__
    assert package_file("*.whl").name.split("-")[1] == shim.__version__


def test_installed_command_serves(environment: Path, tmp_path: Path) -> None:
    control = f"127.0.0.1:{free_port()}"
    settings = {
        "SHIM_LISTEN": "127.0.0.1:0",
        "SHIM_CONTROL_LISTEN": control,
        "SHIM_UPSTREAM": f"http://127.0.0.1:{free_port()}",
        "SHIM_REVERSE_PROXY_WHITELIST": "127.0.0.1",
    }
    serve = [str(environment / "navidrome-shim"), "serve"]
    with running(serve, int(control.rpartition(":")[2]), tmp_path, settings):
        done = command(environment, "health", cwd=tmp_path, SHIM_CONTROL_LISTEN=control)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "shim.db").exists()


@pytest.mark.parametrize(
    ("shell", "variables"),
    [
        ("bash", {"COMP_WORDS": "navidrome-shim us", "COMP_CWORD": "1"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "navidrome-shim us"}),
        (
            "fish",
            {
                "_TYPER_COMPLETE_ARGS": "navidrome-shim us",
                "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            },
        ),
    ],
)
def test_shell_completion_knows_the_commands(
    environment: Path, tmp_path: Path, shell: str, variables: dict[str, str]
) -> None:
    env = {"_NAVIDROME_SHIM_COMPLETE": f"complete_{shell}", **variables}
    done = command(environment, cwd=tmp_path, **env)
    assert "users" in done.stdout, done.stderr
    assert "serve" not in done.stdout
    # `--show-completion` prints the same for the shell that it is run from.
    script = command(environment, cwd=tmp_path, _NAVIDROME_SHIM_COMPLETE=f"source_{shell}")
    assert "_NAVIDROME_SHIM_COMPLETE" in script.stdout
