"""Image classification, embedding and generation."""

from deployments.vision.classify import ClassifyRequest
from deployments.vision.embed import EmbedRequest
from deployments.vision.generate import ImageRequest

__all__ = ["ClassifyRequest", "EmbedRequest", "ImageRequest"]
