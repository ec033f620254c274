"""Language models on vLLM, and the request and backend that all text-generating worker types share."""

from deployments.llm.llm_worker import LlmRequest

__all__ = ["LlmRequest"]
