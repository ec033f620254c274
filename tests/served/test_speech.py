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
from tests.conftest import SPEECH, Served
from tests.served.waiting import eventually

pytestmark = [pytest.mark.ray, pytest.mark.model]
RATE = 24000
TEXT = "The quick brown fox jumps over the lazy dog. She sells sea shells by the shore!"


@pytest.fixture
def base(served: Served) -> str:
    url = served.base(SPEECH["id"])
    eventually(lambda: httpx.get(f"{url}/v1/ready").json()["ready"], 120)
    return f"{url}/v1/inference"


def file_of(base: str, form: str, prompt: str = TEXT) -> tuple[str, np.ndarray[tuple[int], np.dtype[np.float32]], int]:
    answer = httpx.post(base, json={"prompt": prompt, "format": form, "stream": False, "seed": 7}, timeout=60)
    assert answer.status_code == 200, answer.text
    samples, rate = soundfile.read(io.BytesIO(answer.content), dtype="float32")
    return answer.headers["content-type"], samples, rate


def test_a_stream_is_one_sound_in_numbers(base: str) -> None:
    answer = httpx.post(base, json={"prompt": TEXT, "seed": 7}, timeout=60)
    events = check_stream(answer.content, AudioChunkOutput)
    chunks = [event.value for event in events if isinstance(event, Output)]
    assert [chunk.i for chunk in chunks] == list(range(len(chunks)))
    assert {chunk.sample_rate for chunk in chunks} == {RATE}
    assert {type(event) for event in events} >= {Progress, Metrics, Narration}
    sound = np.concatenate([chunk.samples for chunk in chunks])
    kind, whole, rate = file_of(base, "wav")
    assert (kind, rate) == ("audio/wav", RATE)
    assert np.abs(sound - whole).max() < 1e-4


@pytest.mark.parametrize(("form", "kind"), [("flac", "audio/flac"), ("ogg", "audio/ogg"), ("mp3", "audio/mpeg")])
def test_a_file_has_its_content_type_and_the_sound(base: str, form: str, kind: str) -> None:
    told, samples, rate = file_of(base, form)
    assert (told, rate) == (kind, RATE)
    assert 3 < len(samples) / RATE < 8


def test_a_file_of_minutes_comes_whole(base: str) -> None:
    _, samples, _ = file_of(base, "wav", "Here is a sentence that takes some seconds to say, one way or another. " * 80)
    assert len(samples) / RATE > 240


def test_no_stream_and_no_format_is_a_wav_and_numbers_are_one_object(base: str) -> None:
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
def test_what_is_wrong_is_a_status_and_names_the_field(base: str, fields: dict[str, object], field: str) -> None:
    answer = httpx.post(base, json={"prompt": "Hi.", **fields})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field)


def test_the_client_gets_a_file_by_its_type(base: str, served: Served) -> None:
    with Client(served.url) as client:
        document = client.infer_file(SPEECH["id"], prompt="Hello.", format="mp3")
    assert document.media_type == "audio/mpeg"
    assert len(soundfile.read(io.BytesIO(document.data))[0]) > RATE / 2


def test_a_handle_gives_typed_chunks(base: str, served: Served) -> None:
    stream = served.handle(SPEECH["id"]).options(stream=True).stream_events.remote(SpeechRequest(prompt="Hello."))
    chunks = [event.value for event in stream if isinstance(event, Output)]
    assert all(isinstance(chunk, AudioChunkOutput) for chunk in chunks)
    assert sum(len(chunk.samples) // 4 for chunk in chunks) > RATE / 2
