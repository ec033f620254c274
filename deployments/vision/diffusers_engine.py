"""Image generation by a pipeline of diffusers.

Images of one request are generated one after another, each from its own seed: the first one is ready early, the memory
is that of one image, and each is the image that the bare pipeline makes of its seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from deployments.torch_runtime.cuda_graphs import GraphedForward, Record, Replay, cuda_recorder
from deployments.vision.diffusers_loader import DiffusersOptions
from deployments.vision.generation_params import ImageGenerationParams, PipelineLimits, Task, parameters
from deployments.vision.image_memory import ImageMemory
from deployments.vision.latent_preview import LatentPreview, is_grid, palette
from deployments.vision.probe_image import (
    PROBE_STEPS,
    PROBE_UNITS,
    is_nsfw,
    parameter_count,
    quiet_nan,
    require_image,
)
from deployments.vision.prompt_reader import PromptReader
from rbee_serve.worker.engine_thread import Sink
from rbee_serve.worker.spec import Device

LARGE_BLOCK = 10_000_000
"""Parameters of a denoiser block from which a forward pass may take so long on a CPU that the layers within must report
steps. A hook on each layer costs a twentieth of a small denoiser's time; the other models run once per image. On a GPU
layers are only launched, so steps within a forward pass would mean nothing."""

ACTIVATION_FACTOR = 2
"""Activations that a forward pass holds at once, as a multiple of the input and output of its largest layer."""


class DenoisingStep(NamedTuple):
    """`step` of the `total` denoising steps of all images of a request."""

    step: int
    total: int


class GeneratedImage(NamedTuple):
    """An image of Pillow's; a small preview after `step` steps, if that is given. An `nsfw` one is black."""

    image: Any
    step: int | None = None
    nsfw: bool = False


Item = DenoisingStep | GeneratedImage


