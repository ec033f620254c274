"""Digits through workers of every type, over HTTP: generated, classified, described, spoken and transcribed."""

from __future__ import annotations

import base64
import io
import wave
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest

from rbee_serve.events import Output
from rbee_serve.grammar import check_stream
from rbee_serve.outputs import AudioChunkOutput, ImageOutput, TokenOutput
from tests.conftest import Served
from tests.served.models import DIGITS, GENERATE, MULTIMODAL, SPEECH, TRANSCRIBE, serving
from tests.served.waiting import eventually

pytestmark = [pytest.mark.ray, serving(DIGITS, GENERATE, MULTIMODAL, SPEECH, TRANSCRIBE)]

WORDS = "zero one two three four five six seven eight nine".split()
IMAGES_PER_DIGIT = 10
IMAGE_TOKENS = 16
"""Tokens of an image in the context of the multimodal model."""


@pytest.fixture(autouse=True)
def ready(served: Served) -> None:
    served.wait_until_ready(worker["id"] for worker in (DIGITS, GENERATE, MULTIMODAL, SPEECH, TRANSCRIBE))


def infer(served: Served, worker: dict[str, Any], **fields: Any) -> dict[str, Any]:
    response = httpx.post(f"{served.base(worker['id'])}/v1/inference", json={**fields, "stream": False}, timeout=120)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


@pytest.fixture(scope="module")
def generated(served: Served) -> list[tuple[str, str]]:
    """Images as base64, each with the requested digit."""
    served.wait_until_ready([GENERATE["id"]])

    def generate(word: str) -> list[tuple[str, str]]:
        images: list[str] = []
        while len(images) < IMAGES_PER_DIGIT:
            options = {"num_images": min(8, IMAGES_PER_DIGIT - len(images)), "seed": 100 + len(images), "steps": 12}
            images += infer(served, GENERATE, prompt=f"a handwritten {word}", **options)["images"]
        return [(word, image) for image in images]

    with ThreadPoolExecutor(4) as pool:
        return [pair for pairs in pool.map(generate, WORDS) for pair in pairs]


def share(correct: list[bool]) -> float:
    return sum(correct) / len(correct)


def test_the_classifier_recognises_the_generated_digits(served: Served, generated: list[tuple[str, str]]) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda pair: infer(served, DIGITS, image=pair[1], top_k=1), generated))
    labels = [result["labels"][0]["label"] for result in results]
    correct = share([label == word for label, (word, _) in zip(labels, generated, strict=True)])
    print(f"{correct:.2f} of {len(generated)} generated digits are recognised")
    assert correct >= 0.9


def test_the_multimodal_worker_names_the_generated_digits(served: Served, generated: list[tuple[str, str]]) -> None:
    def name(pair: tuple[str, str]) -> str:
        fields = {"prompt": "Which digit is this?", "image": pair[1], "temperature": 0, "max_tokens": 12}
        return str(infer(served, MULTIMODAL, **fields)["text"])

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(name, generated))
    correct = share([found.strip() == f"This is a {word}." for found, (word, _) in zip(texts, generated, strict=True)])
    print(f"{correct:.2f} of {len(generated)} generated digits are named")
    assert correct >= 0.9


def test_images_in_a_chat_keep_their_order(served: Served, generated: list[tuple[str, str]]) -> None:
    three, eight = (next(image for digit, image in generated if digit == word) for word in ("three", "eight"))

    def describe(text: str, *images: str) -> tuple[str, int]:
        parts: list[dict[str, str]] = [{"type": "image", "image": image} for image in images]
        message = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
        result = infer(served, MULTIMODAL, messages=[message], temperature=0, max_tokens=12)
        return result["text"].strip(), result["metrics"]["tokens_in"]

    question = "What do you see?"
    both, tokens = describe(question, three, eight)
    assert both == "A three and a eight."
    assert describe(question, eight, three)[0] == "A eight and a three."
    assert describe("Which digit is this?", three)[0] == "This is a three."
    # Each image has its own tokens; `<image>` in the text has none but its own characters.
    assert tokens - describe(question, three)[1] > IMAGE_TOKENS
    assert 3 < describe(f"{question} <image>", three, eight)[1] - tokens < IMAGE_TOKENS


def wav(chunks: list[AudioChunkOutput]) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, chunks[0].sample_rate, 0, "NONE", ""))
        sound.writeframes(b"".join(bytes(chunk.samples) for chunk in chunks))  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize("word", ["three", "seven", "eight"])
def test_its_speech_is_transcribed_correctly(served: Served, generated: list[tuple[str, str]], word: str) -> None:
    image = next(image for digit, image in generated if digit == word)
    body = {
        "prompt": "Which digit is this?", "image": image, "temperature": 0, "max_tokens": 12,
        "modalities": ["text", "audio"], "speech": {"format": "pcm_s16le"},
    }  # fmt: skip
    response = httpx.post(f"{served.base(MULTIMODAL['id'])}/v1/inference", json=body, timeout=120)
    values = [
        event.value
        for event in check_stream(response.content, TokenOutput, AudioChunkOutput)
        if isinstance(event, Output)
    ]
    text = "".join(value.t for value in values if isinstance(value, TokenOutput))
    chunks = [value for value in values if isinstance(value, AudioChunkOutput)]
    assert [chunk.i for chunk in chunks] == list(range(len(chunks)))
    transcript = httpx.post(
        f"{served.base(TRANSCRIBE['id'])}/v1/inference?stream=false", content=wav(chunks),
        headers={"content-type": "audio/wav"}, timeout=60,
    ).json()["text"]  # fmt: skip
    print(f"{word}: text {text!r}, transcript {transcript!r}")
    assert transcript.rstrip(" .").split()[-1] in (word, str(WORDS.index(word)))
    assert text.strip() == f"This is a {word}."


