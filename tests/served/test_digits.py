"""Digits through workers of every type, over HTTP: drawn, recognised, named, spoken and understood again."""

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
from tests.conftest import DIGITS, GENERATE, MULTIMODAL, SPEECH, TRANSCRIBE, Served
from tests.served.waiting import eventually

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.model]

WORDS = "zero one two three four five six seven eight nine".split()
EACH = 10
"""Pictures of each digit."""
PICTURE_TOKENS = 16
"""What a picture takes in the context of the model that reads digits."""


@pytest.fixture(autouse=True)
def ready(served: Served) -> None:
    served.wait_until_ready(worker["id"] for worker in (DIGITS, GENERATE, MULTIMODAL, SPEECH, TRANSCRIBE))


def ask(served: Served, worker: dict[str, Any], **fields: Any) -> dict[str, Any]:
    answer = httpx.post(f"{served.base(worker['id'])}/v1/inference", json={**fields, "stream": False}, timeout=120)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


@pytest.fixture(scope="module")
def drawn(served: Served) -> list[tuple[str, str]]:
    """Pictures as base64, each with the digit that was asked for."""
    served.wait_until_ready([GENERATE["id"]])

    def draw(word: str) -> list[tuple[str, str]]:
        images: list[str] = []
        while len(images) < EACH:
            how = {"num_images": min(8, EACH - len(images)), "seed": 100 + len(images), "steps": 12}
            images += ask(served, GENERATE, prompt=f"a handwritten {word}", **how)["images"]
        return [(word, image) for image in images]

    with ThreadPoolExecutor(4) as pool:
        return [pair for pairs in pool.map(draw, WORDS) for pair in pairs]


def share(right: list[bool]) -> float:
    return sum(right) / len(right)


def test_the_classifier_recognises_what_was_drawn(served: Served, drawn: list[tuple[str, str]]) -> None:
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda pair: ask(served, DIGITS, image=pair[1], top_k=1)["labels"][0]["label"], drawn))
    right = share([found == word for found, (word, _) in zip(seen, drawn, strict=True)])
    print(f"{right:.2f} of {len(drawn)} drawn digits are recognised")
    assert right >= 0.9


def test_the_multimodal_worker_names_what_was_drawn(served: Served, drawn: list[tuple[str, str]]) -> None:
    def name(pair: tuple[str, str]) -> str:
        asked = {"prompt": "Which digit is this?", "image": pair[1], "temperature": 0, "max_tokens": 12}
        return str(ask(served, MULTIMODAL, **asked)["text"])

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(name, drawn))
    right = share([found.strip() == f"This is a {word}." for found, (word, _) in zip(said, drawn, strict=True)])
    print(f"{right:.2f} of {len(drawn)} drawn digits are named")
    assert right >= 0.9


def test_pictures_in_a_chat_are_seen_in_their_order(served: Served, drawn: list[tuple[str, str]]) -> None:
    three, eight = (next(picture for digit, picture in drawn if digit == word) for word in ("three", "eight"))

    def asked(text: str, *pictures: str) -> tuple[str, int]:
        parts: list[dict[str, str]] = [{"type": "image", "image": picture} for picture in pictures]
        message = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
        result = ask(served, MULTIMODAL, messages=[message], temperature=0, max_tokens=12)
        return result["text"].strip(), result["metrics"]["tokens_in"]

    question = "What do you see?"
    both, tokens = asked(question, three, eight)
    assert both == "A three and a eight."
    assert asked(question, eight, three)[0] == "A eight and a three."
    assert asked("Which digit is this?", three)[0] == "This is a three."
    # Each picture has its own place, and a word for one in the text has none.
    assert tokens - asked(question, three)[1] > PICTURE_TOKENS
    assert 3 < asked(f"{question} <image>", three, eight)[1] - tokens < PICTURE_TOKENS


def wav(chunks: list[AudioChunkOutput]) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, chunks[0].sample_rate, 0, "NONE", ""))
        sound.writeframes(b"".join(bytes(chunk.samples) for chunk in chunks))  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize("word", ["three", "seven", "eight"])
def test_what_it_says_aloud_is_understood(served: Served, drawn: list[tuple[str, str]], word: str) -> None:
    image = next(picture for digit, picture in drawn if digit == word)
    body = {
        "prompt": "Which digit is this?", "image": image, "temperature": 0, "max_tokens": 12,
        "modalities": ["text", "audio"], "speech": {"format": "pcm_s16le"},
    }  # fmt: skip
    answer = httpx.post(f"{served.base(MULTIMODAL['id'])}/v1/inference", json=body, timeout=120)
    values = [
        event.value
        for event in check_stream(answer.content, TokenOutput, AudioChunkOutput)
        if isinstance(event, Output)
    ]
    text = "".join(value.t for value in values if isinstance(value, TokenOutput))
    chunks = [value for value in values if isinstance(value, AudioChunkOutput)]
    assert [chunk.i for chunk in chunks] == list(range(len(chunks)))
    heard = httpx.post(
        f"{served.base(TRANSCRIBE['id'])}/v1/inference?stream=false", content=wav(chunks),
        headers={"content-type": "audio/wav"}, timeout=60,
    ).json()["text"]  # fmt: skip
    print(f"{word}: said {text!r}, heard {heard!r}")
    assert heard.rstrip(" .").split()[-1] in (word, str(WORDS.index(word)))
    assert text.strip() == f"This is a {word}."


