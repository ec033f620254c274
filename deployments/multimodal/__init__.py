"""Models that see and hear, on vLLM."""

from deployments.multimodal.multimodal_request import MultimodalRequest

__all__ = ["MultimodalRequest"]
