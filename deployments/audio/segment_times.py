"""Segments within their recording: times that Whisper rounds up to the next second, and texts that it invents where a
recording has no signal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from deployments.audio.transcription_engine import Segment, Word
from deployments.media.audio_files import SAMPLE_RATE

if TYPE_CHECKING:
    from deployments.media.audio_decoder import Samples

SILENCE = 1e-4
"""-80 dBFS: three steps of 16-bit samples. What is not louder is digital silence; the quietest room is."""
MARGIN_S = 1.0
"""Whisper's times of a text are that exact."""
MIN_GAP_S = 30.0
"""Digital silence between two sounds is skipped from this length on: shorter gaps would only divide windows."""


def is_silent(samples: Samples, start_s: float = 0.0, end_s: float | None = None) -> bool:
    """Whether the samples, or those between two times, are digital silence."""
    first = max(0, int(start_s * SAMPLE_RATE))
    part = samples[first : len(samples) if end_s is None else max(first, int(end_s * SAMPLE_RATE))]
    return not len(part) or (float(part.max()) <= SILENCE and float(part.min()) >= -SILENCE)


def leading_silence(samples: Samples) -> int:
    """Samples of digital silence that can be skipped before the first sound: all but `MARGIN_S` of them, and all of
    them where no sound follows."""
    import numpy as np

    loud = np.abs(samples) > SILENCE
    return max(0, int(loud.argmax()) - round(MARGIN_S * SAMPLE_RATE)) if loud.any() else len(samples)


def audible(samples: Samples) -> list[tuple[float, float]]:
    """The parts of a recording around its sounds, as starts and ends in seconds: without the silence at both ends and
    without long gaps. Empty for digital silence."""
    import numpy as np

    size = SAMPLE_RATE // 10
    blocks = np.abs(np.pad(samples, (0, -len(samples) % size))).reshape(-1, size).max(axis=1)
    loud = np.flatnonzero(blocks > SILENCE) / 10
    if not len(loud):
        return []
    gaps = np.flatnonzero(np.diff(loud) >= MIN_GAP_S)
    starts, ends = loud[np.r_[0, gaps + 1]], loud[np.r_[gaps, len(loud) - 1]] + 0.1
    duration_s = len(samples) / SAMPLE_RATE
    return [
        (max(0.0, float(start) - MARGIN_S), min(duration_s, float(end) + MARGIN_S))
        for start, end in zip(starts, ends, strict=True)
    ]


def within(segments: Iterator[Segment], samples: Samples) -> Iterator[Segment]:
    """The segments with times from 0 to the end of the recording, in order and without overlaps; their words likewise
    within their segment. A segment that is wholly in digital silence is left out."""
    duration_s, previous_end = len(samples) / SAMPLE_RATE, 0.0
    for segment in segments:
        if is_silent(samples, segment.start - MARGIN_S, segment.end + MARGIN_S):
            continue
        start, end = _ordered(segment.start, segment.end, previous_end, duration_s)
        previous_end = end
        words, word_end = [], start
        for word in segment.words:
            word_start, word_end = _ordered(word.start, word.end, word_end, end)
            words.append(Word(word.text, word_start, word_end, word.probability))
        yield replace(segment, start=start, end=end, words=tuple(words))


def _ordered(start: float, end: float, earliest: float, latest: float) -> tuple[float, float]:
    """Both times within the bounds, and the end not before the start."""
    start = min(max(start, earliest), latest)
    return start, min(max(end, start), latest)
