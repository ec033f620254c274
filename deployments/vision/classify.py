"""The vision worker's task `classify`: an image in, what it shows out, in the model's own words or in the caller's."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Literal

from pydantic import Field, field_validator

from deployments.vision.image_encoders import FORMATS, open_model
from deployments.vision.image_model import PIXEL, Array, ImageFile, VisionBackend, VisionOptions
from rbee_serve.config import WorkerConfig, parse_engine
from rbee_serve.events import End, Event, Output, StopReason
from rbee_serve.model_files.resolve import check_local
from rbee_serve.outputs import Label, LabelOutput
from rbee_serve.request import InferenceRequest
from rbee_serve.worker.memory import memory_gauge
from rbee_serve.worker.narration import narrate
from rbee_serve.worker.spec import LoadContext, WorkerSpec

LabelText = Annotated[str, Field(min_length=1, max_length=256)]
Labels = Annotated[list[LabelText], Field(min_length=1, max_length=256)]

LABELS = ("a person", "an animal", "a plant", "food", "a vehicle", "a building", "a landscape", "a thing")
"""What CLIP and SigLIP choose from where neither the request nor the configuration says so."""


class ClassifyRequest(InferenceRequest):
    """A picture, and what it may show."""

    image: ImageFile
    """The file: PNG, JPEG or WebP. Of an animation the first picture counts."""
    labels: Annotated[Labels | None, Field(repr=False)] = None
    """What to choose from, for CLIP and SigLIP, which have no labels of their own; those of `engine.labels` if left
    out."""
    hypothesis_template: Annotated[str | None, Field(max_length=256, repr=False)] = None
    """The text that a label stands in at `{}`, such as `This is a photo of {}.`, which it is if left out."""
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    """What makes scores of the model's logits. If left out: `sigmoid` where labels do not exclude each other, as with
    SigLIP, and else `softmax`."""
    top_k: Annotated[int, Field(ge=1, le=1000)] = 5
    """How many of the likeliest labels are wanted."""

    @field_validator("hypothesis_template")
    @classmethod
    def _check_template(cls, template: str | None) -> str | None:
        if template is not None and template.count("{}") != 1:
            raise ValueError("must hold {} once, where the label is to be")
        return template


class ClassifyOptions(VisionOptions):
    """`engine:` of the task `classify`."""

    labels: Labels = Field(default_factory=lambda: list(LABELS))
    """What models without labels of their own choose from where a request names none."""


class ClassifyBackend(VisionBackend[ClassifyRequest, LabelOutput]):
    """A model, and how its logits become labels."""

    async def execute(self, request: ClassifyRequest) -> AsyncGenerator[Event[LabelOutput], None]:
        """A `narration`, the `labels`, `metrics`, `end`. Raises `InvalidRequest` on a file that cannot be decoded, and
        on labels that the model does not take."""
        began = time.monotonic()
        choice = await asyncio.to_thread(self._model.choice, request.labels, request.hypothesis_template)
        pixels = await self._model.read(request.image)
        decoded = time.monotonic()
        yield narrate(request, "vision-worker", "classify", f"Choosing from {len(choice.labels)} labels")
        logits = await self._model.logits(pixels, choice)
        scores = _scores(logits, request.function_to_apply or self._model.activation)
        best = (-scores).argsort(kind="stable")[: request.top_k]
        found = tuple(Label(label=choice.labels[index], score=round(float(scores[index]), 9)) for index in best)
        yield Output(LabelOutput(labels=found, i=0))
        yield self._metrics(began, decoded)
        milliseconds = round((time.monotonic() - began) * 1000)
        yield End(tokens_out=len(found), decode_time_ms=milliseconds, stop_reason=StopReason.COMPLETE)


def _scores(logits: Array, function: str) -> Array:
    numpy = importlib.import_module("numpy")
    logits = logits.astype("f8")
    if function == "softmax":
        powers = numpy.exp(logits - logits.max())
        return powers / powers.sum()
    # The sigmoid in a form that does not overflow.
    return (numpy.tanh(logits / 2) + 1) / 2 if function == "sigmoid" else logits


def load(context: LoadContext) -> ClassifyBackend:
    """Load the model. Raises `ConfigurationError`, `InsufficientVram`, `InsufficientResources`."""
    options = parse_engine(ClassifyOptions, context.worker)
    return ClassifyBackend(open_model(context, options, options.labels), memory_gauge(context.device))


def check(worker: WorkerConfig) -> None:
    """Look at the model's files and the engine's options before anything starts."""
    check_local(worker, FORMATS)
    parse_engine(ClassifyOptions, worker)


SPEC = WorkerSpec(
    name="vision",
    task="classify",
    request=ClassifyRequest,
    outputs=(LabelOutput,),
    load=load,
    warm_up=lambda: ClassifyRequest(image=PIXEL),
    modules=("transformers", "PIL"),
    extra="vision",
    check=check,
)
