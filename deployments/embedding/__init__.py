"""Text embeddings."""

from deployments.embedding.embedding_worker import EmbeddingRequest

__all__ = ["EmbeddingRequest"]
