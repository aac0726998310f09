"""A Navidrome that responds to every request, for shims whose log and metrics are read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.recorder import Recorder, recorder


@pytest.fixture
def upstream() -> Iterator[Recorder]:
    with recorder() as running:
        yield running
