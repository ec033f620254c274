"""No untrusted file takes the worker down: the decoder's process survives it or is replaced."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL.Image import Image

from deployments.media.audio_decoder import AudioDecoder
from deployments.media.audio_files import SAMPLE_RATE
from deployments.media.image_decoder import ImageDecoder
from rbee_serve.errors import InvalidRequest
from tests.audio.sounds import CODECS
from tests.audio.sounds import encoded as encoded_sound
from tests.media.image_kinds import KINDS, encoded_image

MAX_S = 60.0
MAX_PIXELS = 1_000_000
FLIPPED_FILES = 500
CHECKSUMMED = ("vorbis", "opus")
"""Formats in which a checksum reveals every flipped bit."""


def is_within_audio_limits(samples: Any) -> bool:
    return 0 < len(samples) <= MAX_S * SAMPLE_RATE and bool(np.isfinite(samples).all())


def is_within_image_limits(image: Image) -> bool:
    return image.mode == "RGB" and 0 < image.width * image.height <= MAX_PIXELS


class Kind(NamedTuple):
    """A type of file: how its decoder and its files are made, and which results are valid."""

    field: str
    decoder: Callable[[], AudioDecoder | ImageDecoder]
    file: Callable[[str], bytes]
    is_within_limits: Callable[[Any], bool]
    header_bytes: int


AUDIO = Kind(
    "audio", lambda: AudioDecoder(MAX_S), lambda name: encoded_sound(name, seconds=0.5), is_within_audio_limits, 200
)
IMAGE = Kind("image", lambda: ImageDecoder(MAX_PIXELS), encoded_image, is_within_image_limits, 100)
FILES = [(AUDIO, name) for name in CODECS] + [(IMAGE, name) for name in KINDS]


@pytest.fixture(scope="module")
def decoders() -> Iterator[dict[str, Any]]:
    decoders = {kind.field: kind.decoder() for kind in (AUDIO, IMAGE)}
    yield decoders
    for decoder in decoders.values():
        decoder.close()


def pid_of(decoder: Any) -> int:
    pids = [decoder.pid] if isinstance(decoder, AudioDecoder) else decoder.pids
    assert len(pids) == 1
    assert pids[0] is not None
    return int(pids[0])


@pytest.mark.parametrize(("kind", "name"), FILES, ids=[f"{kind.field}-{name}" for kind, name in FILES])
def test_no_flipped_bit_ends_the_decoder(kind: Kind, name: str, decoders: dict[str, Any]) -> None:
    decoder, whole, rng = decoders[kind.field], kind.file(name), random.Random(name)
    decoder.decode(whole)
    pid, outcomes = pid_of(decoder), {"decoded": 0, "refused": 0}
    fields: set[str] = set()
    for _ in range(FLIPPED_FILES):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 3, 20))):
            # Half of them in the headers, where they have the largest effect.
            end = rng.choice((min(kind.header_bytes, len(data)), len(data)))
            data[rng.randrange(end)] ^= 1 << rng.randrange(8)
        try:
            result = decoder.decode(bytes(data))
        except InvalidRequest as exc:
            outcomes["refused"] += 1
            fields.update(violation.field for violation in exc.violations)
        else:
            outcomes["decoded"] += 1
            assert kind.is_within_limits(result)
    assert (pid_of(decoder), fields) == (pid, {kind.field})
    assert sum(outcomes.values()) == FLIPPED_FILES
    assert outcomes["refused"] > 0
    assert outcomes["decoded"] > 0 or name in CHECKSUMMED
    assert kind.is_within_limits(decoder.decode(whole))


@pytest.mark.parametrize(("kind", "name"), [(AUDIO, "wav"), (IMAGE, "png")], ids=["audio", "image"])
def test_a_decoder_that_a_file_kills_is_replaced(kind: Kind, name: str, decoders: dict[str, Any]) -> None:
    decoder, file = decoders[kind.field], kind.file(name)
    decoder.decode(file)
    first = pid_of(decoder)
    os.kill(first, signal.SIGSTOP)  # so that the fault comes after the request and before the response
    fault = threading.Timer(0.2, os.kill, (first, signal.SIGKILL))
    fault.start()
    with pytest.raises(InvalidRequest, match="upload: makes the decoder fail"):
        decoder.decode(file, "upload")
    fault.join()
    assert kind.is_within_limits(decoder.decode(file))
    assert pid_of(decoder) != first


def test_a_decoder_that_does_not_return_is_ended() -> None:
    program = """
import io, time
from deployments.media.decoder_process import _REQUEST, serve
serve(lambda data: time.sleep(60), 1, io.BytesIO(_REQUEST.pack(4) + b"file"), io.BytesIO())
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGALRM
