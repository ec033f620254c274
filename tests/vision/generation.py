"""The task `generate` on a pipeline's files, without Ray; and the bare pipeline beside it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deployments.vision import generate as vision_generate
from deployments.vision.generate import ImageBackend, ImageRequest
from rbee_serve.config import WorkerConfig
from rbee_serve.events import Output
from rbee_serve.validation.parse import parse_object
from rbee_serve.worker.spec import LoadContext
from rbee_serve.worker.watchdog import Watchdog
from tests import devices
from tests.vision.images import encoded, sample_image

PROMPT = "a cat on a mat"


def configuration(folder: Path, **engine: Any) -> WorkerConfig:
    return WorkerConfig(id="vision-0", type="vision", task="generate", model_ref=f"file:{folder}", engine=engine)


def load(folder: Path, **engine: Any) -> ImageBackend:
    worker = configuration(folder, **engine)
    vision_generate.check(worker)
    return vision_generate.load(LoadContext(worker, devices.DEVICE, lambda progress: None, Watchdog(20)))


def bare(folder: Path) -> Any:
    """The pipeline loaded by diffusers alone."""
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(devices.NAME)


def seeded(seed: int) -> Any:
    import torch

    return torch.Generator("cpu").manual_seed(seed)


async def events_of(backend: ImageBackend, **fields: Any) -> list[Any]:
    request = parse_object(ImageRequest, {"prompt": PROMPT, "steps": 3, "seed": 7, **fields})
    return [event async for event in backend.execute(request)]


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


def images_of(events: list[Any], *, previews: bool = False) -> list[Any]:
    values = [event.value for event in events if isinstance(event, Output)]
    return [pixels(value.patch) for value in values if value.preview == previews]


def same(made: Any, expected: Any) -> bool:
    """Whether these are the same pixels. On a GPU the order of a sum may change between runs, so a colour may differ by
    one of 255."""
    difference = np.abs(np.asarray(made, int) - np.asarray(expected, int)).max()
    return bool(difference <= (2 if devices.ON_GPU else 0))


FILE = encoded(sample_image(), "PNG")
MASK = encoded(np.repeat(np.arange(48) >= 24, 32).reshape(48, 32).T, "PNG")
RGB = Image.fromarray(sample_image())
WHITE_RIGHT = Image.open(io.BytesIO(MASK)).convert("L")
