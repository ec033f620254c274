"""Pictures by a pipeline of diffusers.

Pictures are made one after another, each from a seed of its own: so the first one is there soon, memory is that of one,
and each is the picture that the bare pipeline makes of its seed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import psutil

from deployments.torch_runtime.cuda_graphs import GraphedForward, cuda_recorder
from deployments.vision.diffusers_loader import Options
from deployments.vision.generation_params import ImageGenerationParams, PipelineLimits, Task, parameters
from deployments.vision.latent_preview import LatentPreview, is_grid, palette
from rbee_serve.errors import InsufficientResources, InsufficientVram
from rbee_serve.events import Progress
from rbee_serve.worker.engine_thread import Sink
from rbee_serve.worker.spec import Device

PROBE_UNITS = 32
"""The side of the picture that is made while loading, in multiples of the smallest: a thousand colours are enough to
fit a map to them."""

PROBE_STEPS = 50
"""Of these it does the last one: no sampler that is in use takes fewer at most."""

LARGE_BLOCK = 10_000_000
"""Parameters of a block of the denoiser through which a pass may take so long on a CPU that there must be steps within.
A hook for each layer takes a twentieth of a small denoiser's time; other models run once for a picture. A GPU is only
told what to do, so there a step within a pass would say nothing."""

WORKING_LAYERS = 2
"""What a pass holds at once, as a multiple of what goes into its largest layer and comes out of it."""


class GeneratedImage(NamedTuple):
    """A picture of Pillow's; a small one of what it will be like, if `step` is given. An `nsfw` one is black."""

    picture: Any
    step: int | None = None
    nsfw: bool = False


