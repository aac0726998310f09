"""Builds the image with buildah, and runs it without an engine.

The base is this machine's Debian with Python and, as in Python's own images, without bytecode of
the standard library. Packages are downloaded beforehand, so that the build needs no network. A
container is a mount namespace in which the image's file system is read-only.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
VERSION = "1.2.3-test"
_BUILD_SECONDS = 600
_RUN_SECONDS = 60
# Mounts what the container may write, makes the rest read-only, and becomes the image's user without
# capabilities. Arguments: the image's root, its volume, the user id, the group id; then the command.
_ENTER = """
set -e
root=$1 volume=$2 user=$3 group=$4
shift 4
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o "uid=$user,gid=$group,mode=0750" tmpfs "$root$volume"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
exec chroot "$root" /usr/bin/setpriv --reuid "$user" --regid "$group" --clear-groups --inh-caps=-all \\
    --bounding-set=-all --no-new-privs /usr/bin/env --ignore-environment --chdir "$volume" "$@"
"""


@dataclass(frozen=True, slots=True)
class Image:
    """A built image: its mounted file system, its configuration, and the bytes of the virtual environment."""

    root: Path
    config: Mapping[str, Any]
    environment_bytes: int

    def start(self, arguments: Sequence[str], **settings: str) -> subprocess.Popen[bytes]:
        """Start the image's entry point with these arguments."""
        command = [*self.config["Entrypoint"], *arguments]
        return subprocess.Popen(
            self._command(command, settings), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, command: Sequence[str], **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end in another container of the image."""
        return subprocess.run(
            self._command(command, settings),
            capture_output=True,
            text=True,
            timeout=_RUN_SECONDS,
            check=False,
        )

    def _command(self, command: Sequence[str], settings: Mapping[str, str]) -> list[str]:
        user, _, group = self.config["User"].partition(":")
        variables = [*self.config["Env"], *(f"{name}={value}" for name, value in settings.items())]
        enter = ["/bin/sh", "-c", _ENTER, "enter", str(self.root), self.config["WorkingDir"]]
        return ["unshare", "--mount", *enter, user, group, *variables, *command]


@contextlib.contextmanager
def build_image(folder: Path) -> Iterator[Image]:
    """Build `deploy/Dockerfile`, and mount the image until the block ends."""
    storage = _Storage(folder / "storage", folder / "run")
    base = storage.base(folder)
    image = storage.build(folder, base)
    config = json.loads(storage("inspect", "--type", "image", image))["Docker"]["config"]
    with storage.mounted(image) as root:
        size = int(run("du", "--summarize", "--bytes", str(root / "opt/shim")).split()[0])
        yield Image(root, config, size)


@dataclass(frozen=True, slots=True)
class _Storage:
    """buildah with its images in folders of the test."""

    root: Path
    run_root: Path

    def __call__(self, *arguments: str | Path) -> str:
        """Run buildah, and return its output. Raises AssertionError with its messages."""
        where = ["--root", str(self.root), "--runroot", str(self.run_root)]
        return run("buildah", *where, "--storage-driver", "vfs", *arguments).strip()

    def base(self, folder: Path) -> str:
        """Return an image of Debian with Python."""
        archive = folder / "base.tar"
        sources = run(
            "apt-get", "indextargets", "--format", "deb $(SITE) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages", "Label: Debian",
        )  # fmt: skip
        release = run("sh", "-c", ". /etc/os-release && echo $VERSION_CODENAME").strip()
        run(
            "mmdebstrap", "--quiet", "--mode=root", "--variant=essential",
            "--include=python3,python3-venv", "--dpkgopt=force-unsafe-io",
            "--customize-hook=find $1/usr/lib -name '*.pyc' -delete",
            release, archive, "-", stdin=sources,
        )  # fmt: skip
        container = self("from", "scratch")
        self("add", container, archive, "/")
        self("commit", "--quiet", "--rm", container, "localhost/base")
        return "localhost/base"

    def build(self, folder: Path, base: str) -> str:
        """Return the image that the Dockerfile makes of a base."""
        packages = folder / "packages"
        for file in ("run.txt", "build.txt"):
            run(*download(file, packages))
        configuration = folder / "pip.conf"
        configuration.write_text("[global]\nno-index = true\nfind-links = /packages\n")
        arguments = {"BASE": base, "VERSION": VERSION, "REVISION": "0123abc", "SOURCE": "here"}
        self(
            "build", "--quiet", "--isolation", "chroot", "--format", "docker",
            *(f"--build-arg={name}={value}" for name, value in arguments.items()),
            f"--volume={packages}:/packages:ro", f"--volume={configuration}:/etc/pip.conf:ro",
            "--file", ROOT / "deploy/Dockerfile", "--tag", "localhost/shim", ROOT,
        )  # fmt: skip
        return "localhost/shim"

    @contextlib.contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """The file system of a container of this image."""
        container = self("from", image)
        try:
            yield Path(self("mount", container))
        finally:
            self("rm", container)


def download(file: str, folder: Path, *options: str) -> list[str | Path]:
    """Return the command that downloads the wheels of a lock file, checking their hashes."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    hashed = ["--only-binary=:all:", "--require-hashes", "--requirement"]
    return [*pip, *options, *hashed, ROOT / "requirements" / file, "--dest", folder]


def run(*command: str | Path, stdin: str = "") -> str:
    """Run a command, and return its output. Raises AssertionError with its messages."""
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False
    )
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout
