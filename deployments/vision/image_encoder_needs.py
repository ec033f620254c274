"""What an image classifier, CLIP or SigLIP needs of its GPU."""

from __future__ import annotations

from deployments.torch_runtime.encoder_memory import encoder_bytes
from deployments.torch_runtime.loaded_type import element_bytes
from deployments.vision.image_model import BATCH_IMAGES
from deployments.vision.vision_options import VisionOptions
from rbee_serve.memory_plan.model_facts import ModelFacts
from rbee_serve.memory_plan.needs import Figure, MemoryNeeds
from rbee_serve.memory_plan.transformer_config import HIDDEN, dimension, vision_config

CONVOLUTION_BYTES_PER_PIXEL = 256
"""An estimate for networks without patches, in half precision: 64 channels of a quarter of the pixels, four times."""


def image_encoder_needs(options: VisionOptions, facts: ModelFacts) -> MemoryNeeds:
    """The weights, and a full batch of images."""
    return MemoryNeeds(weights=facts.weights_figure(options.dtype), activations=_activations(options, facts))


def _activations(options: VisionOptions, facts: ModelFacts) -> Figure | None:
    config = facts.config()
    vision = vision_config(config) or config
    side, patch = dimension(vision, ("image_size",)), dimension(vision, ("patch_size",))
    if side is None:
        return None
    images, size = options.batch_images or BATCH_IMAGES["cuda"], element_bytes(options.dtype, facts)
    pixels = 3 * images * side**2 * size
    if patch is None or dimension(vision, HIDDEN) is None:
        count = images * side**2 * CONVOLUTION_BYTES_PER_PIXEL * size // 2
        return Figure(count, f"an estimate for a batch of {images} images", assumed=True)
    # Attention over patches has no mask, so its length does not count.
    layers = encoder_bytes(vision, rows=images * (side // patch) ** 2, length=1, element_bytes=size)
    return None if layers is None else facts.config_figure(pixels + layers, f"a batch of {images} images")
