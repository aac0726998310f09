"""An upstream that records, and a provider, for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.provider import Provider, provider
from tests.support.recorder import Recorder, recorder


@pytest.fixture
def upstream() -> Iterator[Recorder]:
    with recorder() as running:
        yield running


@pytest.fixture
def issuer() -> Iterator[Provider]:
    with provider() as running_provider:
        yield running_provider
