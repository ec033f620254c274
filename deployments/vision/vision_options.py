"""`engine:` of the vision worker's tasks `classify` and `embed`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class VisionOptions(BaseModel):
    """`engine:` of a vision worker on transformers."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """The type of the weights; as they are stored, for `auto`."""
    attn_implementation: str | None = None
    """The attention implementation of transformers, such as `sdpa`."""
    batch_images: Annotated[int, Field(ge=1)] | None = None
    """Images, or texts, of the largest batch: 8 on a CPU, 16 on Metal, 64 on a GPU if left out."""
    decoders: Annotated[int, Field(ge=1, le=256)] | None = None
    """Processes that decode files: 1 on a CPU, 2 on Metal, 4 on a GPU if left out."""
    max_pixels: Annotated[int, Field(ge=1, le=100_000_000)] = 50_000_000
    """The largest image, as the product of its sides. Decoding takes up to 25 bytes for each pixel."""
