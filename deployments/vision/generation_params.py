"""What pictures are wanted, and which of them a pipeline can make."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rbee_serve.errors import Violation

Task = Literal["text", "image", "mask"]
"""What a picture is made from: a text, or also a picture, or also a picture of which only a part is to change."""

MAX_SIDE_RATIO = 2
"""How many times the side that a model was made for a picture's may be. Beyond that motives repeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageGenerationParams:
    """The pictures that are wanted, one of each seed. `image` and `mask` are pictures of Pillow's. What is None is left
    to the pipeline."""

    prompt: str
    width: int
    height: int
    seeds: tuple[int, ...]
    negative_prompt: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    strength: float | None = None
    image: Any = None
    mask: Any = None
    lora: str | None = None
    preview_every: int = 0

    @property
    def task(self) -> Task:
        """What they are made from."""
        return "text" if self.image is None else "image" if self.mask is None else "mask"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height

    def arguments(self) -> dict[str, Any]:
        """What is wanted, by the names that pipelines have for it. Pictures are scaled to the size that is wanted."""
        resample = importlib.import_module("PIL.Image").Resampling.LANCZOS
        named = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "image": self.image and self.image.resize(self.size, resample),
            "mask_image": self.mask and self.mask.convert("L").resize(self.size, resample),
            "strength": self.strength,
            "width": self.width,
            "height": self.height,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
        }
        return {name: value for name, value in named.items() if value is not None}

    def all_anew(self, *, with_mask: bool) -> ImageGenerationParams:
        """The same for a model that can only change a picture: all of a grey one is to change."""
        pillow = importlib.import_module("PIL.Image")
        mask = pillow.new("L", self.size, "white") if with_mask else None
        return replace(self, image=pillow.new("RGB", self.size, "gray"), mask=mask, strength=1.0)


class PipelineLimits:
    """What pipelines of the same weights can make, one for each task."""

    def __init__(self, pipelines: Mapping[Task, Any], loras: Sequence[str], max_side: int | None) -> None:
        self._parameters = {task: parameters(pipeline) for task, pipeline in pipelines.items()}
        self._loras = loras
        pipeline = next(iter(pipelines.values()))
        self.multiple, side = _sizes(pipeline)
        """What the sides of a picture are multiples of."""
        self.max_side = max_side or MAX_SIDE_RATIO * side
        """The longest side in pixels."""
        self.side = min(side, self._down(self.max_side))
        """The side that the model was made for."""
        self.changes = [task for task, known in self._parameters.items() if task != "text" and "strength" in known]
        """The tasks that change a picture by more or less."""
        self.previews = True
        """Whether it can be told what a picture will be like."""

    def size_of(self, image: Any) -> tuple[int, int]:
        """Width and height of what is made from this picture, or from none, if nothing else is wanted."""
        if image is None:
            return self.side, self.side
        scale = min(1, self.max_side / max(image.size))
        return self._down(image.width * scale), self._down(image.height * scale)

    def violations(self, order: ImageGenerationParams) -> Iterator[Violation]:
        """All that is wrong with an order."""
        for field, pixels in (("width", order.width), ("height", order.height)):
            if pixels > self.max_side:
                yield _wrong(field, f"<= {self.max_side}", f"must be at most {self.max_side} with this model", pixels)
            if pixels % self.multiple:
                near = f"such as {self._down(pixels)}"
                multiple = f"a multiple of {self.multiple}"
                yield _wrong(field, multiple, f"must be {multiple} with this model, {near}", pixels)
        if order.lora is not None and order.lora not in self._loras:
            known = ", ".join(self._loras) or "none"
            yield _wrong("lora", f"one of: {known}", f"no such adapter; configured are: {known}", order.lora)
        if order.preview_every and not self.previews:
            yield _wrong("preview_every", "0", "is not possible with this model; leave it out", order.preview_every)
        yield from self._of_task(order)

    def _of_task(self, order: ImageGenerationParams) -> Iterator[Violation]:
        if order.task not in self._parameters:
            if order.task != "text":
                yield Violation(order.task, "text only", "is nothing that this model can start from; leave it out")
            return
        known = self._parameters[order.task]
        for field in ("negative_prompt", "guidance_scale", "strength"):
            if getattr(order, field) is not None and field not in known:
                yield Violation(field, "left out", "is unknown to this model; leave it out")
        if order.task != "text" and "strength" in known:
            steps = order.steps or known["num_inference_steps"].default
            strength = order.strength or known["strength"].default
            if int(steps * strength) < 1:
                told = f"leaves none of {steps} steps; raise either"
                yield _wrong("strength", "steps * strength >= 1", told, strength)

    def _down(self, pixels: float) -> int:
        return max(1, int(pixels / self.multiple)) * self.multiple


def parameters(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    """What a pipeline, or its class, can be called with."""
    return inspect.signature(pipeline.__call__).parameters


def _sizes(pipeline: Any) -> tuple[int, int]:
    """What the sides of a picture are multiples of, and the side that the model was made for."""
    config = (getattr(pipeline, "unet", None) or pipeline.transformer).config
    scale = getattr(pipeline, "vae_scale_factor", 8)
    multiple = max(scale * _first(config.get("patch_size") or 1), pipeline.image_processor.config.vae_scale_factor)
    height = parameters(pipeline).get("height")
    if height is not None and height.default:
        return multiple, height.default
    sample = getattr(pipeline, "default_sample_size", None) or config.get("sample_size") or 1024 // scale
    return multiple, _first(sample) * scale


def _first(number: Any) -> int:
    return int(number if isinstance(number, int) else max(number))


def _wrong(field: str, constraint: str, message: str, value: Any) -> Violation:
    return Violation(field, constraint, message, value, True)
