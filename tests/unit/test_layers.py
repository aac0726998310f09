"""Imports follow the layers, and a disabled feature costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "shim"
# The project parts that each part may import. A file at the top level is a part too.
BELOW = {
    "__init__": set[str](),
    "__main__": {"cli"},
    "health": set[str](),
    "settings": {"health", "http1", "trust"},  # parses addresses and names as the decision does
    "store": set[str](),
    "http1": set[str](),
    "trust": {"http1"},
    "proxy": {"http1", "trust"},
    "navidrome": {"settings", "trust"},
    "audit": {"health", "proxy", "settings", "store", "trust"},
    "monitors": {"health", "navidrome", "settings", "trust"},
    "devices": {
        "audit",
        "health",
        "provisioning",
        "proxy",
        "settings",
        "store",
        "trust",
    },
    "provisioning": {"audit", "health", "navidrome", "proxy", "settings", "store", "trust"},
    "control": {
        "audit",
        "devices",
        "health",
        "navidrome",
        "provisioning",
        "proxy",
        "settings",
        "store",
        "trust",
    },
    "app": {
        "audit",
        "control",
        "devices",
        "health",
        "monitors",
        "navidrome",
        "provisioning",
        "proxy",
        "settings",
        "store",
        "trust",
    },
    "cli": {
        "app",
        "audit",
        "control",
        "devices",
        "health",
        "monitors",
        "navidrome",
        "provisioning",
        "proxy",
        "settings",
        "store",
        "trust",
    },
}


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shim."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "shim":
            found |= {alias.name for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("shim.")}
    return found


def part_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_part_is_listed() -> None:
    assert {part_of(file) for file in ROOT.rglob("*.py")} == set(BELOW)


def test_no_two_parts_import_each_other() -> None:
    def reached(part: str) -> set[str]:
        below = BELOW[part]
        return below.union(*map(reached, below))

    assert not [part for part in BELOW if part in reached(part)]  # a cycle recurses without end


@pytest.mark.parametrize("part", BELOW)
def test_imports_follow_the_layers(part: str) -> None:
    files = [file for file in ROOT.rglob("*.py") if part_of(file) == part]
    assert files
    for file in files:
        assert imported(file) <= BELOW[part] | {part}, file


def test_provisioning_imports_only_the_interface_of_proxy() -> None:
    files = (ROOT / "provisioning").rglob("*.py")
    lines = [line for file in files for line in file.read_text().splitlines()]
    imports = [line for line in lines if "shim.proxy" in line]
    assert imports
    assert not [line for line in imports if "shim.proxy.gate" not in line]


def test_without_provisioning_no_database_code_is_loaded() -> None:
    code = "import sys, shim.app.runtime, shim.cli.main; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = ran.stdout.split()
    assert "shim.app.runtime" in modules
    assert not [name for name in modules if name.startswith(("sqlalchemy", "alembic"))]
    assert "apprise" not in modules, "only SHIM_NOTIFY_URLS needs it"


def test_a_new_database_is_created_without_the_migration_code(tmp_path: Path) -> None:
    code = (
        "import sys; from shim.store.database import Database; "
        f"Database('sqlite:///{tmp_path}/shim.db').open(); print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = ran.stdout.split()
    assert "sqlalchemy" in modules
    assert not [name for name in modules if name.startswith("alembic")]


def test_serving_loads_no_command_line_parser() -> None:
    code = "import sys, shim.__main__, shim.cli.serve, shim.app.runtime; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = ran.stdout.split()
    assert "shim.cli.serve" in modules
    assert "typer" not in modules


def test_serving_loads_no_terminal_library(tmp_path: Path) -> None:
    code = (
        "import atexit, sys; from pathlib import Path; "
        "atexit.register(lambda: Path('modules').write_text("
        "' '.join(name for name, found in sys.modules.items() if found is not None))); "
        "sys.argv[1:] = ['serve']; from shim.__main__ import main; main()"
    )
    # It exits since it cannot listen: everything is loaded by then.
    environment = {
        "SHIM_LISTEN": "192.0.2.1:1",
        "SHIM_PROVISIONING": "true",
        "SHIM_JWT_VERIFY": "required",
        "SHIM_JWT_HS256_SECRET": "x" * 32,
        "SHIM_JWT_ISSUER": "issuer",
        "SHIM_JWT_AUDIENCE": "audience",
        "SHIM_LOG_FORMAT": "console",
        "PYTHONPATH": str(ROOT.parent),
    }
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    assert "Cannot assign requested address" in ran.stderr
    modules = (tmp_path / "modules").read_text().split()
    assert {"shim.app.runtime", "sqlalchemy", "httpx", "structlog"} <= set(modules)
    unused = (
        "rich",
        "pygments",
        "httpx._main",
        "attr",
        "cryptography",
        "difflib",
        "fastapi",
        "greenlet",
        "jinja2",
        "jwt",
        "prometheus_client",
        "typer",
        "alembic",
        "apprise",
        "sqlalchemy.dialects.postgresql",
    )
    assert not [name for name in modules if name in unused or name.partition(".")[0] in unused]
