"""The stand-in responds as recorded; so does the real Navidrome where one is available.

The second test keeps the recording correct, the first keeps the stand-in correct by it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from demo.navidrome import StandInOptions, StandInThread
from tests.contract.replay import Replayer, recorded_exchanges
from tests.support.real_navidrome import real_navidrome

TRUSTED = "127.0.0.2/32"


def _assert_replayed(port: int) -> None:
    replayer = Replayer("127.0.0.1", port)
    for exchange in recorded_exchanges():
        replayer.replay(exchange)
    assert not replayer.differences, "\n".join(replayer.differences)


def test_the_stand_in_responds_as_recorded() -> None:
    with StandInThread(StandInOptions(trusted_sources=TRUSTED)) as stand_in:
        _assert_replayed(stand_in.port)


@pytest.mark.skipif("NAVIDROME_BIN" not in os.environ, reason="NAVIDROME_BIN names no binary")
def test_the_real_navidrome_responds_as_recorded(tmp_path: Path) -> None:
    with real_navidrome(os.environ["NAVIDROME_BIN"], tmp_path, TRUSTED) as port:
        _assert_replayed(port)


def test_the_comparison_detects_a_different_response() -> None:
    # The same requests to a stand-in without trusted sources: responses by user header must differ.
    with StandInThread(StandInOptions(trusted_sources="127.0.0.2")) as stand_in:
        replayer = Replayer("127.0.0.1", stand_in.port)
        by_header = [
            e for e in recorded_exchanges() if e.description == "list by header of an admin"
        ]
        replayer.replay(by_header[0])
        assert any("status: recorded 200, got 401" in line for line in replayer.differences)


def test_the_complete_recording_is_replayed() -> None:
    assert len(recorded_exchanges()) == 87
