"""An upstream and a shim for each file of attacks; `SETTINGS` of the file are the shim's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.recorder import Recorder, recorder
from tests.support.shim_process import Shim, run_shim


@pytest.fixture(scope="module")
def recording() -> Iterator[Recorder]:
    with recorder() as running:
        yield running


@pytest.fixture(scope="module")
def shim(
    recording: Recorder, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shim]:
    """A shim with the recorder as its upstream."""
    settings: dict[str, str] = getattr(request.module, "SETTINGS", {})
    with run_shim(recording.port, tmp_path_factory.mktemp("shim"), **settings) as shim:
        yield shim


@pytest.fixture
def upstream(recording: Recorder) -> Recorder:
    """The recorder, without records."""
    recording.clear()
    return recording
