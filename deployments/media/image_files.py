"""From an image file to pixels, within bounds.

PNG, JPEG and WebP, told apart by their first bytes, are read with Pillow. Of an animation the first picture is taken.
Files come from strangers: workers decode them in a process of its own, see `image_decoder`.
"""

from __future__ import annotations

import importlib
import io
import re
import warnings
from typing import TYPE_CHECKING, Any

from rbee_serve.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np

    Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]

MAX_RATIO = 100
"""How many times as wide as high a picture may be, or as high as wide: models scale the short side to their own, and
a line of one pixel would grow into gigabytes."""

_MAGIC = {
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
}
"""By the names of Pillow's readers. It has forty more, which no file reaches."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
"""What sets a picture upright, by the orientation that its EXIF tells."""


def decode(data: bytes, max_pixels: int) -> Pixels:
    """The picture as it is meant to be seen: upright, RGB in rows and columns, white where it is transparent.

    Raises `InvalidRequest` that says what is wrong with the file; for a picture of more than `max_pixels`, before any
    of it is decoded.
    """
    pillow: Any = importlib.import_module("PIL.Image")
    numpy: Any = importlib.import_module("numpy")
    kind = kind_of(data)
    # Pillow itself refuses twice as much; its WebP reader makes room for the picture before anybody can look.
    pillow.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings(action="ignore"), pillow.open(io.BytesIO(data), formats=[kind]) as image:
            _check_size(image.width, image.height, max_pixels)
            image.load()
            return numpy.asarray(_upright(_rgb(image), _orientation(image)))  # type: ignore[no-any-return]
    except InvalidRequest:
        raise
    except pillow.DecompressionBombError as exc:
        raise _too_large(max_pixels) from exc
    except Exception as exc:  # a broken file makes Pillow raise nearly anything
        raise _refused("readable", f"is not a whole {kind} file: it cannot be decoded") from exc


def kind_of(data: bytes, field: str = "image") -> str:
    """`PNG`, `JPEG` or `WEBP`, by the first bytes. Raises `InvalidRequest` about `field` for all else."""
    for kind, magic in _MAGIC.items():
        if magic.match(data):
            return kind
    raise InvalidRequest.of_field(field, "format", "is not a PNG, JPEG or WebP file; send one of these")


def _refused(constraint: str, sentence: str) -> InvalidRequest:
    return InvalidRequest.of_field("image", constraint, sentence)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise _too_large(max_pixels)
    if max(width, height) > MAX_RATIO * min(width, height):
        raise _refused(
            f"ratio <= {MAX_RATIO}",
            f"has {width} x {height} pixels: one side must be at most {MAX_RATIO} times as long as the other",
        )


def _too_large(max_pixels: int) -> InvalidRequest:
    return _refused(f"pixels <= {max_pixels}", f"must have at most {max_pixels} pixels; scale it down")


def _rgb(image: Any) -> Any:
    pillow = importlib.import_module("PIL.Image")
    if image.mode.startswith("I;16"):  # Pillow cuts each to 255
        image = pillow.fromarray((importlib.import_module("numpy").asarray(image) >> 8).astype("uint8"))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = pillow.new("RGB", image.size, "white")
        image.paste(layer, mask=layer)
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Any) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # what a camera or an editor wrote badly is no reason to refuse a picture
        return 1


def _upright(image: Any, orientation: int) -> Any:
    pillow = importlib.import_module("PIL.Image")
    turn = _UPRIGHT.get(orientation)
    return image.transpose(pillow.Transpose[turn]) if turn else image
