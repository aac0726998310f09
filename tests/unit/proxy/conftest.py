"""A Navidrome whose responses the test writes, and the data plane in front of it; on uvloop, as in
production.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

import pytest
import uvloop

from tests.support.certificates import Certificates, make_certificates
from tests.support.running_proxy import RunningProxy, start_proxy
from tests.support.scripted_navidrome import Navidrome, navidrome_on_a_socket


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def _nothing_is_raised_in_the_loop(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail on an exception in a callback, which asyncio would only log."""
    yield
    records = caplog.get_records("call") + caplog.get_records("teardown")
    raised = [record.getMessage() for record in records if record.name == "asyncio"]
    assert not raised, raised


@pytest.fixture
async def navidrome() -> AsyncIterator[Navidrome]:
    async with navidrome_on_a_socket() as served:
        yield served


@pytest.fixture
async def proxy(navidrome: Navidrome) -> AsyncIterator[RunningProxy]:
    async with start_proxy(navidrome) as made:
        yield made


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))
