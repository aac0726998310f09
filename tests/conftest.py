"""What every test can count on: no settings of the machine, and the programs that a test names."""

from __future__ import annotations

import os
import shutil

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose program is not on this machine; on CI it has to be there."""
    for marker in item.iter_markers("binary"):
        name = str(marker.args[0])
        if shutil.which(name) is None:
            missing = f"{name} is not on this machine"
            if os.environ.get("CI") == "true":
                pytest.fail(f"{missing}, and CI has to have it", pytrace=False)
            pytest.skip(missing)


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(("SHIM_", "ND_")):
            monkeypatch.delenv(name)
