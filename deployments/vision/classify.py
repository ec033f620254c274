"""The vision worker's task `classify`: an image in, its likeliest labels out, the model's own or the caller's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Literal

from pydantic import Field, field_validator

from deployments.request_fields import NotBlank
from deployments.vision.image_encoder_needs import image_encoder_needs
from deployments.vision.image_encoders import FORMATS, open_model
from deployments.vision.image_field import ImageFile, grey_png
from deployments.vision.image_model import Array
from deployments.vision.vision_backend import VisionBackend
from deployments.vision.vision_options import VisionOptions
from rbee_serve.config import WorkerConfig, parse_engine
from rbee_serve.events import Event, Output
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import MemoryNeeds
from rbee_serve.model_files.resolve import check_local
from rbee_serve.outputs import Label, LabelOutput
from rbee_serve.request import InferenceRequest
from rbee_serve.worker.memory import memory_gauge
from rbee_serve.worker.narration import narrate
from rbee_serve.worker.request_clock import RequestClock
from rbee_serve.worker.spec import LoadContext, WorkerSpec

LabelText = Annotated[str, Field(min_length=1, max_length=256), NotBlank]
Labels = Annotated[list[LabelText], Field(min_length=1, max_length=256)]

LABELS = ("a person", "an animal", "a plant", "food", "a vehicle", "a building", "a landscape", "a thing")
"""The labels for CLIP and SigLIP where neither the request nor the configuration has any."""


class ClassifyRequest(InferenceRequest):
    """An image, and the labels to choose from."""

    image: ImageFile
    """The file: PNG, JPEG or WebP. Of an animation the first frame is used."""
    labels: Annotated[Labels | None, Field(repr=False)] = None
    """The labels to choose from, for CLIP and SigLIP, which have none of their own; those of `engine.labels` if left
    out."""
    hypothesis_template: Annotated[str | None, Field(max_length=256, repr=False)] = None
    """The text around a label, with `{}` in its place; `This is a photo of {}.` if left out."""
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    """The function that makes scores of the model's logits. If left out: `sigmoid` where labels do not exclude each
    other, as with SigLIP, and else `softmax`."""
    top_k: Annotated[int, Field(ge=1, le=1000)] = 5
    """The number of labels to return, the likeliest first."""

    @field_validator("hypothesis_template")
    @classmethod
    def _check_template(cls, template: str | None) -> str | None:
        if template is not None and template.count("{}") != 1:
            raise ValueError("must hold {} once, where the label is to be")
        return template


class ClassifyOptions(VisionOptions):
    """`engine:` of the task `classify`."""

    labels: Labels = Field(default_factory=lambda: list(LABELS))
    """The labels of models without labels of their own, where a request names none."""


class ClassifyBackend(VisionBackend[ClassifyRequest, LabelOutput]):
    """A model, and how its logits become labels."""

    async def execute(self, request: ClassifyRequest) -> AsyncGenerator[Event[LabelOutput], None]:
        """A `narration`, the `labels`, `metrics`, `end`. Raises `InvalidRequest` on a file that cannot be decoded, and
        on labels that the model does not take."""
        clock = RequestClock()
        label_set = await asyncio.to_thread(self._model.label_set, request.labels, request.hypothesis_template)
        pixels, changes = await self._model.preprocess(request.image)
        decode_ms = round(clock.seconds * 1000, 1)
        yield narrate(request, "vision-worker", "classify", f"Choosing from {len(label_set.labels)} labels")
        for sentence in changes:
            yield narrate(request, "vision-worker", "adjust", sentence)
        logits = await self._model.logits(pixels, label_set)
        scores = _scores(logits, request.function_to_apply or self._model.activation)
        best = (-scores).argsort(kind="stable")[: request.top_k]
        labels = tuple(Label(label=label_set.labels[index], score=round(float(scores[index]), 9)) for index in best)
        yield Output(LabelOutput(labels=labels, i=0))
        for event in self._completed(clock, decode_ms, len(labels)):
            yield event


def _scores(logits: Array, function: str) -> Array:
    import numpy as np

    logits = logits.astype("f8")
    if function == "softmax":
        powers = np.exp(logits - logits.max())
        return powers / powers.sum()
    # The sigmoid in a form that does not overflow.
    return (np.tanh(logits / 2) + 1) / 2 if function == "sigmoid" else logits


def load(context: LoadContext) -> ClassifyBackend:
    """Load the model. Raises `ConfigurationError`, `InsufficientVram`, `InsufficientResources`."""
    options = parse_engine(ClassifyOptions, context.worker)
    return ClassifyBackend(open_model(context, options, options.labels), memory_gauge(context.device))


def check(worker: WorkerConfig) -> None:
    """Check the model's files and the engine's options before anything starts."""
    check_local(worker, FORMATS)
    parse_engine(ClassifyOptions, worker)


def memory_needs(worker: WorkerConfig, facts: ModelFacts, gpu_bytes: int) -> MemoryNeeds:
    """See `WorkerSpec.memory`."""
    return image_encoder_needs(parse_engine(ClassifyOptions, worker), facts)


SPEC = WorkerSpec(
    name="vision",
    task="classify",
    request=ClassifyRequest,
    outputs=(LabelOutput,),
    load=load,
    warm_up=lambda: ClassifyRequest(image=grey_png(1, 1)),
    long_request=lambda: ClassifyRequest(image=grey_png(8000, 6000)),  # just below `max_pixels`
    modules=("transformers", "PIL"),
    extra="vision",
    waits_for_gpu=True,
    check=check,
    max_gpus=1,
    memory=memory_needs,
)
