"""An image worker with options, an upload and batches: it finds the closest colours of a palette in parts of an image.

    type: "image_worker:SPEC"
    engine: {palette: {red: [255, 0, 0], sky: [135, 206, 235]}, batch_cells: 512}

The image is cut into a grid of cells, and the cells of all requests are classified together in batches, as a model
would classify crops of images. The file comes from an untrusted client, so it is decoded in a process of its own.
"""

from __future__ import annotations

import base64
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from deployments.media.image_decoder import ImageDecoder
from rbee_serve.worker import (
    BatchedBackend,
    EngineOptions,
    FileField,
    InferenceRequest,
    Label,
    LabelOutput,
    LoadContext,
    WorkerSpec,
    parse_engine,
)

CELL = 16
"""Pixels on each side of a cell."""
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mNoaGgAAAMEAYF1LgG8AAAAAElFTkSuQmCC")
"""A grey PNG of 1 x 1 pixel."""


class ColorRequest(InferenceRequest):
    """An image, and into how many cells it is cut."""

    image: Annotated[bytes, Field(min_length=1, max_length=32 * 2**20, repr=False), FileField("image")]
    """The file: PNG, JPEG or WebP."""
    grid: Annotated[int, Field(ge=1, le=128)] = 1
    """Cells on each side of the image. Each cell is one output, row by row."""


class ColorOptions(EngineOptions):
    """`engine:` of this worker."""

    palette: dict[str, tuple[int, int, int]] = Field({"black": (0, 0, 0), "white": (255, 255, 255)}, min_length=1)
    """The colours by name, as red, green and blue from 0 to 255."""
    batch_cells: Annotated[int, Field(ge=1, le=4096)] = 128
    """The largest batch."""


class ColorBackend(BatchedBackend[ColorRequest, Any, LabelOutput]):
    """Finds the closest colour of each pixel. An item is a cell: an array of uint8, CELL * CELL pixels by 3 colours."""

    def __init__(self, context: LoadContext) -> None:
        options = parse_engine(ColorOptions, context.worker)
        super().__init__(context, max_batch=options.batch_cells)
        self._palette = options.palette
        self._decoder = ImageDecoder(max_pixels=50_000_000)

    def prepare(self, request: ColorRequest) -> list[Any]:
        """Decode the image and cut it. Raises `InvalidRequest` for a file that cannot be decoded."""
        import numpy as np

        grid = request.grid
        image = self._decoder.decode(request.image).resize((grid * CELL, grid * CELL))
        return list(np.asarray(image).reshape(grid, CELL, grid, CELL, 3).swapaxes(1, 2).reshape(-1, CELL * CELL, 3))

    def predict_batch(self, items: list[Any]) -> list[LabelOutput]:
        """The colours of each cell with their shares, the largest first."""
        import numpy as np

        distances = ((np.stack(items)[:, :, None] - np.array([*self._palette.values()], "f4")) ** 2).sum(-1)
        shares = (distances.argmin(-1)[:, :, None] == np.arange(len(self._palette))).mean(1)
        return [LabelOutput(labels=self._labels(row), i=0) for row in shares.tolist()]

    def _labels(self, shares: list[float]) -> tuple[Label, ...]:
        ranked = sorted(zip(shares, self._palette, strict=True), reverse=True)
        return tuple(Label(label=name, score=score) for score, name in ranked)

    def close(self) -> None:
        """End the model's thread and the decoder's process."""
        super().close()
        self._decoder.close()


SPEC = WorkerSpec(
    name="colors",
    request=ColorRequest,
    outputs=(LabelOutput,),
    load=ColorBackend,
    warm_up=lambda: ColorRequest(image=PIXEL),
    long_request=lambda: ColorRequest(image=PIXEL, grid=128),
    modules=("numpy", "PIL"),
    extra="vision",
    needs_model=False,
    check=partial(parse_engine, ColorOptions),
)
