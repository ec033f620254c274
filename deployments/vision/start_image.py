"""The start image and the mask of a request, in the size of the output."""

from __future__ import annotations

from typing import Any, NamedTuple

from deployments.media.image_decoder import ImageDecoder
from deployments.vision.generation_params import PipelineLimits
from deployments.vision.masks import mask_of, scaled
from rbee_serve.errors import InvalidRequest

MAX_PIXELS = 32_000_000
"""Of an image in a request."""


class StartImage(NamedTuple):
    """Images of Pillow's, and a sentence for a narration about each thing that was changed in them."""

    size: tuple[int, int]
    """Width and height of the output."""
    image: Any
    """In RGB; None where an image is generated from a text alone."""
    mask: Any
    """In L; None where all of the image changes."""
    changes: list[str]

    @classmethod
    def read(
        cls, decoder: ImageDecoder, limits: PipelineLimits, image: bytes | None, mask: bytes | None,
        width: int | None, height: int | None,
    ) -> StartImage:  # fmt: skip
        """Decode the files of a request, and scale them to the size of the output: `width` and `height`, else those of
        the start image within the limits of the model. Raises `InvalidRequest` about `image` or `mask`."""
        decoded = None if image is None else decoder.read(image, "image")
        default = limits.size_of(decoded and decoded.image)
        size = (width or default[0], height or default[1])
        if decoded is None:
            return cls(size, None, None, [])
        changes = decoded.changes("image")
        start = _resized("image", decoded.image, size, changes)
        if mask is None:
            return cls(size, start, None, changes)
        file = decoder.read(mask, "mask")
        area, sentence = mask_of(file.image, file.alpha)
        if not area.getbbox():
            raise InvalidRequest.of_field(
                "mask", "a white part", "has no white part, so nothing would change; make white what is to change"
            )
        changes += ["Of the animation in mask only the first frame is used"] if file.is_animation else []
        changes += [sentence] if sentence else []
        return cls(size, start, _resized("mask", area, size, changes), changes)


def _resized(field: str, image: Any, size: tuple[int, int], changes: list[str]) -> Any:
    from PIL import Image

    if image.size == size:
        return image
    changes.append(f"Scaling {field} from {image.width} x {image.height} to {size[0]} x {size[1]} pixels")
    return scaled(image, size) if image.mode == "L" else image.resize(size, Image.Resampling.LANCZOS)
