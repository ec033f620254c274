"""Language models on vLLM."""

from deployments.llm.llm_worker import LlmRequest

__all__ = ["LlmRequest"]
