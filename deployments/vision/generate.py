"""The vision worker's task `generate`: images from a text, from another image, or for a part of one."""

from __future__ import annotations

import asyncio
import io
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from deployments.media.image_decoder import ImageDecoder
from deployments.request_fields import NotBlank, Seed
from deployments.vision.diffusers_engine import DenoisingStep, DiffusersEngine, GeneratedImage
from deployments.vision.diffusers_loader import FORMATS, DiffusersOptions, load_pipeline
from deployments.vision.diffusers_needs import diffusers_needs
from deployments.vision.generation_params import ImageGenerationParams
from deployments.vision.image_field import OptionalImageFile
from deployments.vision.start_image import MAX_PIXELS, StartImage
from rbee_serve.config import WorkerConfig, parse_engine
from rbee_serve.errors import InvalidRequest
from rbee_serve.events import Event, Output, Progress
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import MemoryNeeds
from rbee_serve.model_files.resolve import check_local
from rbee_serve.outputs import ImageOutput
from rbee_serve.request import InferenceRequest
from rbee_serve.result import EncodedResult, Result
from rbee_serve.state import MemorySource
from rbee_serve.validation.parse import violated
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.engine_thread import EngineThread
from rbee_serve.worker.memory import MemoryGauge, memory_gauge
from rbee_serve.worker.narration import narrate
from rbee_serve.worker.request_clock import RequestClock
from rbee_serve.worker.spec import LoadContext, WorkerSpec
from rbee_serve.worker.watchdog import Watchdog

ImageFormat = Literal["png", "jpeg", "webp"]


class ImageRequest(InferenceRequest):
    """What the image shows, and how it is generated."""

    prompt: Annotated[str, Field(min_length=1, max_length=8192, repr=False), NotBlank]
    """What the image shows. Models read only its first part, often 77 tokens; a `narration` says where they do."""
    negative_prompt: Annotated[str | None, Field(max_length=8192, repr=False)] = None
    """What the image does not show."""
    image: OptionalImageFile = None
    """The image to start from: PNG, JPEG or WebP."""
    mask: OptionalImageFile = None
    """The part of `image` to change: white where it changes, black where each pixel stays as it is, grey where both are
    blended. Of a file with transparency the transparent part changes, or the white of a drawing in black and white. It
    is scaled to the image."""
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    """How much of `image` changes: that part of the steps is run. The pipeline's own number if left out."""
    width: Annotated[int, Field(ge=8, le=2048)] | None = None
    """Pixels. That of `image`, or what the model was trained for, if left out. An image that is larger than the model
    generates is scaled down."""
    height: Annotated[int, Field(ge=8, le=2048)] | None = None
    """Pixels, as with `width`."""
    steps: Annotated[int, Field(ge=1, le=150)] | None = None
    """Denoising steps; what the worker or the pipeline is set to if left out."""
    num_images: Annotated[int, Field(ge=1, le=8)] = 1
    """The number of images. They are generated one after another, each with a seed 1 higher than the one before."""
    guidance_scale: Annotated[float, Field(ge=0, le=50)] | None = None
    """How closely to follow the prompt; what the worker or the pipeline is set to if left out."""
    seed: Seed = None
    """The same seed and request give the same image. Random if left out or -1; the `end` event has it."""
    format: ImageFormat | None = None
    """The file format; `png` if left out. With a mask `webp` is lossless too. With `stream` false, one image in a given
    format is returned as that file itself; else images are base64 in JSON."""
    preview_every: Annotated[int, Field(ge=0, le=150)] = 0
    """Steps between two small previews; 0 for none."""
    lora: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """The name of a configured LoRA adapter (`engine.lora_modules`)."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for field in ("mask", "strength"):
            if getattr(self, field) is not None and self.image is None:
                raise violated(field, "image", "needs an image to start from; send image too, or leave it out")
        if self.preview_every and not self.stream:
            raise violated("preview_every", "stream: true", "needs stream to be true; previews are events")
        return self


class ImageBackend(InferenceBackend[ImageRequest, ImageOutput]):
    """A decoder for the images of requests, and a pipeline in its thread."""

    def __init__(
        self, engine: DiffusersEngine, options: DiffusersOptions, watchdog: Watchdog, memory: MemoryGauge
    ) -> None:
        self._engine = engine
        self._options = options
        self._decoder = ImageDecoder(MAX_PIXELS)
        self._thread = EngineThread(watchdog)
        self._memory = memory

    async def execute(self, request: ImageRequest) -> AsyncGenerator[Event[ImageOutput], None]:
        """`progress` for each step, `image` for each preview and each image, `metrics`, `end`. Raises `InvalidRequest`
        for what this model cannot do, `InsufficientVram` or `InsufficientResources` for more memory than is free."""
        params, changes = await asyncio.to_thread(self._params, request)
        count, size = len(params.seeds), "{} x {} pixels".format(*params.output_size or params.size)
        subject = f"an image of {size}" if count == 1 else f"{count} images of {size}"
        yield narrate(request, "vision-worker", "generate", f"Generating {subject}")
        for sentence in changes:
            yield narrate(request, "vision-worker", "adjust", sentence)
        clock = RequestClock()
        steps = outputs = 0
        async with aclosing(self._thread.run_callback(partial(self._engine.generate, params))) as items:
            async for item in items:
                if isinstance(item, DenoisingStep):
                    steps = item.step
                    yield Progress(step=item.step, total=item.total)
                    continue
                yield Output(await asyncio.to_thread(_output, item, request, outputs))
                outputs += 1
                if item.nsfw:
                    message = "The model's safety checker has blacked this image out; try another prompt or seed"
                    yield narrate(request, "vision-worker", "safety", message)
                if item.step is None:
                    clock.mark_output()
        seconds = clock.seconds
        metrics = {
            "steps_per_sec": round(steps / seconds, 3),
            "steps": steps,
            "time_to_first_image_ms": clock.first_output_ms,
        }
        for event in clock.complete(self, metrics, tokens_out=count, seconds=seconds, seed=params.seeds[0]):
            yield event

    def _params(self, request: ImageRequest) -> tuple[ImageGenerationParams, list[str]]:
        """The parameters for the engine, and a sentence about each thing in the request that is changed for it. Raises
        `InvalidRequest` with all that it cannot do, and where memory is short."""
        limits, reader = self._engine.limits, self._engine.prompts
        start = StartImage.read(self._decoder, limits, request.image, request.mask, request.width, request.height)
        width, height = (
            start.size if start.image is None else limits.canvas_of(start.size, has_mask=start.mask is not None)
        )
        guidance = self._options.guidance_scale if request.guidance_scale is None else request.guidance_scale
        seed = secrets.randbits(32) if request.seed is None else request.seed
        params = ImageGenerationParams(
            prompt=reader.literal(request.prompt),
            negative_prompt=request.negative_prompt and reader.literal(request.negative_prompt),
            width=width,
            height=height,
            output_size=start.size,
            cell=limits.multiple,
            seeds=tuple((seed + index) % 2**64 for index in range(request.num_images)),
            steps=request.steps or self._options.steps,
            guidance_scale=guidance,
            strength=request.strength,
            image=start.image,
            mask=start.mask,
            lora=request.lora,
            preview_every=request.preview_every,
        )
        if violations := list(limits.violations(params)):
            raise InvalidRequest.because(violations)
        self._engine.memory.require(params.size)
        texts = {"prompt": params.prompt, "negative_prompt": params.negative_prompt}
        cut = [sentence for field, text in texts.items() if (sentence := reader.truncation(field, text))]
        return params, cut + start.changes

    def memory_bytes(self) -> int:
        """Bytes that the process and its decoder hold, on the device where there is one."""
        return self._memory()

    def memory_source(self) -> MemorySource | None:
        """How they were counted."""
        return self._memory.source

    def close(self) -> None:
        """End the engine's thread and the decoder's process."""
        self._thread.close()
        self._decoder.close()


def encoded(image: Any, file_format: ImageFormat, *, lossless: bool = False) -> bytes:
    """An image of Pillow's as a file. A WebP has the exact pixels if `lossless`, a PNG always."""
    file = io.BytesIO()
    image.convert("RGB").save(file, file_format.upper(), quality=90, lossless=lossless)
    return file.getvalue()


