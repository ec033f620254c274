"""The vision worker's task `embed`: an image in, its vector out, near to those of like images."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Literal

from deployments.torch_runtime.vectors import shaped
from deployments.vision.image_encoders import FORMATS, ImageTextModel, open_model
from deployments.vision.image_model import PIXEL, ImageFile, VisionBackend, VisionOptions
from rbee_serve.config import WorkerConfig, parse_engine
from rbee_serve.errors import ConfigurationError
from rbee_serve.events import End, Event, Output, StopReason
from rbee_serve.model_files.resolve import check_local
from rbee_serve.outputs import EmbeddingOutput
from rbee_serve.request import InferenceRequest
from rbee_serve.worker.memory import memory_gauge
from rbee_serve.worker.narration import narrate
from rbee_serve.worker.spec import LoadContext, WorkerSpec


class EmbedRequest(InferenceRequest):
    """A picture, and how its vector is wanted."""

    image: ImageFile
    """The file: PNG, JPEG or WebP. Of an animation the first picture counts."""
    normalize: bool = True
    """True: a vector of length 1. False: the vector as the model gives it."""
    encoding: Literal["float", "base64"] = "float"
    """`float`: a list of numbers. `base64`: the same as float32, in little-endian order."""


class EmbedBackend(VisionBackend[EmbedRequest, EmbeddingOutput]):
    """A model that knows pictures and texts, of which the former are asked for."""

    async def execute(self, request: EmbedRequest) -> AsyncGenerator[Event[EmbeddingOutput], None]:
        """A `narration`, the `embedding`, `metrics`, `end`. Raises `InvalidRequest` on a file that cannot be
        decoded."""
        began = time.monotonic()
        pixels = await self._model.read(request.image)
        decoded = time.monotonic()
        yield narrate(request, "vision-worker", "embed", "Embedding a picture")
        vector = await self._model.look(pixels)
        yield Output(
            EmbeddingOutput(embedding=shaped(vector, request.normalize, request.encoding), dim=len(vector), i=0)
        )
        yield self._metrics(began, decoded)
        milliseconds = round((time.monotonic() - began) * 1000)
        yield End(tokens_out=1, decode_time_ms=milliseconds, stop_reason=StopReason.COMPLETE)


def load(context: LoadContext) -> EmbedBackend:
    """Load the model. Raises `ConfigurationError`, `InsufficientVram`, `InsufficientResources`."""
    model = open_model(context, parse_engine(VisionOptions, context.worker), ())
    if not isinstance(model, ImageTextModel):
        model.close()
        raise ConfigurationError(f"worker {context.worker.id}: embed is for CLIP and SigLIP; this model classifies")
    return EmbedBackend(model, memory_gauge(context.device))


def check(worker: WorkerConfig) -> None:
    """Look at the model's files and the engine's options before anything starts."""
    check_local(worker, FORMATS)
    parse_engine(VisionOptions, worker)


SPEC = WorkerSpec(
    name="vision",
    task="embed",
    request=EmbedRequest,
    outputs=(EmbeddingOutput,),
    load=load,
    warm_up=lambda: EmbedRequest(image=PIXEL),
    modules=("transformers", "PIL"),
    extra="vision",
    check=check,
)
