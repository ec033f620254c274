"""A request of each worker type that takes seconds, so that a client can disconnect in the middle of it."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from rbee_serve.worker.spec import WorkerSpec
from tests.audio.sounds import encoded
from tests.vision.pictures import png


def _large_image() -> str:
    """49 megapixels in 6 kB, as base64."""
    side = 7000
    return base64.b64encode(png(side, side, zlib.compress(bytes((side // 8 + 1) * side), 9), bits=1, colour=0)).decode()


def _hum() -> str:
    """110 seconds of a hum, in which Whisper looks for words again and again, as base64."""
    seconds = np.arange(110 * 48_000, dtype=np.float32) / 48_000
    return base64.b64encode(encoded("opus", 0.3 * np.sin(2 * np.pi * 110 * seconds))).decode()


LONG_REQUESTS: dict[str, Callable[[], dict[str, Any]]] = {
    "audio/generate": lambda: {
        "prompt": "Here is a sentence that takes some seconds to say, one way or another. " * 400
    },
    "audio/transcribe": lambda: {"audio": _hum()},
    "echo": lambda: {"prompt": "word", "repeat": 100_000, "tokens_per_sec": 20},
    "embedding": lambda: {"input": ["word " * 200] * 256},
    "llm": lambda: {"prompt": "Once upon a time", "max_tokens": 2048, "ignore_eos": True},
    "multimodal": lambda: {
        "prompt": "What comes after six?",
        "max_tokens": 450,
        "ignore_eos": True,
        "modalities": ["text", "image"],
        "picture": {"prompt": "a handwritten seven", "steps": 150},
    },
    "reranker": lambda: {"query": "word", "documents": ["word " * 3000] * 256, "truncate": True},
    "vision/classify": lambda: {"image": _large_image()},
    "vision/embed": lambda: {"image": _large_image()},
    "vision/generate": lambda: {"prompt": "a handwritten seven", "steps": 150, "num_images": 8},
}
"""For the types whose spec has none of its own."""


def long_request(name: str, spec: WorkerSpec[Any]) -> dict[str, Any]:
    """The long request of a worker type, as the fields of its JSON body."""
    if spec.long_request is None:
        return LONG_REQUESTS[name]()
    return dict(json.loads(spec.long_request().model_dump_json(exclude_unset=True)))
