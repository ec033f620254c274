"""The tasks `classify` and `embed` on tiny random models, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deployments.vision.classify import ClassifyBackend, ClassifyRequest
from deployments.vision.embed import EmbedBackend, EmbedRequest
from rbee_serve.config import WorkerConfig
from rbee_serve.events import Event, Output, Started
from rbee_serve.replica.event_stream import ordered
from rbee_serve.validation.parse import parse_object
from rbee_serve.worker.spec import LoadContext
from tests import devices
from tests.vision.images import encoded, sample_image
from tests.vision.tiny_models import random_clip, random_siglip, random_vit

MAKERS = {"vit": random_vit, "clip": random_clip, "siglip": random_siglip}
NAMES = ["a cat", "two dogs", "the sea", "a house with a red roof", "nothing at all"]


def _rotated(data: Any, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(data, "JPEG", exif=exif)


FILES = {
    "png": encoded(sample_image(), "PNG"),
    "large": encoded(sample_image(300, 200, seed=1), "JPEG"),
    "high": encoded(sample_image(20, 150, seed=2), "WEBP"),
    "line": encoded(sample_image(3, 40, seed=3), "PNG"),
    "pixel": encoded(sample_image(1, 1, seed=4), "PNG"),
    "rotated": _rotated(sample_image(90, 60, seed=5), 6),
    "grey": encoded(Image.fromarray(sample_image(seed=6)).convert("L"), "JPEG"),
    "cmyk": encoded(Image.fromarray(sample_image(seed=7)).convert("CMYK"), "JPEG"),
}


def context(folder: Path, **engine: Any) -> LoadContext:
    worker = WorkerConfig(id="vision-0", type="vision", model_ref=f"file:{folder}", engine=engine)
    return LoadContext(worker, devices.DEVICE, lambda progress: None)


async def events(backend: ClassifyBackend | EmbedBackend, image: bytes, **fields: Any) -> list[Event[Any]]:
    request_type = ClassifyRequest if isinstance(backend, ClassifyBackend) else EmbedRequest
    work: Any = backend.execute(parse_object(request_type, {"image": image, **fields}))  # type: ignore[arg-type]
    return [event async for event in ordered(Started.now("job", "model"), work)]


async def labels(backend: ClassifyBackend, image: bytes, **fields: Any) -> list[tuple[str, float]]:
    (output,) = [event.value for event in await events(backend, image, **fields) if isinstance(event, Output)]
    return [(label.label, label.score) for label in output.labels]


def near(found: list[tuple[str, float]], expected: list[dict[str, Any]]) -> None:
    assert [label for label, _ in found] == [answer["label"] for answer in expected]
    assert [score for _, score in found] == pytest.approx([answer["score"] for answer in expected], rel=2e-5, abs=2e-7)
