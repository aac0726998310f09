"""Generated tones and covers: any slice equals that part of the whole, and a gigabyte needs no memory."""

from __future__ import annotations

import io
import wave

from hypothesis import given
from hypothesis import strategies as st

from demo.navidrome.media import Tone, cover

TONE = Tone(2, 400)
WHOLE = TONE.slice(0, TONE.size)


@given(st.integers(0, TONE.size + 5), st.integers(0, 3000))
def test_a_slice_equals_that_part_of_the_whole(start: int, length: int) -> None:
    assert TONE.slice(start, start + length) == WHOLE[start : start + length]


def test_a_tone_is_a_wav_file_of_its_length() -> None:
    with wave.open(io.BytesIO(WHOLE)) as read:
        assert read.getnframes() / read.getframerate() == TONE.seconds
    assert len(WHOLE) == TONE.size


def test_a_part_of_a_tone_of_a_gigabyte_is_generated_alone() -> None:
    long = Tone(70_000, 400)
    assert long.size > 1_000_000_000
    assert long.slice(long.size - 40, long.size + 40) == WHOLE[-40:]


def test_a_cover_is_a_jpeg_of_the_requested_size() -> None:
    image = cover(30_000, 300, 7)
    assert (len(image), image[:2], image[-2:]) == (30_000, b"\xff\xd8", b"\xff\xd9")
    assert image != cover(30_000, 300, 8)