class DiffusersEngine:
    """A loaded pipeline, and the pipelines for other tasks that share its weights. For use in one thread."""

    def __init__(self, pipeline: Any, options: DiffusersOptions, device: Device) -> None:
        import torch

        self._pipeline, self._options, self._device = pipeline, options, device
        self._pipelines = _pipelines_by_task(pipeline)
        self._models = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
        self._dtypes = [model.dtype for model in self._models]
        self._report_step: Callable[[], None] = lambda: None
        self._graphed_denoiser: GraphedForward | None = None
        self._size = (0, 0)
        """Width and height of the image that is being generated."""
        self._last_step: Any = None
        """The CUDA event at the end of the step that was launched last."""
        self.limits = PipelineLimits(self._pipelines, tuple(options.lora_modules), options.max_side)
        """What it can generate."""
        self.prompts = PromptReader(pipeline)
        """What it reads of a prompt."""
        side = min(self.limits.side, PROBE_UNITS * self.limits.multiple)
        self._preview, bytes_per_pixel = self._probe(side)
        self.limits.previews = self._preview is not None
        graphs = device.accelerator == "cuda" and not options.enforce_eager
        pool = torch.cuda.graph_pool_handle() if graphs else None
        self.memory = ImageMemory(device, bytes_per_pixel, pool)
        """What an image takes of memory, and what there is."""
        self.limits.restrict(self.memory.max_pixels((side, side)))
        if graphs:
            denoiser = _denoiser(pipeline)
            record = partial(self._record, cuda_recorder("cuda", pool))
            denoiser.forward = self._graphed_denoiser = GraphedForward(denoiser.forward, record)
        for model in self._models:
            large = LARGE_BLOCK if model is _denoiser(pipeline) else 0
            if not large or device.accelerator == "cpu":
                for block in _blocks(model, large):
                    block.register_forward_pre_hook(lambda *_: self._report_step())

    def generate(self, params: ImageGenerationParams, sink: Sink[Item]) -> None:
        """Put each image into `sink`, with the steps and the previews before it."""
        self._report_step = sink.step
        self._size = params.size
        if self._graphed_denoiser is not None and not self.memory.fits_beside_graphs(params.size):
            self._graphed_denoiser.clear()
        for index, seed in enumerate(params.seeds):
            made = self._run(params, seed, partial(self._on_step, params, sink, index))
            nsfw = is_nsfw(made)
            image = params.finished(made.images[0], whole=nsfw)
            sink.put(GeneratedImage(image, nsfw=nsfw))

    def _on_step(
        self,
        params: ImageGenerationParams,
        sink: Sink[Item],
        image_index: int,
        pipeline: Any,
        index: int,
        time: Any,
        tensors: Any,
    ) -> dict[str, Any]:
        """The pipeline's callback after each step of an image; the pipeline's own arguments come last."""
        self._limit_launches()
        step, total = index + 1, getattr(pipeline, "num_timesteps", None) or len(pipeline.scheduler.timesteps)
        sink.put(DenoisingStep(image_index * total + step, total * len(params.seeds)))
        if self._preview and params.preview_every and step % params.preview_every == 0 and step < total:
            sink.put(GeneratedImage(self._preview.image(tensors["latents"], params.width / params.height), step))
        return {}

    def _record(self, record: Record, run: Callable[[Sequence[Any]], Any], tensors: Sequence[Any]) -> Replay:
        """`record`, unless the graph would leave too little memory for the rest of the image, such as its decoder."""
        replay = record(run, tensors)
        if not self.memory.fits_beside_graphs(self._size) and self._graphed_denoiser is not None:
            del replay
            self._graphed_denoiser.clear()  # graphs share their memory, so it is free without all of them only
            raise ValueError("the memory of the graph is needed to generate the image")
        return replay

    def _limit_launches(self) -> None:
        """Keep the CPU at most one step ahead of the GPU, so that progress is accurate and a cancellation takes at most
        two steps."""
        if self._device.accelerator == "cuda":
            import torch

            before, self._last_step = self._last_step, torch.cuda.Event()
            self._last_step.record()
            if before is not None:
                before.synchronize()

    def _run(self, params: ImageGenerationParams, seed: int, on_step: Callable[..., dict[str, Any]]) -> Any:
        """The pipeline's output for that seed."""
        import torch

        if params.lora is not None:
            self._pipeline.enable_lora()
            self._pipeline.set_adapters(params.lora)
        elif self._options.lora_modules:
            self._pipeline.disable_lora()
        if self._graphed_denoiser is not None:
            self._graphed_denoiser.weights = params.lora
        if params.task not in self._pipelines:
            params = params.from_grey(with_mask="mask" in self._pipelines)
        pipeline = self._pipelines[params.task]
        known = parameters(pipeline)
        try:
            with torch.inference_mode():  # the pipelines' own `no_grad` costs more per operation
                return pipeline(
                    **{name: value for name, value in params.arguments().items() if name in known},
                    generator=torch.Generator("cpu").manual_seed(seed),
                    callback_on_step_end=on_step,
                )
        except BaseException:
            # Some pipelines decode in another type than they denoise in, and convert the model for that time.
            for model, dtype in zip(self._models, self._dtypes, strict=True):
                if model.dtype != dtype:
                    model.to(dtype)
            raise

    def _probe(self, side: int) -> tuple[LatentPreview | None, float]:
        """The map from latents to colours, and the bytes per pixel that generation takes. Measured with one image of
        that side: a palette where the model can start from an image, in a last step that hardly changes it."""
        params = ImageGenerationParams(prompt="An image", width=side, height=side, steps=1, seeds=(0,))
        if self.limits.with_strength:
            colors = palette(side, self.limits.multiple)
            mask = None if "image" in self.limits.with_strength else colors.convert("L").point(lambda _: 255)
            params = replace(params, image=colors, mask=mask, steps=PROBE_STEPS, strength=1 / PROBE_STEPS)
        latents: list[Any] = []

        def on_step(pipeline: Any, index: int, time: Any, tensors: Any) -> dict[str, Any]:
            latents[:] = [tensors["latents"]]
            return {}

        with _layer_bytes(self._models) as sizes, quiet_nan():
            made = self._run(params, 0, on_step)
        require_image(made, latents[0], self._models)
        image = made.images[0]
        can_fit = params.image is not None and is_grid(latents[0])
        preview = LatentPreview.fitted(latents[0], image) if can_fit else None
        return preview, ACTIVATION_FACTOR * max(sizes) / side**2


def _denoiser(pipeline: Any) -> Any:
    return getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)


def _pipelines_by_task(pipeline: Any) -> dict[Task, Any]:
    """The pipeline for each task, with the same weights. One that needs more than a text does its own task only."""
    known = parameters(pipeline)
    if "strength" in known or "mask_image" in known:
        found: dict[Task, Any] = {"mask" if "mask_image" in known else "image": pipeline}
    else:
        from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

        found = {"text": pipeline}
        with suppress(ValueError):  # diffusers has none for this kind
            found["image"] = pipeline if "image" in known else AutoPipelineForImage2Image.from_pipe(pipeline)
        with suppress(ValueError):
            found["mask"] = AutoPipelineForInpainting.from_pipe(pipeline)
    for each in found.values():
        each.set_progress_bar_config(disable=True)
    return found


def _blocks(model: Any, large: int) -> Iterator[Any]:
    """The blocks in the model's outermost module lists, and the parts of those with more than `large` parameters."""
    import torch

    is_list = isinstance(model, torch.nn.ModuleList)
    for part in model.children():
        if is_list:
            yield part
        if not is_list or parameter_count(part) > large:
            yield from _blocks(part, large)


@contextmanager
def _layer_bytes(models: Iterable[Any]) -> Iterator[list[int]]:
    """The bytes of input and output of each layer call, while the block runs."""
    found: list[int] = []

    def record(layer: Any, arguments: Any, output: Any) -> None:
        found.append(sum(getattr(tensor, "nbytes", 0) for tensor in (*arguments, output)))

    layers = [part for model in models for part in model.modules() if not any(part.children())]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
