"""Texts become vectors."""

from deployments.embedding.embedding_worker import EmbeddingRequest

__all__ = ["EmbeddingRequest"]