class DiffusersEngine:
    """A loaded pipeline, and those for other tasks that its weights are good for. To be used in one thread."""

    def __init__(self, pipeline: Any, options: Options, device: Device) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._pipeline, self._options, self._device = pipeline, options, device
        self._pipelines = _relatives(pipeline)
        self._models = [part for part in pipeline.components.values() if isinstance(part, self._torch.nn.Module)]
        self._dtypes = [model.dtype for model in self._models]
        self._step: Callable[[], None] = lambda: None
        self._denoising: GraphedForward | None = None
        self._told: Any = None
        """The end of the last step that the GPU was told to do, as an event."""
        self.bounds = PipelineLimits(self._pipelines, tuple(options.lora_modules), options.max_side)
        """What it can make."""
        self._colors, self._bytes_per_pixel = self._probe()
        self.bounds.previews = self._colors is not None
        if device.accelerator == "cuda" and not options.enforce_eager:
            denoiser = _denoiser(pipeline)
            denoiser.forward = self._denoising = GraphedForward(denoiser.forward, cuda_recorder("cuda"))
        for model in self._models:
            large = LARGE_BLOCK if model is _denoiser(pipeline) else 0
            if not large or device.accelerator == "cpu":
                for block in self._blocks(model, large):
                    block.register_forward_pre_hook(lambda *_: self._step())

    def draw(self, order: ImageGenerationParams, sink: Sink[Progress | GeneratedImage]) -> None:
        """Put each picture into `sink`, with the progress and the previews before it."""
        self._step = sink.step
        for number, seed in enumerate(order.seeds):
            made = self._make(order, seed, partial(self._on_step, order, sink, number))
            nsfw = getattr(made, "nsfw_content_detected", None) or [False]
            sink.put(GeneratedImage(made.images[0], nsfw=bool(nsfw[0])))

    def _blocks(self, model: Any, large: int) -> Iterator[Any]:
        """Those of the model's outermost lists, and what those of more than `large` parameters consist of."""
        listed = isinstance(model, self._torch.nn.ModuleList)
        for part in model.children():
            if listed:
                yield part
            if not listed or sum(parameter.numel() for parameter in part.parameters()) > large:
                yield from self._blocks(part, large)

    def _on_step(
        self,
        order: ImageGenerationParams,
        sink: Sink[Progress | GeneratedImage],
        number: int,
        pipeline: Any,
        index: int,
        time: Any,
        tensors: Any,
    ) -> dict[str, Any]:
        """What the pipeline calls after each step of a picture, with its own arguments last."""
        self._keep_pace()
        step, total = index + 1, getattr(pipeline, "num_timesteps", None) or len(pipeline.scheduler.timesteps)
        sink.put(Progress(step=number * total + step, total=total * len(order.seeds)))
        if self._colors and order.preview_every and step % order.preview_every == 0 and step < total:
            sink.put(GeneratedImage(self._colors.picture(tensors["latents"], order.width / order.height), step))
        return {}

    def _keep_pace(self) -> None:
        """Let the GPU be no more than one step behind what it has been told: a step that is told of is done, or the
        next thing to be done, and who leaves has not long to wait."""
        if self._device.accelerator == "cuda":
            before, self._told = self._told, self._torch.cuda.Event()
            self._told.record()
            if before is not None:
                before.synchronize()

    def _make(self, order: ImageGenerationParams, seed: int, on_step: Callable[..., dict[str, Any]]) -> Any:
        """What the pipeline makes of that seed."""
        if order.lora is not None:
            self._pipeline.enable_lora()
            self._pipeline.set_adapters(order.lora)
        elif self._options.lora_modules:
            self._pipeline.disable_lora()
        if self._denoising is not None:
            self._denoising.weights = order.lora
        if order.task not in self._pipelines:
            order = order.all_anew(with_mask="mask" in self._pipelines)
        pipeline = self._pipelines[order.task]
        known = parameters(pipeline)
        try:
            with self._torch.inference_mode():  # the pipelines' own `no_grad` checks more at each operation
                return pipeline(
                    **{name: value for name, value in order.arguments().items() if name in known},
                    generator=self._torch.Generator("cpu").manual_seed(seed),
                    callback_on_step_end=on_step,
                )
        except BaseException:
            # Some pipelines decode in another type than they denoise in, and change the model's for that time.
            for model, dtype in zip(self._models, self._dtypes, strict=True):
                if model.dtype != dtype:
                    model.to(dtype)
            raise

    def _probe(self) -> tuple[LatentPreview | None, float]:
        """How latents become colours, and how many bytes it takes for each pixel to make a picture: told by one that is
        made of a palette, where the model can start from a picture, in a last step that hardly changes it."""
        side = min(self.bounds.side, PROBE_UNITS * self.bounds.multiple)
        order = ImageGenerationParams(prompt="A picture", width=side, height=side, steps=1, seeds=(0,))
        if self.bounds.changes:
            colors = palette(side, self.bounds.multiple)
            mask = None if "image" in self.bounds.changes else colors.point(lambda _: 255)
            order = replace(order, image=colors, mask=mask, steps=PROBE_STEPS, strength=1 / PROBE_STEPS)
        latents: list[Any] = []

        def on_step(pipeline: Any, index: int, time: Any, tensors: Any) -> dict[str, Any]:
            latents[:] = [tensors["latents"]]
            return {}

        with _layers(self._models) as sizes:
            picture = self._make(order, 0, on_step).images[0]
        learned = order.image is not None and is_grid(latents[0])
        return LatentPreview.fitted(latents[0], picture) if learned else None, WORKING_LAYERS * max(sizes) / side**2

    def require_memory(self, order: ImageGenerationParams) -> None:
        """Raise `InsufficientVram` or `InsufficientResources` where a picture of that size needs more memory than is
        free."""
        needed, free = order.width * order.height * self._bytes_per_pixel, self._free_bytes()
        if needed > free:
            kind = InsufficientVram if self._device.accelerator == "cuda" else InsufficientResources
            raise kind(
                f"a picture of {order.width} x {order.height} pixels takes about {needed / 1e9:.1f} GB to make, and"
                f" {free / 1e9:.1f} GB are free; ask for a smaller one, or try again later"
            )

    def _free_bytes(self) -> int:
        if self._device.accelerator != "cuda":
            return int(psutil.virtual_memory().available)
        cuda = self._torch.cuda
        free, total = cuda.mem_get_info()
        used = cuda.memory_allocated()
        return int(min(free + cuda.memory_reserved() - used, self._device.fraction * total - used))


def _denoiser(pipeline: Any) -> Any:
    """The model that runs in each step."""
    return getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)


def _relatives(pipeline: Any) -> dict[Task, Any]:
    """The pipeline for each task, of the same weights. One that is not made for text alone does its own task only."""
    known = parameters(pipeline)
    if "strength" in known or "mask_image" in known:
        found: dict[Task, Any] = {"mask" if "mask_image" in known else "image": pipeline}
    else:
        diffusers = importlib.import_module("diffusers")
        found = {"text": pipeline}
        with suppress(ValueError):  # it has no such relative
            found["image"] = pipeline if "image" in known else diffusers.AutoPipelineForImage2Image.from_pipe(pipeline)
        with suppress(ValueError):
            found["mask"] = diffusers.AutoPipelineForInpainting.from_pipe(pipeline)
    for each in found.values():
        each.set_progress_bar_config(disable=True)
    return found


@contextmanager
def _layers(models: Iterable[Any]) -> Iterator[list[int]]:
    """The bytes that go into each layer and come out of it, while the block runs."""
    found: list[int] = []

    def look(layer: Any, arguments: Any, output: Any) -> None:
        found.append(sum(getattr(tensor, "nbytes", 0) for tensor in (*arguments, output)))

    layers = [part for model in models for part in model.modules() if not any(part.children())]
    hooks = [layer.register_forward_hook(look) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
