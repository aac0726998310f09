"""The image, built from `deploy/Dockerfile` and started read-only without capabilities."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.image import VERSION, Image, build_image, download, run
from tests.support.ports import free_port

pytestmark = [
    pytest.mark.packaging,
    pytest.mark.binary("buildah"),
    pytest.mark.binary("mmdebstrap"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]
MAX_ENVIRONMENT_BYTES = 110_000_000
_START_SECONDS = 30.0
# Modules that have no bytecode file, and would be compiled at each start.
WITHOUT_BYTECODE = """
import os, sys
{statement}
names = [m.__name__ for m in list(sys.modules.values()) if getattr(m, "__cached__", None)
         and m.__name__ != "__main__" and not os.path.exists(m.__cached__)]
print(len(sys.modules) > 20, names)
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    with build_image(tmp_path_factory.mktemp("image")) as image:
        yield image


def test_health_check_succeeds_once_the_image_serves_and_fails_otherwise(image: Image) -> None:
    control = f"127.0.0.1:{free_port()}"
    settings = {
        "SHIM_LISTEN": f"127.0.0.1:{free_port()}",
        "SHIM_CONTROL_LISTEN": control,
        "SHIM_UPSTREAM": f"http://127.0.0.1:{free_port()}",
        "SHIM_REVERSE_PROXY_WHITELIST": "127.0.0.1",
    }
    check = image.config["Healthcheck"]["Test"]
    assert check == ["CMD", "navidrome-shim", "health"]
    assert image.run(check[1:], SHIM_CONTROL_LISTEN=control).returncode == 1
    process = image.start(image.config["Cmd"], **settings)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while image.run(check[1:], SHIM_CONTROL_LISTEN=control).returncode:
            assert process.poll() is None, process.communicate()[0].decode()
            assert time.monotonic() < deadline
        assert Path(f"/proc/{process.pid}/root/data/shim.db").exists()
    finally:
        process.terminate()
        log, _ = process.communicate(timeout=30)
    assert b'"kind":"started"' in log


def test_image_has_no_capability_and_can_write_only_its_volume(image: Image) -> None:
    script = (
        "id -u; id -g; grep ^Cap /proc/self/status; grep ^NoNewPrivs /proc/self/status;"
        "for place in / /opt/shim /etc /usr/bin; do test -w $place && echo $place; done;"
        "touch file && echo written"
    )
    done = image.run(["sh", "-c", script])
    words = done.stdout.split()
    assert words[:2] == image.config["User"].split(":")
    masks = [words[n + 1] for n, word in enumerate(words) if word.startswith("Cap")]
    assert len(masks) == 5
    assert set(masks) == {"0" * 16}
    assert words[-3:] == ["NoNewPrivs:", "1", "written"]


@pytest.mark.parametrize(
    "statement",
    [
        "import shim.cli.health",
        "import shim.app.runtime, shim.cli.main",
        "import shim.control.app, shim.control.metrics, shim.control.pages.routes",
    ],
)
def test_image_has_the_bytecode_of_every_module_that_it_loads(image: Image, statement: str) -> None:
    done = image.run(["python", "-c", WITHOUT_BYTECODE.format(statement=statement)])
    assert done.stdout.strip() == "True []", done.stderr


def test_image_names_its_version_and_source(image: Image) -> None:
    labels = {
        name.removeprefix("org.opencontainers.image."): value
        for name, value in image.config["Labels"].items()
        if name.startswith("org.opencontainers.image.")
    }
    assert labels["title"] == "navidrome-auth-shim"
    assert labels["licenses"] == "MIT"
    assert labels["version"] == VERSION
    assert labels["revision"] == "0123abc"
    assert labels["source"] == "here"
    assert "description" in labels
    assert "created" in labels


def test_image_adds_little_to_its_base(image: Image) -> None:
    assert 20_000_000 < image.environment_bytes < MAX_ENVIRONMENT_BYTES


def test_image_has_neither_a_compiler_nor_the_packages_of_the_build(image: Image) -> None:
    script = (
        "command -v gcc cc make; python -m pip --version; python -c 'import hatchling'; ls /src"
    )
    done = image.run(["sh", "-c", script])
    assert done.stdout == ""
    assert "No module named pip" in done.stderr
    assert "No module named 'hatchling'" in done.stderr


@pytest.mark.parametrize("file", ["run.txt", "postgres.txt", "build.txt"])
def test_every_package_has_a_wheel_for_arm64(tmp_path: Path, file: str) -> None:
    platforms = [f"--platform=manylinux_2_{n}_aarch64" for n in (17, 28)]
    platforms += ["--platform=manylinux2014_aarch64"]
    run(*download(file, tmp_path, "--python-version=3.13", *platforms))
    wheels = [wheel.name for wheel in tmp_path.iterdir()]
    assert not any("x86_64" in wheel for wheel in wheels)
    compiled = {wheel.partition("-")[0] for wheel in wheels if "aarch64" in wheel}
    assert ("pydantic_core" in compiled) == (file != "build.txt")


def test_version_of_the_image_is_the_package_version(image: Image) -> None:
    import shim

    done = image.run(
        ["python", "-c", "import importlib.metadata as m; print(m.version('navidrome-auth-shim'))"]
    )
    assert done.stdout.strip() == shim.__version__, json.dumps(image.config["Env"])
