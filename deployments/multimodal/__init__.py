"""Models that read images and recordings, on vLLM."""

from deployments.multimodal.multimodal_request import MultimodalRequest

__all__ = ["MultimodalRequest"]