def _output(item: GeneratedImage, request: ImageRequest, i: int) -> ImageOutput:
    file_format, is_preview = request.format or "png", item.step is not None
    patch = encoded(item.image, file_format, lossless=request.mask is not None and not is_preview)
    return ImageOutput(patch=patch, format=file_format, preview=is_preview, step=item.step, i=i)


def load(context: LoadContext) -> ImageBackend:
    """Load the pipeline and generate a probe image."""
    options = parse_engine(DiffusersOptions, context.worker)
    engine = DiffusersEngine(load_pipeline(context, options), options, context.device)
    return ImageBackend(engine, options, context.watchdog, memory_gauge(context.device))


def check(worker: WorkerConfig) -> None:
    """Check the engine's options and the model's files before anything starts."""
    parse_engine(DiffusersOptions, worker)
    check_local(worker, FORMATS)


def memory_needs(worker: WorkerConfig, facts: ModelFacts, gpu_bytes: int) -> MemoryNeeds:
    """See `WorkerSpec.memory`."""
    return diffusers_needs(parse_engine(DiffusersOptions, worker), facts)


def encode_result(request: ImageRequest, result: Result) -> EncodedResult | None:
    """The file, if the request is for one image in a given format."""
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
    long_request=lambda: ImageRequest(prompt="A cat.", steps=150, num_images=8),
    default_max_ongoing_requests=1,
    modules=("diffusers", "PIL"),
    extra="vision",
    own_process=True,
    waits_for_gpu=True,
    check=check,
    encode_result=encode_result,
    max_gpus=1,
    memory=memory_needs,
)
