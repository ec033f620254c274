"""Requests of all kinds: good ones of each worker type, in all sizes, and bad ones."""

from __future__ import annotations

import array
import base64
import io
import json
import math
import random
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.soak.http import post
from benchmarks.texts import WORDS

JSON = "Content-Type: application/json"
DEADLINE_S = 60.0
"""Of an ordinary request."""
MAX_WORDS = 20_000
"""Of an echoed stream."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A request for one worker, and the responses that it allows."""

    worker: str
    kind: str
    request: bytes
    text: str | None = None
    """The joined tokens of a complete stream, where they are known."""
    statuses: frozenset[int] = frozenset({200})
    deadline_s: float = DEADLINE_S
    may_fail: bool = False
    """Whether an `error` event, or INTERNAL, was requested."""

    @property
    def is_good(self) -> bool:
        """Whether it is valid and asks for no failure."""
        return 200 in self.statuses and not self.may_fail


def text(rng: random.Random, words: int) -> str:
    """That many frequent words."""
    return " ".join(rng.choices(WORDS, k=words))


def png(rng: random.Random, side: int) -> bytes:
    """A grey image with a stroke."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (side, side))
    ends = [(rng.randrange(side), rng.randrange(side)) for _ in range(2)]
    ImageDraw.Draw(image).line([end for pair in ends for end in pair], fill=255, width=max(1, side // 10))
    buffer = io.BytesIO()
    image.save(buffer, rng.choice(["PNG", "JPEG", "WEBP"]))
    return buffer.getvalue()


def wav(rng: random.Random, seconds: float) -> bytes:
    """A tone."""
    rate, period = rng.choice([8000, 16_000, 44_100]), rng.randint(20, 100)
    wave_form = array.array("h", (int(8000 * math.sin(2 * math.pi * i / period)) for i in range(period)))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(wave_form.tobytes() * max(1, round(rate * seconds / period)))
    return buffer.getvalue()


def _echo(rng: random.Random) -> dict[str, Any]:
    words = rng.choice([1, 10, 100, 2000])
    fields: dict[str, Any] = {"prompt": text(rng, words), "repeat": rng.randint(1, max(1, min(20, MAX_WORDS // words)))}
    if rng.random() < 0.3:
        fields |= {"repeat": 1, "tokens_per_sec": max(20, words / 5), "progress": True}
    return fields


def _llm(rng: random.Random) -> dict[str, Any]:
    fields = {"max_tokens": rng.choice([1, 8, 32, 96]), "temperature": rng.choice([0, 0.7])}
    prompt = text(rng, rng.choice([1, 20, 200]))
    return fields | ({"messages": [{"role": "user", "content": prompt}]} if rng.random() < 0.5 else {"prompt": prompt})


def _embedding(rng: random.Random) -> dict[str, Any]:
    many, words = rng.choice([(1, 3), (1, 150), (8, 20), (40, 20)])
    return {"input": [text(rng, words) for _ in range(many)], "encoding": rng.choice(["float", "base64"])}


def _speech(rng: random.Random) -> dict[str, Any]:
    return {"prompt": text(rng, rng.choice([1, 6, 15])) + "."}


def _transcribe(rng: random.Random) -> dict[str, Any]:
    return {"audio": _base64(wav(rng, rng.choice([0.2, 1, 4])))}


def _classify(rng: random.Random) -> dict[str, Any]:
    return {"image": _base64(png(rng, rng.choice([1, 28, 300, 1000]))), "top_k": rng.choice([1, 5])}


def _draw(rng: random.Random) -> dict[str, Any]:
    return {"prompt": "a handwritten seven", "steps": rng.choice([2, 5, 20]), "num_images": rng.choice([1, 1, 2])}


def _multimodal(rng: random.Random) -> dict[str, Any]:
    fields = {"prompt": "Which digit is this?", "image": _base64(png(rng, 28)), "max_tokens": 8}
    return fields | {"modalities": rng.choice([["text"], ["text"], ["text", "audio"], ["text", "image"]])}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


FIELDS: Mapping[str, Callable[[random.Random], dict[str, Any]]] = {
    "echo": _echo,
    "llm": _llm,
    "embedding": _embedding,
    "audio/generate": _speech,
    "audio/transcribe": _transcribe,
    "vision/classify": _classify,
    "vision/generate": _draw,
    "multimodal": _multimodal,
}
"""Valid fields of each type of worker, by its name in the registry."""


def good(rng: random.Random, port: int, worker: str, kind: str) -> Sample:
    """A valid request of the worker, of the type `kind`."""
    fields = FIELDS[kind](rng)
    stream = rng.random() < 0.7
    known = kind == "echo" and stream
    deadline_s = rng.uniform(0.05, 1) if rng.random() < 0.05 else DEADLINE_S
    headers = [JSON, f"X-Request-Timeout-Ms: {round(1000 * deadline_s)}"]
    request = post(port, _path(worker), json.dumps({**fields, "stream": stream}).encode(), headers)
    joined = fields["prompt"] * fields["repeat"] if known and "repeat" in fields else None
    return Sample(worker, "stream" if stream else "document", request, joined, deadline_s=deadline_s)


def quick(port: int, worker: str, kind: str) -> Sample:
    """A small request, to see whether the worker serves."""
    rng = random.Random(0)
    fields = FIELDS[kind](rng)
    small = {"max_tokens": 2} if kind in ("llm", "multimodal") else {"steps": 2} if kind == "vision/generate" else {}
    body = json.dumps({**fields, **small, "stream": True}).encode()
    return Sample(worker, "probe", post(port, _path(worker), body, [JSON]), deadline_s=20)


def failing(rng: random.Random, port: int, worker: str) -> Sample:
    """A request that makes the echo worker fail in the middle of its stream."""
    how = rng.choice(["error", "exception", "oom", "no_end", "after_end"])
    fields = {"prompt": text(rng, 10), "fail": how, "fail_at": rng.randint(0, 9), "stream": rng.random() < 0.7}
    request = post(port, _path(worker), json.dumps(fields).encode(), [JSON])
    return Sample(worker, f"fails: {how}", request, statuses=frozenset({200, 500, 503}), may_fail=True)


def bad(rng: random.Random, port: int, worker: str, kind: str) -> Sample:
    """A request that breaks a rule, and the statuses of its refusal."""
    path = _path(worker)
    fields = FIELDS[kind](rng)
    whole = json.dumps(fields).encode()
    first = next(iter(fields))
    noise = rng.randbytes(rng.choice([1, 100, 10_000]))
    bodies = {
        "no JSON": noise,
        "cut JSON": whole[: rng.randrange(1, len(whole))],
        "no object": rng.choice([b"[]", b"null", b"1", b'"text"', b""]),
        "deep": b'{"%b":' % first.encode() + b"[" * 100_000,
        "missing": b"{}",
        "unknown field": json.dumps({**fields, "unknown_field": 1}).encode(),
        "wrong type": json.dumps({**fields, first: rng.choice([{}, 1.5, False, [[]], [{"a": None}]])}).encode(),
        "not a number": whole[:-1] + b', "timeout_s": NaN}',
        "huge number": whole[:-1] + b', "timeout_s": 1' + b"0" * 5000 + b"}",
        "lone surrogate": whole[:-1] + b', "job_id": "\\ud800"}',
    }
    refused = frozenset({400, 413, 422})
    if file := {"image", "audio"} & fields.keys():
        damaged = json.dumps({**fields, file.pop(): _base64(noise)}).encode()
        bodies["damaged file"] = damaged
    name = rng.choice([*bodies, "media type", "worker", "method", "length", "headers", "mutation"])
    if name in bodies:
        return Sample(worker, f"bad: {name}", post(port, path, bodies[name], [JSON]), statuses=refused)
    if name == "mutation":  # it may still be valid
        place = rng.randrange(len(whole))
        changed = whole[:place] + rng.randbytes(1) + whole[place + 1 :]
        return Sample(worker, "bad: mutation", post(port, path, changed, [JSON]), statuses=refused | {200})
    request, statuses = {
        "media type": (post(port, path, whole, ["Content-Type: application/x-unknown"]), {415, 400}),
        "worker": (post(port, _path("nobody"), whole, [JSON]), {404}),
        "method": (post(port, path, whole, [JSON], "DELETE"), {405}),
        "length": (
            post(port, path, b"", [JSON]).replace(b"Content-Length: 0", b"Content-Length: 1" + b"0" * 12),
            {413},
        ),
        "headers": (noise.replace(b"\n", b"") + b"\r\n\r\n", {400, 431, 0}),
    }[name]
    return Sample(worker, f"bad: {name}", request, statuses=frozenset(statuses))


def _path(worker: str) -> str:
    return f"/workers/{worker}/v1/inference"
