"""Times within the recording, and no text where there is no signal."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.audio.segment_times import audible, is_silent, leading_silence, within
from deployments.audio.transcription_engine import Segment, Word
from deployments.media.audio_files import SAMPLE_RATE

times = st.floats(-2, 12)


def recording(*parts: tuple[float, float]) -> Any:
    """Noise and silence: seconds and peak of each part."""
    random = np.random.default_rng(0)
    sounds = [random.uniform(-peak, peak, round(seconds * SAMPLE_RATE)) for seconds, peak in parts]
    return np.concatenate(sounds).astype(np.float32)


@given(st.lists(st.tuples(times, times, st.lists(st.tuples(times, times), max_size=3)), max_size=6), st.floats(0.05, 9))
def test_any_times_of_an_engine_become_ordered_and_lie_within_the_recording(found: list[Any], seconds: float) -> None:
    samples = recording((seconds, 0.1))
    segments = [Segment("a", start, end, tuple(Word("a", *word) for word in words)) for start, end, words in found]
    kept = list(within(iter(segments), samples))
    duration_s = len(samples) / SAMPLE_RATE
    assert all(0 <= segment.start <= segment.end <= duration_s for segment in kept)
    assert all(one.end <= other.start for one, other in pairwise(kept))
    for segment in kept:
        assert all(segment.start <= word.start <= word.end <= segment.end for word in segment.words)
        assert all(one.end <= other.start for one, other in pairwise(segment.words))


def test_valid_times_are_kept_as_they_are() -> None:
    segments = [Segment("a", 0.0, 1.5, (Word("a", 0.25, 1.5, 0.5),)), Segment("b", 1.5, 3.0)]
    assert list(within(iter(segments), recording((3, 0.1)))) == segments


def test_a_text_in_digital_silence_is_left_out_and_one_in_the_quietest_room_is_not() -> None:
    you = Segment(" You", 12.0, 14.0)
    assert list(within(iter([you]), recording((5, 0.1), (20, 3 / 32768), (5, 0.1)))) == []
    assert list(within(iter([you]), recording((5, 0.1), (20, 4 / 32768), (5, 0.1)))) == [you]
    assert list(within(iter([you]), recording((11.5, 0.1), (20, 0)))) == [you]


def test_silence_at_both_ends_and_long_gaps_is_no_audible_part() -> None:
    assert audible(recording((40, 0))) == []
    assert audible(recording((9.5, 0.1))) == [(0.0, 9.5)]
    ((start, end),) = audible(recording((4, 0), (2, 0.1), (29, 0), (1, 0.1), (7.25, 0)))
    assert (round(start, 1), round(end, 1)) == (3.0, 37.0)
    parts = audible(recording((4, 0), (2, 0.1), (60, 0), (1, 0.1), (0.5, 0)))
    assert [(round(start, 1), round(end, 1)) for start, end in parts] == [(3.0, 7.0), (65.0, 67.5)]


@pytest.mark.parametrize(("samples", "silent"), [([], True), ([0, 1e-4], True), ([0, -2e-4], False), ([1.0], False)])
def test_silence_is_below_eighty_decibels_under_full_scale(samples: list[float], silent: bool) -> None:
    assert is_silent(np.array(samples, np.float32)) is silent


def test_leading_silence_is_skipped_up_to_a_second_before_the_first_sound() -> None:
    assert leading_silence(recording((3, 0.1))) == 0
    assert leading_silence(recording((0.5, 0), (3, 0.1))) == 0
    assert leading_silence(recording((5, 0), (3, 0.1))) == pytest.approx(4 * SAMPLE_RATE, abs=100)
    assert leading_silence(recording((5, 0))) == 5 * SAMPLE_RATE
