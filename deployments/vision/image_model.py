"""Models of transformers that look at pictures, in this process: from files to what the model makes of them, in batches
across requests.

    file ──→ a decoder's process ──→ pixels, scaled and normalised, in a thread ──→ a batch ──→ logits, or a vector
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from deployments.media.image_decoder import ImageDecoder
from deployments.torch_runtime.threads import BatchConcurrency
from rbee_serve.content import FileField
from rbee_serve.events import Metrics
from rbee_serve.outputs import OutputValue
from rbee_serve.request import InferenceRequest
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.batching import Batcher
from rbee_serve.worker.memory import MemoryGauge
from rbee_serve.worker.spec import LoadContext

RequestT = TypeVar("RequestT", bound=InferenceRequest)
OutputT = TypeVar("OutputT", bound=OutputValue)

ImageFile = Annotated[bytes, Field(min_length=1, max_length=32 * 2**20, repr=False), FileField("image")]
"""A field of a request: PNG, JPEG or WebP."""
Pixels = Any
"""A picture as the model takes it: a tensor of channels, rows and columns."""
Tokens = tuple[int, ...]
"""The tokens of one text, the model's special ones included."""
Array = Any
"""A numpy array of float32."""

DECODERS = {"cpu": 1, "metal": 2, "cuda": 4}
"""Processes that decode files, unless `decoders` says otherwise."""
BATCH_IMAGES = {"cpu": 8, "metal": 16, "cuda": 64}
"""The largest batch, unless `batch_images` says otherwise."""

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mNoaGgAAAMEAYF1LgG8AAAAAElFTkSuQmCC")
"""A grey PNG of 1 x 1 pixel."""


class VisionOptions(BaseModel):
    """`engine:` of a vision worker on transformers."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """The type of the weights; as they are stored, for `auto`."""
    attn_implementation: str | None = None
    """Which attention transformers uses, such as `sdpa`."""
    batch_images: Annotated[int, Field(ge=1)] | None = None
    """Pictures, or texts, of the largest batch."""
    decoders: Annotated[int, Field(ge=1, le=256)] | None = None
    """Processes that decode files."""
    max_pixels: Annotated[int, Field(ge=1, le=100_000_000)] = 50_000_000
    """The largest picture, as the product of its sides. Decoding takes up to 25 bytes for each pixel."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Labels to choose from; with the tokens of a text for each, unless they are the model's own."""

    labels: Sequence[str]
    texts: Sequence[Tokens] = ()


class VisionModel(ABC):
    """A model, and the way of a file to it. Closed by whoever has it."""

    activation: Literal["softmax", "sigmoid"]
    """What makes scores of its logits."""

    def __init__(self, model: Any, processor: Any, options: VisionOptions, context: LoadContext) -> None:
        self._torch = importlib.import_module("torch")
        self._model, self._processor = model, processor
        self._batch = options.batch_images or BATCH_IMAGES[context.device.accelerator]
        decoders = options.decoders or DECODERS[context.device.accelerator]
        self._decoder = ImageDecoder(options.max_pixels, decoders)
        # One more than decoders, so that one picture is scaled while the next one is decoded.
        self._readers = ThreadPoolExecutor(decoders + 1, thread_name_prefix="picture")
        concurrency = BatchConcurrency(context)
        self._pictures: Batcher[Pixels, Array] = Batcher(
            self._looked, lambda pixels: 1, max_batch_cost=self._batch, batch_overhead=0, watchdog=context.watchdog,
            concurrency=concurrency.count, before_batch=concurrency.enter,
        )  # fmt: skip

    async def read(self, file: bytes) -> Pixels:
        """The picture in a file. Raises `InvalidRequest` about the field `image`."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, file)

    async def look(self, pixels: Pixels) -> Array:
        """What the model makes of a picture: its logits, or its vector."""
        async with aclosing(self._pictures.results([pixels])) as rows:
            return await anext(rows)

    @abstractmethod
    def choice(self, labels: Sequence[str] | None, template: str | None) -> Choice:
        """What a request chooses from. May take milliseconds. Raises `InvalidRequest`."""

    @abstractmethod
    async def logits(self, pixels: Pixels, choice: Choice) -> Array:
        """One for each label."""

    @abstractmethod
    def _rows(self, pixels: Any) -> Any:
        """A tensor with a row for each picture, of a tensor of them."""

    def _read(self, file: bytes) -> Pixels:
        return self._processor(images=self._decoder.decode(file), return_tensors="pt")["pixel_values"][0]

    def _looked(self, pictures: Sequence[Pixels]) -> Array:
        with self._torch.inference_mode():
            pixels = self._torch.stack(list(pictures)).to(self._model.device, self._model.dtype)
            return self._rows(pixels).float().cpu().numpy()

    def close(self) -> None:
        """Free the model and end the decoders."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._pictures.close()
        self._decoder.close()


class VisionBackend(InferenceBackend[RequestT, OutputT]):
    """What the tasks on such a model have in common."""

    def __init__(self, model: VisionModel, memory: MemoryGauge) -> None:
        self._model = model
        self._memory = memory

    def _metrics(self, began: float, decoded: float) -> Metrics:
        """Of a request that `began`, whose file was `decoded`, and whose work ends now; in the clock's seconds."""
        return Metrics(
            {
                "images_per_sec": round(1 / (time.monotonic() - began), 2),
                "decode_ms": round((decoded - began) * 1000, 1),
                "vram_bytes": self.memory_bytes(),
            }
        )

    def memory_bytes(self) -> int:
        """Bytes that the replica and its decoders hold."""
        return self._memory()

    def close(self) -> None:
        """Free the model and end the decoders."""
        self._model.close()
