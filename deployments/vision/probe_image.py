"""The image that a pipeline generates while it is loaded, and whether it is one.

Where a number becomes too large for the type of the weights, the rest of the computation is NaN, and the image black.
No error is raised. The decoder of Stable Diffusion XL is known for it: in float16 it needs `force_upcast` in its
configuration (https://huggingface.co/madebyollin/sdxl-vae-fp16-fix).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from rbee_serve.errors import ConfigurationError

PROBE_UNITS = 32
"""The side of the probe image, generated while loading, in multiples of the smallest side: a thousand colours are
enough to fit a preview map to them."""

PROBE_STEPS = 50
"""The probe runs the last of this many steps: the samplers in use all accept this number."""

REMEDIES = {"float16": "set engine.dtype to bfloat16", "bfloat16": "set engine.dtype to float32"}
"""For a type that is too small for the numbers of a model."""


def is_nsfw(made: Any) -> bool:
    """Whether the safety checker has blacked out the first image of a pipeline's output."""
    return bool((getattr(made, "nsfw_content_detected", None) or [False])[0])


def quiet_nan() -> AbstractContextManager[Any]:
    """While the block runs, numpy does not warn of NaN that becomes a colour."""
    import numpy as np

    return np.errstate(invalid="ignore")


def require_image(made: Any, latents: Any, models: Sequence[Any]) -> None:
    """Raise `ConfigurationError` where the image of a pipeline's output has a single colour, unless the safety checker
    has made it so, or the latents are not finite. `models` are those of the pipeline."""
    one_color = all(low == high for low, high in made.images[0].convert("RGB").getextrema())
    if (one_color and not is_nsfw(made)) or not bool(latents.isfinite().all()):
        dtype = str(max(models, key=parameter_count).dtype).removeprefix("torch.")
        remedy = REMEDIES.get(dtype, "its files may be damaged, so fetch them again or choose another model")
        raise ConfigurationError(f"the model generates no image in {dtype}, only a single colour or NaN; {remedy}")


def parameter_count(model: Any) -> int:
    """The number of a model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
