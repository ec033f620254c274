"""A short recording of speech, synthesized once per run."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from deployments.media.audio_files import SAMPLE_RATE
from tests.audio.sounds import wav

TEXT = "The weather is nice today. We will walk along the river and eat an apple."
WORDS = TEXT.lower().replace(".", "").split()


@lru_cache(maxsize=1)
def speech() -> Any:
    """`TEXT` as speech: float32, 16 kHz, about four seconds."""
    import soxr
    from hibari import Hibari

    return soxr.resample(Hibari()(TEXT, seed=0), 24_000, SAMPLE_RATE).astype(np.float32)


def speech_file() -> bytes:
    """`TEXT`, as a WAV."""
    return as_wav(speech())


def long_speech(seconds: float) -> bytes:
    """`TEXT` repeated with pauses, as a WAV."""
    once = np.concatenate([speech(), np.zeros(SAMPLE_RATE // 2, np.float32)])
    return as_wav(np.resize(once, int(seconds * SAMPLE_RATE)))


def as_wav(samples: Any) -> bytes:
    """A WAV of 16-bit integers, 16 kHz."""
    return wav((samples * 32767).astype("<i2").tobytes())


def words_of(text: str) -> list[str]:
    """The words of a text in lower case without punctuation."""
    return "".join(letter for letter in text.lower() if letter.isalpha() or letter == " ").split()
