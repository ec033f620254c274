"""Decode an image file to pixels, within limits.

PNG, JPEG and WebP, detected by their first bytes, are decoded with Pillow; of an animation, the first frame. The files
are untrusted: workers decode them in a separate process, see `image_decoder`.
"""

from __future__ import annotations

import io
import re
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from deployments.media.image_completeness import has_all_pixels
from deployments.media.image_repair import repaired
from rbee_serve.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np

    Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]

MAX_RATIO = 100
"""Maximum ratio of the sides. Models scale the short side to a fixed size, which would turn a line of one pixel into
gigabytes."""

OPAQUE = 255
"""The alpha of a pixel that is not transparent at all."""
MIN_VISIBLE = 8
"""The alpha of a pixel from which it counts as visible."""
MIN_WHITE = 240
"""The smallest channel of a drawing that would not be seen on white."""

_MAGIC = {
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
}
"""By Pillow's format name. Its forty other formats are disabled."""

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
"""The transposition that makes an image upright, by its EXIF orientation."""


def decode(data: bytes, max_pixels: int) -> Pixels:
    """The image as viewers show it: upright, RGB in rows and columns, on white or black where it is transparent.

    Raises `InvalidRequest` that names the fault. An image of more than `max_pixels` is rejected before it is
    decoded.
    """
    return on_background(decode_layers(data, max_pixels))[0]


def decode_layers(data: bytes, max_pixels: int) -> Pixels:
    """The same as RGBA where a pixel is transparent, and else as RGB."""
    kind = kind_of(data)
    try:
        return _decoded(data, kind, max_pixels)
    except InvalidRequest:
        raise
    except Exception as exc:  # Pillow raises nearly any exception for a broken file
        with suppress(Exception):
            first, *others = (_decoded(file, kind, max_pixels) for file in repaired(data, kind))
            if all((first == other).all() for other in others):
                return first
        raise _refused("readable", f"is not a whole {kind} file: it cannot be decoded") from exc


def on_background(pixels: Pixels) -> tuple[Pixels, str | None]:
    """RGB from RGB or RGBA, and the name of the color that is shown where the image is transparent: `white`, or `black`
    behind a white drawing, which could not be seen otherwise. None where nothing is transparent."""
    import numpy
    from PIL import Image

    if pixels.shape[2] == 3:
        return pixels, None
    visible = pixels[pixels[..., 3] >= MIN_VISIBLE]
    background = "black" if len(visible) and int(visible[:, :3].min()) >= MIN_WHITE else "white"
    layer = Image.fromarray(pixels)
    image = Image.new("RGB", layer.size, background)
    image.paste(layer, mask=layer)
    return numpy.asarray(image), background


def is_animation(data: bytes) -> bool:
    """Whether a PNG or WebP file has more frames than the one that is decoded."""
    if data.startswith(b"RIFF"):
        return data[12:16] == b"VP8X" and bool(data[20] & 2)
    start, _, _ = data.partition(b"IDAT")
    return data.startswith(b"\x89PNG") and b"acTL" in start


def _decoded(data: bytes, kind: str, max_pixels: int) -> Pixels:
    import numpy
    from PIL import Image

    # Pillow itself rejects twice as much, and its WebP reader allocates the pixels before the size can be checked.
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=[kind]) as image:
            _check_size(image.width, image.height, max_pixels)
            image.load()
            if not has_all_pixels(image, data, kind):
                raise _refused(
                    "readable", f"is not a whole {kind} file: some of its pixels are missing; send all of it"
                )
            return numpy.asarray(_upright(_layers(image), _orientation(image)))
    except Image.DecompressionBombError as exc:
        raise _too_large(max_pixels) from exc


def kind_of(data: bytes, field: str = "image") -> str:
    """`PNG`, `JPEG` or `WEBP`, by the first bytes. Raises `InvalidRequest` about `field` for other files."""
    for kind, magic in _MAGIC.items():
        if magic.match(data):
            return kind
    raise InvalidRequest.of_field(field, "format", "is not a PNG, JPEG or WebP file; send one of these")


def _refused(constraint: str, message: str) -> InvalidRequest:
    return InvalidRequest.of_field("image", constraint, message)


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


def _layers(image: Any) -> Any:
    import numpy
    from PIL import Image

    if image.mode.startswith("I;16"):  # Pillow clips 16-bit values to 255
        image = Image.fromarray((numpy.asarray(image) >> 8).astype("uint8"))
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        if layers.getchannel("A").getextrema()[0] < OPAQUE:
            return layers
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Any) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # invalid EXIF data does not make an image invalid
        return 1


def _upright(image: Any, orientation: int) -> Any:
    from PIL import Image

    transposition = _UPRIGHT.get(orientation)
    return image.transpose(Image.Transpose[transposition]) if transposition else image
