"""The vision worker's task `generate`: pictures from a text, from another picture, or for a part of one."""

from __future__ import annotations

import asyncio
import io
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from deployments.media.image_decoder import ImageDecoder
from deployments.vision.diffusers_engine import DiffusersEngine, GeneratedImage
from deployments.vision.diffusers_loader import FORMATS, Options, load_pipeline
from deployments.vision.generation_params import ImageGenerationParams
from rbee_serve.config import WorkerConfig, parse_engine
from rbee_serve.content import FileField
from rbee_serve.errors import InvalidRequest
from rbee_serve.events import End, Event, Metrics, Output, Progress, StopReason
from rbee_serve.model_files.resolve import check_local
from rbee_serve.outputs import ImageOutput
from rbee_serve.request import InferenceRequest
from rbee_serve.result import EncodedResult, Result
from rbee_serve.validation.parse import violated
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.engine_thread import EngineThread
from rbee_serve.worker.memory import MemoryGauge, memory_gauge
from rbee_serve.worker.narration import narrate
from rbee_serve.worker.spec import LoadContext, WorkerSpec
from rbee_serve.worker.watchdog import Watchdog

PictureFormat = Literal["png", "jpeg", "webp"]

MAX_PIXELS = 32_000_000
"""Of a picture that is sent; it is scaled to what the model makes."""


class ImageRequest(InferenceRequest):
    """What is to be seen, and how it is to be made."""

    prompt: Annotated[str, Field(min_length=1, max_length=8192, repr=False)]
    """What is to be seen. Models read only its first part, often 77 tokens."""
    negative_prompt: Annotated[str | None, Field(max_length=8192, repr=False)] = None
    """What is not to be seen."""
    image: Annotated[bytes | None, Field(min_length=1, max_length=32 * 2**20, repr=False), FileField("image")] = None
    """The picture to start from: PNG, JPEG or WebP."""
    mask: Annotated[bytes | None, Field(min_length=1, max_length=32 * 2**20, repr=False), FileField("image")] = None
    """Which part of `image` is to change: white where it is, black where not. It is stretched over the picture."""
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    """How much of `image` is to change: that part of the steps is done. The pipeline's own number if left out."""
    width: Annotated[int, Field(ge=8, le=2048)] | None = None
    """Pixels. That of `image`, or what the model was made for, if left out."""
    height: Annotated[int, Field(ge=8, le=2048)] | None = None
    """Pixels, as with `width`."""
    steps: Annotated[int, Field(ge=1, le=150)] | None = None
    """Denoising steps; what the worker or the pipeline is set to if left out."""
    num_images: Annotated[int, Field(ge=1, le=8)] = 1
    """How many pictures. They are made one after another, each with a seed that is 1 higher than that of the one before
    it."""
    guidance_scale: Annotated[float, Field(ge=0, le=50)] | None = None
    """How closely to follow the prompt; what the worker or the pipeline is set to if left out."""
    seed: Annotated[int, Field(ge=0, le=2**64 - 1)] | None = None
    """The same seed and request give the same picture. Made up, and told at the end, if left out."""
    format: PictureFormat | None = None
    """Which files are made; `png` if left out. One picture in a format that is named, with `stream` false, comes as
    that file itself; else it is base64 in JSON."""
    preview_every: Annotated[int, Field(ge=0, le=150)] = 0
    """Steps after which a small preview comes, each time; 0 for none."""
    lora: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """The name of a LoRA adapter that the worker is configured with."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for field in ("mask", "strength"):
            if getattr(self, field) is not None and self.image is None:
                raise violated(field, "image", "needs an image to start from; send image too, or leave it out")
        if self.preview_every and not self.stream:
            raise violated("preview_every", "stream: true", "needs stream to be true; previews are events")
        return self


class ImageBackend(InferenceBackend[ImageRequest, ImageOutput]):
    """A decoder for the pictures that are sent, and a pipeline in its thread."""

    def __init__(self, engine: DiffusersEngine, options: Options, steps: Watchdog, memory: MemoryGauge) -> None:
        self._engine = engine
        self._options = options
        self._decoder = ImageDecoder(MAX_PIXELS)
        self._thread = EngineThread(steps)
        self._memory = memory

    async def execute(self, request: ImageRequest) -> AsyncGenerator[Event[ImageOutput], None]:
        """`progress` for each step, `image` for each preview and each picture, `metrics`, `end`. Raises
        `InvalidRequest` for what this model cannot do, and that it takes more memory than is free."""
        order = await asyncio.to_thread(self._order, request)
        count = len(order.seeds)
        size = f"{order.width} x {order.height} pixels"
        told = f"Making a picture of {size}" if count == 1 else f"Making {count} pictures of {size}"
        yield narrate(request, "vision-worker", "generate", told)
        began = time.monotonic()
        steps = outputs = 0
        first_s: float | None = None
        async with aclosing(self._thread.run_callback(partial(self._engine.draw, order))) as made:
            async for item in made:
                if isinstance(item, Progress):
                    steps = item.step
                    yield item
                    continue
                yield Output(await asyncio.to_thread(_output, item, request.format or "png", outputs))
                outputs += 1
                if item.nsfw:
                    told = "The model's safety checker has blacked this picture out; try another prompt or seed"
                    yield narrate(request, "vision-worker", "safety", told)
                if item.step is None:
                    first_s = first_s or time.monotonic() - began
        seconds = time.monotonic() - began
        yield Metrics(
            {
                "steps_per_sec": round(steps / seconds, 3),
                "steps": steps,
                "time_to_first_image_ms": round((first_s or seconds) * 1000, 1),
                "vram_bytes": self.memory_bytes(),
            }
        )
        yield End(
            tokens_out=count,
            decode_time_ms=round(seconds * 1000),
            stop_reason=StopReason.COMPLETE,
            seed=order.seeds[0],
        )

    def _order(self, request: ImageRequest) -> ImageGenerationParams:
        """What the engine is to do. Raises `InvalidRequest` with all that it cannot, and where memory is short."""
        image = None if request.image is None else self._decoder.decode(request.image, "image")
        mask = None if request.mask is None else self._decoder.decode(request.mask, "mask")
        width, height = self._engine.bounds.size_of(image)
        guidance = self._options.guidance_scale if request.guidance_scale is None else request.guidance_scale
        seed = secrets.randbits(32) if request.seed is None else request.seed
        order = ImageGenerationParams(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=request.width or width,
            height=request.height or height,
            seeds=tuple((seed + number) % 2**64 for number in range(request.num_images)),
            steps=request.steps or self._options.steps,
            guidance_scale=guidance,
            strength=request.strength,
            image=image,
            mask=mask,
            lora=request.lora,
            preview_every=request.preview_every,
        )
        if violations := list(self._engine.bounds.violations(order)):
            raise InvalidRequest.because(violations)
        self._engine.require_memory(order)
        return order

    def memory_bytes(self) -> int:
        """Bytes that the process and its decoder hold, on the device where there is one."""
        return self._memory()

    def close(self) -> None:
        """End the engine's thread and the decoder's process."""
        self._thread.close()
        self._decoder.close()


def encoded(picture: Any, form: PictureFormat) -> bytes:
    """A picture of Pillow's as a file."""
    file = io.BytesIO()
    picture.convert("RGB").save(file, form.upper(), quality=90)
    return file.getvalue()


