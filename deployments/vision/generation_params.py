"""Parameters of image generation, and the limits of a pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt, lcm
from typing import Any, Literal

from deployments.vision.masks import cells, padded
from rbee_serve.errors import Violation

Task = Literal["text", "image", "mask"]
"""What an image is generated from: a text, or also an image (image-to-image), or also an image and a mask
(inpainting)."""

MAX_SIDE_RATIO = 2
"""The longest side of an image, as a multiple of the side that the model was trained for. Beyond that motifs repeat."""

SHRINK = 0.99
"""The factor by which a start image is scaled down until it fits into memory."""

INPAINTING_MULTIPLE = 8
"""Some inpainting pipelines, such as that of Stable Diffusion XL, take no other sides, whatever the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageGenerationParams:
    """What to generate: one image for each seed. `image` and `mask` are images of Pillow's of `output_size`, in RGB and
    in L. The pipeline decides what is None."""

    prompt: str
    width: int
    """Of the canvas that the model generates, as `height`: a multiple of `cell`."""
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
    output_size: tuple[int, int] | None = None
    """Width and height of the image, cut from the canvas; those of the canvas if left out."""
    cell: int = 1
    """The side of a square of pixels that the model generates or leaves as a whole."""

    @property
    def task(self) -> Task:
        """What the images are generated from."""
        return "text" if self.image is None else "image" if self.mask is None else "mask"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.width, self.height

    def arguments(self) -> dict[str, Any]:
        """The arguments of a pipeline. Images are on the canvas."""
        named = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "image": self.image and padded(self.image, self.size),
            "mask_image": self.mask and cells(padded(self.mask, self.size), self.cell),
            "strength": self.strength,
            "width": self.width,
            "height": self.height,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
        }
        return {name: value for name, value in named.items() if value is not None}

    def finished(self, canvas: Any, *, whole: bool = False) -> Any:
        """The image on the generated canvas, with the pixels of the start image where the mask leaves them; without
        them if `whole`."""
        from PIL import Image

        if canvas.size != self.size:  # an editing pipeline may choose a size of its own
            canvas = canvas.resize(self.size, Image.Resampling.LANCZOS)
        image = canvas.crop((0, 0, *(self.output_size or self.size)))
        return image if whole or self.mask is None else Image.composite(image.convert("RGB"), self.image, self.mask)

    def from_grey(self, *, with_mask: bool) -> ImageGenerationParams:
        """The same for a model that can only change an image: all of a grey one changes."""
        from PIL import Image

        mask = Image.new("L", self.size, "white") if with_mask else None
        return replace(self, image=Image.new("RGB", self.size, "gray"), mask=mask, strength=1.0)


