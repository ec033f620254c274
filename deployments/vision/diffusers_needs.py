"""What a pipeline of diffusers needs of its GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deployments.torch_runtime.loaded_type import element_bytes
from deployments.vision.diffusers_loader import DiffusersOptions
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import Figure, MemoryNeeds
from rbee_serve.memory_plan.transformer_config import dimension

MIB = 1024**2

GRAPHS_BYTES = 512 * MIB
"""The denoiser's CUDA graph and the libraries' workspaces: an estimate."""
EAGER_BYTES = 256 * MIB
"""A denoising step and the workspaces without a graph: an estimate."""

LAYERS_AT_ONCE = 2
"""Layers of the image decoder whose input and output exist at once; the engine's own estimate has the same number."""

DEFAULT_SIDE = 1024


def diffusers_needs(options: DiffusersOptions, facts: ModelFacts) -> MemoryNeeds:
    """The weights of all parts of the pipeline, and the decoding of one image of the largest size that the plan is for:
    `max_side`, or the size that the model was trained for."""
    index = facts.config("model_index.json")
    parts = [
        name for name, entry in index.items() if name[0] != "_" and isinstance(entry, list) and entry[:1] != [None]
    ]
    if not options.safety_checker:
        parts = [name for name in parts if name != "safety_checker"]
    return MemoryNeeds(
        weights=facts.weights_figure(options.dtype, parts) if parts else None,
        activations=_activations(options, facts),
    )


def image_side(options: DiffusersOptions, facts: ModelFacts) -> int:
    """The side of the largest image of the plan, in pixels."""
    if options.max_side is not None:
        return options.max_side
    denoiser = facts.config("unet/config.json") or facts.config("transformer/config.json")
    latent, channels = dimension(denoiser, ("sample_size",)), _channels(facts.config("vae/config.json"))
    return latent * 2 ** (len(channels) - 1) if latent and channels else DEFAULT_SIDE


def _activations(options: DiffusersOptions, facts: ModelFacts) -> Figure | None:
    vae = facts.config("vae/config.json")
    channels, side = _channels(vae), image_side(options, facts)
    if not channels:
        return None
    # Some pipelines decode in float32 what they denoise in half precision (`force_upcast`).
    upcast = vae.get("force_upcast", True) is True and "text_encoder_2" in facts.config("model_index.json")
    size = 4 if upcast else element_bytes(options.dtype, facts)
    # The largest layer doubles the resolution at the second-smallest number of channels.
    layer = 2 * channels[min(1, len(channels) - 1)] * size * side**2
    rest = EAGER_BYTES if options.enforce_eager else GRAPHS_BYTES
    return Figure(LAYERS_AT_ONCE * layer + rest, f"an estimate for an image of {side} x {side}", assumed=True)


def _channels(vae: Mapping[str, Any]) -> list[int]:
    """Channels of the image decoder by resolution, the highest first; empty if unknown."""
    channels = vae.get("block_out_channels")
    valid = isinstance(channels, list) and all(isinstance(count, int) and count > 0 for count in channels)
    return list(channels) if valid and channels else []
