"""The vision worker's task `embed`: an image in, its vector out, near to those of similar images."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Literal

from deployments.torch_runtime.vectors import shaped
from deployments.vision.image_encoder_needs import image_encoder_needs
from deployments.vision.image_encoders import FORMATS, ImageTextModel, open_model
from deployments.vision.image_field import ImageFile, grey_png
from deployments.vision.vision_backend import VisionBackend
from deployments.vision.vision_options import VisionOptions
from rbee_serve.config import WorkerConfig, parse_engine
from rbee_serve.errors import ConfigurationError
from rbee_serve.events import Event, Output
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import MemoryNeeds
from rbee_serve.model_files.resolve import check_local
from rbee_serve.outputs import EmbeddingOutput
from rbee_serve.request import InferenceRequest
from rbee_serve.worker.memory import memory_gauge
from rbee_serve.worker.narration import narrate
from rbee_serve.worker.request_clock import RequestClock
from rbee_serve.worker.spec import LoadContext, WorkerSpec


class EmbedRequest(InferenceRequest):
    """An image, and the form of its vector."""

    image: ImageFile
    """The file: PNG, JPEG or WebP. Of an animation the first frame is used."""
    normalize: bool = True
    """True: a vector of length 1. False: the vector as the model computes it."""
    encoding: Literal["float", "base64"] = "float"
    """`float`: a list of numbers. `base64`: the same as float32, in little-endian order."""


class EmbedBackend(VisionBackend[EmbedRequest, EmbeddingOutput]):
    """A model of images and texts, used for images."""

    async def execute(self, request: EmbedRequest) -> AsyncGenerator[Event[EmbeddingOutput], None]:
        """A `narration`, the `embedding`, `metrics`, `end`. Raises `InvalidRequest` on a file that cannot be
        decoded."""
        clock = RequestClock()
        pixels, changes = await self._model.preprocess(request.image)
        decode_ms = round(clock.seconds * 1000, 1)
        yield narrate(request, "vision-worker", "embed", "Embedding an image")
        for sentence in changes:
            yield narrate(request, "vision-worker", "adjust", sentence)
        vector = await self._model.forward(pixels)
        yield Output(
            EmbeddingOutput(embedding=shaped(vector, request.normalize, request.encoding), dim=len(vector), i=0)
        )
        for event in self._completed(clock, decode_ms, 1):
            yield event


def load(context: LoadContext) -> EmbedBackend:
    """Load the model. Raises `ConfigurationError`, `InsufficientVram`, `InsufficientResources`."""
    model = open_model(context, parse_engine(VisionOptions, context.worker), ())
    if not isinstance(model, ImageTextModel):
        model.close()
        raise ConfigurationError(f"worker {context.worker.id}: embed is for CLIP and SigLIP; this model classifies")
    return EmbedBackend(model, memory_gauge(context.device))


def check(worker: WorkerConfig) -> None:
    """Check the model's files and the engine's options before anything starts."""
    check_local(worker, FORMATS)
    parse_engine(VisionOptions, worker)


def memory_needs(worker: WorkerConfig, facts: ModelFacts, gpu_bytes: int) -> MemoryNeeds:
    """See `WorkerSpec.memory`."""
    return image_encoder_needs(parse_engine(VisionOptions, worker), facts)


SPEC = WorkerSpec(
    name="vision",
    task="embed",
    request=EmbedRequest,
    outputs=(EmbeddingOutput,),
    load=load,
    warm_up=lambda: EmbedRequest(image=grey_png(1, 1)),
    long_request=lambda: EmbedRequest(image=grey_png(8000, 6000)),  # just below `max_pixels`
    modules=("transformers", "PIL"),
    extra="vision",
    waits_for_gpu=True,
    check=check,
    max_gpus=1,
    memory=memory_needs,
)
