"""Models of transformers that read images, in this process: from files to the model's output, in batches across
requests.

    file ──→ a decoder process ──→ pixels, scaled and normalised, in a thread ──→ a batch ──→ logits, or a vector
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from deployments.media.image_decoder import ImageDecoder
from deployments.torch_runtime.threads import BatchConcurrency
from deployments.vision.vision_options import VisionOptions
from rbee_serve.worker.batching import Batcher
from rbee_serve.worker.spec import LoadContext

Pixels = Any
"""An image as the model takes it: a tensor of channels, rows and columns."""
Tokens = tuple[int, ...]
"""The tokens of one text, the model's special ones included."""
Array = Any
"""A numpy array of float32."""

DECODERS = {"cpu": 1, "metal": 2, "cuda": 4}
"""Decoder processes, unless `decoders` is set."""
BATCH_IMAGES = {"cpu": 8, "metal": 16, "cuda": 64}
"""The largest batch, unless `batch_images` is set."""


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Labels to choose from, and the tokens of a text for each, unless they are the model's own."""

    labels: Sequence[str]
    texts: Sequence[Tokens] = ()


class ImageModel(ABC):
    """A model, and its decoders and preprocessor. To be closed by its owner."""

    activation: Literal["softmax", "sigmoid"]
    """The function that makes scores of its logits."""

    def __init__(self, model: Any, processor: Any, options: VisionOptions, context: LoadContext) -> None:
        self._model, self._processor = model, processor
        self._batch = options.batch_images or BATCH_IMAGES[context.device.accelerator]
        decoders = options.decoders or DECODERS[context.device.accelerator]
        self._decoder = ImageDecoder(options.max_pixels, decoders)
        # One more than decoders, so that one image is scaled while the next one is decoded.
        self._preprocessors = ThreadPoolExecutor(decoders + 1, thread_name_prefix="image")
        concurrency = BatchConcurrency(context)
        self._images: Batcher[Pixels, Array] = Batcher(
            self._forward_batch, lambda pixels: 1, max_batch_cost=self._batch, watchdog=context.watchdog,
            concurrency=concurrency.count, before_batch=concurrency.enter,
        )  # fmt: skip

    async def preprocess(self, file: bytes) -> tuple[Pixels, list[str]]:
        """The image in a file, and a sentence about each thing that was left out of it. Raises `InvalidRequest` about
        the field `image`."""
        return await asyncio.get_running_loop().run_in_executor(self._preprocessors, self._preprocess, file)

    async def forward(self, pixels: Pixels) -> Array:
        """The model's output for an image: its logits, or its vector."""
        async with aclosing(self._images.results([pixels])) as rows:
            return await anext(rows)

    @abstractmethod
    def label_set(self, labels: Sequence[str] | None, template: str | None) -> LabelSet:
        """The labels for a request. May take milliseconds. Raises `InvalidRequest`."""

    @abstractmethod
    async def logits(self, pixels: Pixels, label_set: LabelSet) -> Array:
        """A logit for each label."""

    @abstractmethod
    def _rows(self, pixels: Any) -> Any:
        """A forward pass: a tensor of images in, a tensor with a row for each image out."""

    def _preprocess(self, file: bytes) -> tuple[Pixels, list[str]]:
        decoded = self._decoder.read(file)
        pixels = self._processor(images=decoded.image, return_tensors="pt")["pixel_values"][0]
        return pixels, decoded.changes("image")

    def _forward_batch(self, images: Sequence[Pixels]) -> Array:
        import torch

        with torch.inference_mode():
            pixels = torch.stack(list(images)).to(self._model.device, self._model.dtype)
            return self._rows(pixels).float().cpu().numpy()

    def close(self) -> None:
        """Free the model and end the decoders."""
        self._preprocessors.shutdown(wait=False, cancel_futures=True)
        self._images.close()
        self._decoder.close()
