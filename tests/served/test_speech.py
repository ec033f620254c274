"""Speech over HTTP: as a stream of chunks, and as a file."""

from __future__ import annotations

import io

import httpx
import numpy as np
import pytest
import soundfile

from deployments.audio.generate import SpeechRequest
from rbee_serve.client.client import Client
from rbee_serve.events import Metrics, Narration, Output, Progress
from rbee_serve.grammar import check_stream
from rbee_serve.outputs import AudioChunkOutput
from tests.conftest import Served
from tests.served.models import SPEECH, serving
from tests.served.waiting import eventually

pytestmark = [pytest.mark.ray, serving(SPEECH)]
RATE = 24000
TEXT = "The quick brown fox jumps over the lazy dog. She sells sea shells by the shore!"


@pytest.fixture
def base(served: Served) -> str:
    url = served.base(SPEECH["id"])
    eventually(lambda: httpx.get(f"{url}/v1/ready").json()["ready"], 120)
    return f"{url}/v1/inference"


def file_of(base: str, form: str, prompt: str = TEXT) -> tuple[str, np.ndarray[tuple[int], np.dtype[np.float32]], int]:
    response = httpx.post(base, json={"prompt": prompt, "format": form, "stream": False, "seed": 7}, timeout=60)
    assert response.status_code == 200, response.text
    samples, rate = soundfile.read(io.BytesIO(response.content), dtype="float32")
    return response.headers["content-type"], samples, rate


def test_the_chunks_of_a_stream_are_the_samples_of_the_file(base: str) -> None:
    response = httpx.post(base, json={"prompt": TEXT, "seed": 7}, timeout=60)
    events = check_stream(response.content, AudioChunkOutput)
    chunks = [event.value for event in events if isinstance(event, Output)]
    assert [chunk.i for chunk in chunks] == list(range(len(chunks)))
    assert {chunk.sample_rate for chunk in chunks} == {RATE}
    assert {type(event) for event in events} >= {Progress, Metrics, Narration}
    streamed = np.concatenate([chunk.samples for chunk in chunks])
    kind, whole, rate = file_of(base, "wav")
    assert (kind, rate) == ("audio/wav", RATE)
    assert np.abs(streamed - whole).max() < 1e-4


@pytest.mark.parametrize(("form", "kind"), [("flac", "audio/flac"), ("ogg", "audio/ogg"), ("mp3", "audio/mpeg")])
def test_a_file_has_its_content_type_and_the_speech(base: str, form: str, kind: str) -> None:
    media_type, samples, rate = file_of(base, form)
    assert (media_type, rate) == (kind, RATE)
    assert 3 < len(samples) / RATE < 8


def test_a_file_of_minutes_is_complete(base: str) -> None:
    _, samples, _ = file_of(base, "wav", "Here is a sentence that takes some seconds to say, one way or another. " * 80)
    assert len(samples) / RATE > 240


def test_without_stream_the_default_is_a_wav_and_f32_is_one_object(base: str) -> None:
    assert httpx.post(base, json={"prompt": "Hi.", "stream": False}).headers["content-type"] == "audio/wav"
    result = httpx.post(base, json={"prompt": "Hi.", "stream": False, "format": "f32"}).json()
    assert (result["sample_rate"], result["stop_reason"]) == (RATE, "COMPLETE")
    assert len(result["samples"]) == round(result["metrics"]["audio_seconds"] * RATE)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"voice": "nobody"}, "voice"),
        ({"format": "wav"}, "format"),
        ({"prompt": "…"}, "prompt"),
        ({"speed": 9}, "speed"),
    ],
)
def test_an_invalid_field_is_refused_by_name(base: str, fields: dict[str, object], field: str) -> None:
    response = httpx.post(base, json={"prompt": "Hi.", **fields})
    assert (response.status_code, response.json()["errors"][0]["field"]) == (400, field)


def test_the_client_returns_a_file_with_its_media_type(base: str, served: Served) -> None:
    with Client(served.url) as client:
        file = client.infer_file(SPEECH["id"], prompt="Hello.", format="mp3")
    assert file.media_type == "audio/mpeg"
    assert len(soundfile.read(io.BytesIO(file.data))[0]) > RATE / 2


def test_a_handle_returns_typed_chunks(base: str, served: Served) -> None:
    stream = served.handle(SPEECH["id"]).options(stream=True).stream_events.remote(SpeechRequest(prompt="Hello."))
    chunks = [event.value for event in stream if isinstance(event, Output)]
    assert all(isinstance(chunk, AudioChunkOutput) for chunk in chunks)
    assert sum(len(chunk.samples) // 4 for chunk in chunks) > RATE / 2