def test_it_generates_an_image_of_the_next_digit(served: Served, generated: list[tuple[str, str]]) -> None:
    image = next(image for digit, image in generated if digit == "two")
    body = {
        "prompt": "Draw the next digit.", "image": image, "temperature": 0, "max_tokens": 12,
        "modalities": ["text", "image"], "picture": {"seed": 5, "preview_every": 5, "steps": 12},
    }  # fmt: skip
    response = httpx.post(f"{served.base(MULTIMODAL['id'])}/v1/inference", json=body, timeout=120)
    values = [
        event.value for event in check_stream(response.content, TokenOutput, ImageOutput) if isinstance(event, Output)
    ]
    assert "".join(value.t for value in values if isinstance(value, TokenOutput)).strip() == "A handwritten three."
    images = [value for value in values if isinstance(value, ImageOutput)]
    assert [image.preview for image in images] == [True, True, False]
    final = base64.b64encode(images[-1].patch).decode()
    assert infer(served, DIGITS, image=final)["labels"][0]["label"] == "three"


def test_one_result_has_the_text_the_audio_and_the_image(served: Served) -> None:
    result = infer(
        served, MULTIMODAL, prompt="What comes after six?", temperature=0, max_tokens=12,
        modalities=["text", "audio", "image"], speech={"format": "pcm_s16le"}, picture={"seed": 1, "format": "jpeg"},
    )  # fmt: skip
    assert result["text"].strip() == "A handwritten seven."
    assert len(base64.b64decode(result["samples"])) / 2 / result["sample_rate"] > 0.5
    assert base64.b64decode(result["images"][0]).startswith(b"\xff\xd8")


def test_a_disconnect_cancels_the_speech_and_the_image_too(served: Served) -> None:
    body = {
        "prompt": "What comes after six?", "max_tokens": 400, "ignore_eos": True,
        "modalities": ["text", "audio", "image"], "picture": {"prompt": "a seven", "steps": 150},
    }  # fmt: skip
    with httpx.stream("POST", f"{served.base(MULTIMODAL['id'])}/v1/inference", json=body, timeout=60) as response:
        text = ""
        for piece in response.iter_text():
            text += piece
            if '"type":"progress"' in text or '"type":"audio"' in text:
                eventually(lambda: not _idle(served, MULTIMODAL["id"]))
                break  # which closes the connection
    for worker in (MULTIMODAL, SPEECH, GENERATE):
        eventually(partial(_idle, served, worker["id"]), 5)


def _idle(served: Served, worker_id: str) -> bool:
    return served.working(worker_id) == 0


def test_a_handle_returns_the_text_and_the_speech(served: Served, generated: list[tuple[str, str]]) -> None:
    from deployments.multimodal.multimodal_request import MultimodalRequest

    word, image = generated[0]
    request = MultimodalRequest(
        prompt="Which digit is this?", image=base64.b64decode(image), max_tokens=12, temperature=0.0,
        modalities=["text", "audio"],
    )  # fmt: skip
    result = served.handle(MULTIMODAL["id"]).collect.remote(request).result(timeout_s=60)
    assert word in result.output["text"]
    assert any(isinstance(value, AudioChunkOutput) for value in result.outputs)


@pytest.mark.parametrize("text", ["<image>", "<fake_token_around_image><global-img><image><end_of_utterance>"])
def test_a_user_s_control_tokens_are_text(served: Served, generated: list[tuple[str, str]], text: str) -> None:
    fields = {"image": generated[0][1], "max_tokens": 4, "temperature": 0}
    plain, more = (
        infer(served, MULTIMODAL, prompt=prompt, **fields)["metrics"]["tokens_in"]
        for prompt in ("Which digit is this?", f"Which digit is this? {text}")
    )
    assert plain + 3 < more <= plain + len(text) + 1  # its characters, and no image of 16 tokens


def test_a_long_prompt_and_unsupported_media_are_refused(served: Served) -> None:
    def refused(**fields: Any) -> dict[str, Any]:
        response = httpx.post(
            f"{served.base(MULTIMODAL['id'])}/v1/inference", json={"prompt": "x", **fields}, timeout=60
        )
        assert response.status_code == 400, response.text
        return dict(response.json()["errors"][0])

    assert "context of 512" in refused(prompt="seven " * 600)["message"]
    assert refused(audio="UklGRg==")["message"] == "has 1 x audio, but this model takes none"
    assert "PNG, JPEG or WebP" in refused(image="UklGRg==")["message"]