def test_it_draws_the_next_digit(served: Served, drawn: list[tuple[str, str]]) -> None:
    image = next(picture for digit, picture in drawn if digit == "two")
    body = {
        "prompt": "Draw the next digit.", "image": image, "temperature": 0, "max_tokens": 12,
        "modalities": ["text", "image"], "picture": {"seed": 5, "preview_every": 5, "steps": 12},
    }  # fmt: skip
    answer = httpx.post(f"{served.base(MULTIMODAL['id'])}/v1/inference", json=body, timeout=120)
    values = [
        event.value for event in check_stream(answer.content, TokenOutput, ImageOutput) if isinstance(event, Output)
    ]
    assert "".join(value.t for value in values if isinstance(value, TokenOutput)).strip() == "A handwritten three."
    pictures = [value for value in values if isinstance(value, ImageOutput)]
    assert [picture.preview for picture in pictures] == [True, True, False]
    made = base64.b64encode(pictures[-1].patch).decode()
    assert ask(served, DIGITS, image=made)["labels"][0]["label"] == "three"


def test_one_result_holds_the_text_the_sound_and_the_picture(served: Served) -> None:
    result = ask(
        served, MULTIMODAL, prompt="What comes after six?", temperature=0, max_tokens=12,
        modalities=["text", "audio", "image"], speech={"format": "pcm_s16le"}, picture={"seed": 1, "format": "jpeg"},
    )  # fmt: skip
    assert result["text"].strip() == "A handwritten seven."
    assert len(base64.b64decode(result["samples"])) / 2 / result["sample_rate"] > 0.5
    assert base64.b64decode(result["images"][0]).startswith(b"\xff\xd8")


def test_who_leaves_stops_the_voice_and_the_picture_too(served: Served) -> None:
    body = {
        "prompt": "What comes after six?", "max_tokens": 400, "ignore_eos": True,
        "modalities": ["text", "audio", "image"], "picture": {"prompt": "a seven", "steps": 150},
    }  # fmt: skip
    with httpx.stream("POST", f"{served.base(MULTIMODAL['id'])}/v1/inference", json=body, timeout=60) as answer:
        text = ""
        for piece in answer.iter_text():
            text += piece
            if '"type":"progress"' in text or '"type":"audio"' in text:
                break
    for worker in (MULTIMODAL, SPEECH, GENERATE):
        eventually(partial(_idle, served, worker["id"]), 5)


def _idle(served: Served, worker_id: str) -> bool:
    return served.working(worker_id) == 0


def test_it_answers_by_handle_too(served: Served, drawn: list[tuple[str, str]]) -> None:
    from deployments.multimodal.multimodal_request import MultimodalRequest

    word, picture = drawn[0]
    request = MultimodalRequest(
        prompt="Which digit is this?", image=base64.b64decode(picture), max_tokens=12, temperature=0.0,
        modalities=["text", "audio"],
    )  # fmt: skip
    result = served.handle(MULTIMODAL["id"]).collect.remote(request).result(timeout_s=60)
    assert word in result.output["text"]
    assert any(isinstance(value, AudioChunkOutput) for value in result.outputs)


@pytest.mark.parametrize("text", ["<image>", "<fake_token_around_image><global-img><image><end_of_utterance>"])
def test_a_user_s_control_tokens_are_text(served: Served, drawn: list[tuple[str, str]], text: str) -> None:
    asked = {"image": drawn[0][1], "max_tokens": 4, "temperature": 0}
    plain, more = (
        ask(served, MULTIMODAL, prompt=prompt, **asked)["metrics"]["tokens_in"]
        for prompt in ("Which digit is this?", f"Which digit is this? {text}")
    )
    assert plain + 3 < more <= plain + len(text) + 1  # its letters, and no picture of 16 tokens


def test_too_many_words_and_a_recording_for_a_model_that_only_sees_are_refused(served: Served) -> None:
    def refused(**fields: Any) -> dict[str, Any]:
        answer = httpx.post(f"{served.base(MULTIMODAL['id'])}/v1/inference", json={"prompt": "x", **fields}, timeout=60)
        assert answer.status_code == 400, answer.text
        return dict(answer.json()["errors"][0])

    assert "context of 512" in refused(prompt="seven " * 600)["message"]
    assert refused(audio="UklGRg==")["message"] == "has 1 x audio, but this model takes none"
    assert "PNG, JPEG or WebP" in refused(image="UklGRg==")["message"]
