"""Recordings over HTTP."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.audio import TranscribeRequest
from rbee_serve.events import End, Output
from rbee_serve.grammar import check_stream
from rbee_serve.outputs import RecordingOutput, SegmentOutput
from tests.audio.sounds import encoded, wav
from tests.audio.speech import WORDS, speech_file, words_of
from tests.conftest import MAX_BODY_BYTES, Served
from tests.served.models import TRANSCRIBE, serving
from tests.served.waiting import eventually

pytestmark = [pytest.mark.ray, serving(TRANSCRIBE)]


WORKER = TRANSCRIBE["id"]
WAV = {"content-type": "audio/wav"}
QUIET = wav(bytes(32_000))


def boots_of(served: Served) -> list[str]:
    """The boot ids of the worker's replicas. A new process has a new one."""
    return [replica.boot_id for replica in served.replicas(WORKER)]


@pytest.fixture(scope="module")
def url(served: Served) -> str:
    base = served.base(WORKER)
    eventually(lambda: httpx.get(f"{base}/v1/ready").json()["ready"], 240)
    return f"{base}/v1/inference"


def post(url: str, **options: Any) -> httpx.Response:
    return httpx.post(url, timeout=120, **options)


def test_json_a_form_and_a_raw_body_give_the_same_text(url: str) -> None:
    file = speech_file()
    responses = [
        post(url, json={"audio": base64.b64encode(file).decode(), "stream": False, "temperature": 0}),
        post(url, files={"audio": ("speech.wav", file)}, data={"stream": "false", "temperature": "0"}),
        post(url, content=file, headers={"content-type": "audio/wav"}, params={"stream": "false", "temperature": "0"}),
    ]
    results = [response.json() for response in responses]
    assert [words_of(result["text"]) for result in results] == [WORDS] * 3
    assert results[0]["segments"] == results[1]["segments"] == results[2]["segments"]
    assert (results[0]["language"], results[0]["stop_reason"]) == ("en", "COMPLETE")
    assert results[0]["metrics"]["audio_seconds"] == results[0]["duration"]


def test_segments_are_streamed(url: str) -> None:
    body = {"audio": base64.b64encode(speech_file()).decode(), "timestamps": "word"}
    events = check_stream(post(url, json=body).content, SegmentOutput, RecordingOutput)
    segments = [e.value for e in events if isinstance(e, Output) and isinstance(e.value, SegmentOutput)]
    assert words_of("".join(segment.t for segment in segments)) == WORDS
    assert [words_of(word.t)[0] for segment in segments for word in segment.words] == WORDS
    assert isinstance(events[-1], End)


@pytest.mark.parametrize(
    ("audio", "fields", "field"),
    [
        (b"\x00\x01", {}, "audio"),
        (wav(b""), {}, "audio"),
        (wav(bytes(32_000))[:-9000], {}, "audio"),
        (encoded("opus")[:-200], {}, "audio"),
        (wav(np.full(16_000, np.nan, np.float32).tobytes(), bits=32, form=3), {}, "audio"),
        (wav(bytes(32_000), rate=999), {}, "audio"),
        (wav(bytes(32_000), channels=9), {}, "audio"),
        (wav(bytes(32_000), size=2**28), {}, "audio"),
        (encoded("opus", np.zeros(48_000 * 150, np.float32)), {}, "audio"),
        (wav(bytes(32_000)), {"language": "de"}, "language"),
        (wav(bytes(32_000)), {"translate": True}, "translate"),
        (wav(bytes(32_000)), {"prompt": "<|endoftext|>"}, "prompt"),
        (wav(bytes(32_000)), {"temperature": 1.5}, "temperature"),
    ],
    ids=[
        "no audio", "empty", "cut WAV", "cut OGG", "NaN", "rate", "channels", "claims 256 MB",
        "a long recording in little data", "language", "translate", "control token", "bound",
    ],
)  # fmt: skip
def test_a_bad_file_or_field_is_refused_by_name_without_its_content(
    url: str, served: Served, audio: bytes, fields: Any, field: str
) -> None:
    boots = boots_of(served)
    response = post(url, json={"audio": base64.b64encode(audio).decode(), **fields})
    assert response.status_code == 400
    (error,) = response.json()["errors"]
    assert error["field"] == field
    assert "value" not in error or field == "temperature"
    assert len(json.dumps(error)) < 400
    eventually(lambda: served.working(WORKER) == 0, 2)
    assert post(url, json={"audio": base64.b64encode(QUIET).decode(), "stream": False}).status_code == 200
    assert boots_of(served) == boots


def test_a_file_over_the_limit_is_refused_in_a_form_and_as_a_body(url: str) -> None:
    large = wav(bytes(MAX_BODY_BYTES))
    for options in ({"files": {"audio": ("large.wav", large)}}, {"content": large, "headers": WAV}):
        response = post(url, **options)
        assert (response.status_code, response.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")


def test_a_handle_returns_typed_segments(url: str, served: Served) -> None:
    request = TranscribeRequest(audio=speech_file(), temperature=0)
    handle = served.handle(WORKER)
    values = [e.value for e in handle.options(stream=True).stream_events.remote(request) if isinstance(e, Output)]
    assert [type(value) for value in values] == [RecordingOutput] + [SegmentOutput] * (len(values) - 1)
    assert words_of("".join(value.t for value in values[1:])) == WORDS
    result = handle.collect.remote(request).result(timeout_s=60)
    assert words_of(result.output["text"]) == WORDS
    assert list(result.outputs) == values
