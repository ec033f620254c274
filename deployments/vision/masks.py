"""Masks of inpainting: what of a file is to change, what a model has to generate for it, and what comes of it.

A mask has three forms:

    of the file ──→ `mask_of`    0 stays exactly, 255 is generated, between them both are blended
    of the size ──→ `scaled`     each pixel is the largest of those that become it, so a thin line stays
    of the model ──→ `cells`     the whole of each latent with a pixel that is not 0, since a latent is generated or not

diffusers takes a value from 128 as masked, and the value of a latent from a corner of it, so that a line of a few
pixels may be lost. A mask of cells is the same for both readings.
"""

from __future__ import annotations

from typing import Any

NOISE = 8
"""Values below this are 0, and as near to 255 they are 255: a mask in JPEG has such noise."""
WHITE = 255


def mask_of(image: Any, alpha: Any) -> tuple[Any, str | None]:
    """The mask, an image of Pillow's in the mode L, and a sentence on how transparency was read, if there is any.

    `image` is what the file shows, in RGB, and `alpha` where it is transparent. In a drawing in black and white on
    nothing the white changes. Of any other file with transparency the transparent part changes, as in OpenAI's API.
    """
    import numpy as np
    from PIL import Image

    values = np.asarray(image.convert("L"))
    sentence = None
    if alpha is not None:
        opacity = np.asarray(alpha)
        drawn = np.asarray(image)[opacity == WHITE]
        is_white = (drawn > WHITE - NOISE).all(axis=1)
        is_drawing = is_white.any() and (is_white | (drawn < NOISE).all(axis=1)).all()
        values = np.minimum(values, opacity) if is_drawing else WHITE - opacity
        sentence = "In mask " + (
            "white changes, and what is transparent stays" if is_drawing else "the transparent part changes"
        )
    values = np.where(values < NOISE, 0, np.where(values > WHITE - NOISE, WHITE, values))
    return Image.fromarray(values.astype(np.uint8)), sentence


def scaled(mask: Any, size: tuple[int, int]) -> Any:
    """The mask in another size; a side that becomes shorter keeps the largest values."""
    import numpy as np
    from PIL import Image

    values = np.asarray(mask)
    for axis, new in ((0, size[1]), (1, size[0])):
        old = values.shape[axis]
        if new < old:
            values = np.maximum.reduceat(values, np.arange(new) * old // new, axis)
    return Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)


def cells(mask: Any, side: int) -> Any:
    """A mask whose sides are multiples of `side`, white in each square of that side with a pixel that is not 0."""
    import numpy as np
    from PIL import Image

    columns, rows = mask.width // side, mask.height // side
    largest = np.asarray(mask).reshape(rows, side, columns, side).max(axis=(1, 3))
    whole = np.where(largest > 0, WHITE, 0).astype(np.uint8)
    return Image.fromarray(whole.repeat(side, 0).repeat(side, 1))


def padded(image: Any, size: tuple[int, int]) -> Any:
    """The image on a canvas of `size`, with its last row and column repeated."""
    import numpy as np
    from PIL import Image

    pixels = np.asarray(image)
    below, right = size[1] - pixels.shape[0], size[0] - pixels.shape[1]
    return Image.fromarray(np.pad(pixels, [(0, below), (0, right), *[(0, 0)] * (pixels.ndim - 2)], mode="edge"))