def _output(drawn: GeneratedImage, form: PictureFormat, i: int) -> ImageOutput:
    patch = encoded(drawn.picture, form)
    return ImageOutput(patch=patch, format=form, preview=drawn.step is not None, step=drawn.step, i=i)


def load(context: LoadContext) -> ImageBackend:
    """Load the pipeline and try it out."""
    options = parse_engine(Options, context.worker)
    engine = DiffusersEngine(load_pipeline(context, options), options, context.device)
    return ImageBackend(engine, options, context.watchdog, memory_gauge(context.device))


def check(worker: WorkerConfig) -> None:
    """Look at the engine's options and the model's files before anything starts."""
    parse_engine(Options, worker)
    check_local(worker, FORMATS)


def encode_result(request: ImageRequest, result: Result) -> EncodedResult | None:
    """The file, where one picture was asked for as one."""
    if request.format is None or request.num_images > 1:
        return None
    return EncodedResult(result.output["images"][0], f"image/{request.format}")


SPEC = WorkerSpec(
    name="vision",
    task="generate",
    request=ImageRequest,
    outputs=(ImageOutput,),
    load=load,
    warm_up=lambda: ImageRequest(prompt="A cat.", width=64, height=64, steps=2),
    default_max_ongoing_requests=1,
    modules=("diffusers", "PIL"),
    extra="vision",
    own_process=True,
    check=check,
    encode_result=encode_result,
)