class PipelineLimits:
    """What pipelines of the same weights can generate, one for each task."""

    def __init__(self, pipelines: Mapping[Task, Any], loras: Sequence[str], max_side: int | None) -> None:
        self._parameters = {task: parameters(pipeline) for task, pipeline in pipelines.items()}
        self._loras = loras
        pipeline = next(iter(pipelines.values()))
        self.multiple, side = _sizes(pipeline)
        """The sides of an image are multiples of this."""
        self.max_side = max_side or MAX_SIDE_RATIO * side
        """The longest side in pixels."""
        self.side = min(side, self._round_down(self.max_side))
        """The side that the model was trained for."""
        self.with_strength = [
            task for task, known in self._parameters.items() if task != "text" and "strength" in known
        ]
        """The tasks that change an image by a `strength`."""
        self.max_pixels: int | None = None
        """The most pixels of an image, width times height, if memory limits them."""
        self.previews = True
        """Whether previews are possible."""

    def restrict(self, max_pixels: int | None) -> None:
        """Limit images to so many pixels, the default size too."""
        self.max_pixels = max_pixels
        if max_pixels is not None:
            self.side = min(self.side, self._round_down(isqrt(max_pixels)))

    def size_of(self, image: Any) -> tuple[int, int]:
        """The default width and height of what is generated from this image, or from none."""
        if image is None:
            return self.side, self.side
        scale = min(1.0, self._round_down(self.max_side) / max(image.size))
        while True:
            size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            width, height = self.canvas_of(size, has_mask=True)  # which is at least as large as without a mask
            if self.max_pixels is None or width * height <= self.max_pixels or max(size) <= self.multiple:
                return size
            scale *= SHRINK

    def canvas_of(self, size: tuple[int, int], *, has_mask: bool) -> tuple[int, int]:
        """The smallest canvas for an image of that width and height."""
        multiple = lcm(self.multiple, INPAINTING_MULTIPLE) if has_mask else self.multiple
        width, height = (-(-pixels // multiple) * multiple for pixels in size)
        return width, height

    def violations(self, params: ImageGenerationParams) -> Iterator[Violation]:
        """All parameters that are outside of the limits. An image without a start image fills its canvas."""
        for field, pixels in zip(("width", "height"), params.output_size or params.size, strict=True):
            if pixels > self.max_side:
                limit = self.max_side
                yield _violation(field, f"<= {limit}", f"must be at most {limit} with this model", pixels)
            if pixels % self.multiple and params.image is None:
                near = f"such as {self._round_down(pixels)}"
                multiple = f"a multiple of {self.multiple}"
                yield _violation(field, multiple, f"must be {multiple} with this model, {near}", pixels)
        if self.max_pixels is not None and params.width * params.height > self.max_pixels:
            side = self._round_down(isqrt(self.max_pixels))
            message = f"times height must be at most {self.max_pixels} to fit into memory, such as {side} x {side}"
            yield _violation("width", f"width * height <= {self.max_pixels}", message, params.width)
        if params.lora is not None and params.lora not in self._loras:
            known = ", ".join(self._loras) or "none"
            yield _violation("lora", f"one of: {known}", f"no such adapter; configured are: {known}", params.lora)
        if params.preview_every and not self.previews:
            message = "is not possible with this model; leave it out"
            yield _violation("preview_every", "0", message, params.preview_every)
        yield from self._violations_of_task(params)

    def _violations_of_task(self, params: ImageGenerationParams) -> Iterator[Violation]:
        if params.task not in self._parameters:
            if params.task != "text":
                yield Violation(params.task, "text only", "is nothing that this model can start from; leave it out")
            return
        known = self._parameters[params.task]
        for field in ("negative_prompt", "guidance_scale", "strength"):
            if getattr(params, field) is not None and field not in known:
                yield Violation(field, "left out", "is unknown to this model; leave it out")
        if params.task != "text" and "strength" in known:
            steps = params.steps or known["num_inference_steps"].default
            strength = params.strength or known["strength"].default
            if int(steps * strength) < 1:
                message = f"leaves none of {steps} steps; raise either"
                yield _violation("strength", "steps * strength >= 1", message, strength)

    def _round_down(self, pixels: float) -> int:
        return max(1, int(pixels / self.multiple)) * self.multiple


def parameters(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    """The call parameters of a pipeline, or of its class."""
    return inspect.signature(pipeline.__call__).parameters


def _sizes(pipeline: Any) -> tuple[int, int]:
    """The number that the sides of an image are multiples of, and the side that the model was trained for."""
    config = (getattr(pipeline, "unet", None) or pipeline.transformer).config
    scale = getattr(pipeline, "vae_scale_factor", 8)
    multiple = max(scale * _largest(config.get("patch_size") or 1), pipeline.image_processor.config.vae_scale_factor)
    height = parameters(pipeline).get("height")
    if height is not None and height.default:
        return multiple, height.default
    sample = getattr(pipeline, "default_sample_size", None) or config.get("sample_size") or 1024 // scale
    return multiple, _largest(sample) * scale


def _largest(number: Any) -> int:
    return int(number if isinstance(number, int) else max(number))


def _violation(field: str, constraint: str, message: str, value: Any) -> Violation:
    return Violation(field, constraint, message, value, True)
