"""The stand-in tells the recorded story; so does the real Navidrome where one is at hand.

The second test keeps the recording honest, the first keeps the stand-in honest by it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from demo.navidrome import StandInOptions, StandInThread
from tests.contract.story import Story, exchanges
from tests.support.real_navidrome import real_navidrome

TRUSTED = "127.0.0.2/32"


def _assert_told(port: int) -> None:
    story = Story("127.0.0.1", port)
    for exchange in exchanges():
        story.tell(exchange)
    assert not story.differences, "\n".join(story.differences)


def test_the_stand_in_responses_as_recorded() -> None:
    with StandInThread(StandInOptions(trusted_sources=TRUSTED)) as stand_in:
        _assert_told(stand_in.port)


@pytest.mark.skipif("NAVIDROME_BIN" not in os.environ, reason="NAVIDROME_BIN names no binary")
def test_the_real_navidrome_answers_as_recorded(tmp_path: Path) -> None:
    with real_navidrome(os.environ["NAVIDROME_BIN"], tmp_path, TRUSTED) as port:
        _assert_told(port)


def test_the_comparison_sees_a_server_that_answers_otherwise() -> None:
    # The same story to a stand-in that trusts nobody: what rests on the user header must differ.
    with StandInThread(StandInOptions(trusted_sources="127.0.0.2")) as stand_in:
        story = Story("127.0.0.1", stand_in.port)
        by_header = [e for e in exchanges() if e.what == "list by header of an admin"]
        story.tell(by_header[0])
        assert any("status: recorded 200, got 401" in line for line in story.differences)


def test_the_whole_recording_is_told() -> None:
    assert len(exchanges()) == 87
